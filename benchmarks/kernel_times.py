"""Time the kernels one by one, and compare the bytes that they must move with the copy rate of the machine.

On a GPU each kernel and its plain-torch reference are timed. On a CPU kernels run in Triton's interpreter only; the
engine uses the reference, and only the reference is timed.

Legend: B rows, N digits, K guesses, D hidden size, H heads, S slots of the cache.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sector.benchmarks.timing import timed
from sector.engine.language import tokens
from sector.engine.models.layers import rope_table
from sector.engine.models.sector import SectorForCausalLM
from sector.kernels import consistency, decode_attention, digit_sampler, layout

# Seconds over which the calls of an operation on a CPU are timed.
_SECONDS = 0.2
_GUESSES = 5


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation at one size.

    name: name of the kernel.
    bytes: bytes that must be read or written at least once.
    kernel: runs the operation by the kernel.
    reference: runs the operation in plain torch.
    """

    name: str
    bytes: int
    kernel: Callable[[], object]
    reference: Callable[[], object]


def measure_kernels(
    model: SectorForCausalLM, digits: int, rows: int, copy_bytes_per_s: float
) -> list[dict[str, object]]:
    """Return one line per kernel; times are medians in seconds."""
    on_gpu = model.device.type == "cuda"
    lines = []
    for case in _cases(model, digits, rows):
        seconds = {"reference": _seconds(case.reference, on_gpu)}
        if on_gpu:
            seconds["kernel"] = _seconds(case.kernel, on_gpu)
        best = seconds.get("kernel", seconds["reference"])
        lines.append(
            {
                "kernel": case.name,
                "rows": rows,
                "digits": digits,
                "bytes": case.bytes,
                "seconds": seconds,
                "share_of_copy_rate": case.bytes / best / copy_bytes_per_s,
            }
        )
    return lines


def _cases(model: SectorForCausalLM, digits: int, rows: int) -> list[Operation]:
    """Return the kernels with random inputs of one size."""
    return [
        _sampler(model, rows, digits),
        _attention(model, rows, digits),
        _vote(model.device, rows, digits),
        _prompts(model.device, rows, digits),
        _answers(model.device, rows, digits),
    ]


def _sampler(model: SectorForCausalLM, rows: int, digits: int) -> Operation:
    """Return the case of the digit sampler: the choice of next tokens from hidden states `[B, D]`."""
    device, head = model.device, model.head.weight.detach()
    packed = digit_sampler.Head(model.norm.weight.detach(), head, model.config.rms_norm_eps)
    hidden = torch.randn(rows, head.shape[1], device=device, dtype=head.dtype)
    ids = _ids(rows, digits, device)
    arguments = (hidden, ids, packed, tokens.kernel_table(device), 0.0, None)
    moved = hidden.nbytes + head.nbytes + 4 * ids.nbytes
    return Operation(
        "digit_sampler",
        moved,
        lambda: digit_sampler.sample_digits_kernel(*arguments),
        lambda: digit_sampler.sample_digits_reference(*arguments),
    )


def _attention(model: SectorForCausalLM, rows: int, digits: int) -> Operation:
    """Return the case of decode attention: one new token per row, and a full cache `[B, H, S, D/H]`."""
    config, device, dtype = model.config, model.device, model.head.weight.dtype
    slots = 4 * digits + 10
    qkv = torch.randn(rows, 3 * config.hidden_size, device=device, dtype=dtype)
    shape = (rows, config.num_attention_heads, slots, config.head_dim)
    keys, values = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
    full = torch.full((rows,), slots - 1, dtype=torch.int64, device=device)
    at = decode_attention.Positions(torch.arange(rows, device=device), full, full.new_zeros(rows), full.new_zeros(rows))
    places = tokens.place_of(_ids(rows, digits, device))
    arguments = (qkv, places, rope_table(config).to(device), keys, values, at)
    return Operation(
        "decode_attention",
        qkv.nbytes + keys.nbytes + values.nbytes + qkv.nbytes // 3,
        lambda: decode_attention.decode_attention_kernel(*arguments),
        lambda: decode_attention.decode_attention_reference(*arguments),
    )


def _vote(device: torch.device, rows: int, digits: int) -> Operation:
    """Return the case of the vote, over guesses `[B, K, N+1]`."""
    guesses = torch.randint(0, 10, (rows, _GUESSES, digits + 1), device=device)
    valid = torch.ones(rows, _GUESSES, dtype=torch.bool, device=device)
    return Operation(
        "majority",
        guesses.nbytes + guesses.nbytes // _GUESSES + valid.nbytes,
        lambda: consistency.majority_kernel(guesses, valid),
        lambda: consistency.majority_reference(guesses, valid),
    )


def _prompts(device: torch.device, rows: int, digits: int) -> Operation:
    """Return the case of the layout of B prompts."""
    table = tokens.kernel_table(device)
    a, b = (torch.randint(0, 10, (rows, digits), device=device) for _ in range(2))
    carry = a.new_zeros(rows)
    arguments = (a, b, carry, carry, table)
    return Operation(
        "prompt_ids",
        2 * (a.nbytes + b.nbytes) + 8 * 5 * rows,
        lambda: layout.prompt_ids_kernel(*arguments),
        lambda: layout.prompt_ids_reference(*arguments),
    )


def _answers(device: torch.device, rows: int, digits: int) -> Operation:
    """Return the case of the parsing of B answers."""
    ids = _ids(rows, digits, device).unsqueeze(1).repeat(1, digits + 2)
    arguments = (ids, digits, ids.new_zeros(rows), tokens.kernel_table(device))
    return Operation(
        "parse_answers",
        2 * ids.nbytes,
        lambda: layout.parse_answers_kernel(*arguments),
        lambda: layout.parse_answers_reference(*arguments),
    )


def _ids(rows: int, digits: int, device: torch.device) -> Tensor:
    """Return ids `[B]` of digits at places up to N."""
    return tokens.NUM_LOCAL * (1 + torch.arange(rows, device=device) % digits) + torch.arange(rows, device=device) % 10


def _seconds(run: Callable[[], object], on_gpu: bool) -> float:
    """Return the median time of a call; on a GPU measured by events, with the cache flushed before each call."""
    if not on_gpu:
        return timed(run, _SECONDS).median
    from triton.testing import do_bench

    return do_bench(run, quantiles=[0.5]) / 1000
