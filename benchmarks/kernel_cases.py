"""Compile the kernels as the launchers launch them, for a GPU that is not there: sm_90, the H100's.

    python -m sector.benchmarks.kernel_cases [CASE...]

A program by itself (`kernel_card.py` runs it): a process either interprets kernels or compiles them. Each case calls a
launcher on CPU tensors while Triton, told that an H100 is the current device, compiles and launches nothing. So the
signatures, block sizes and warps are those of real calls. It prints one JSON object a compiled kernel: the case, the
name of the kernel, the entries of `machine_code.read`, and

    warps      warps of a program
    shared     bytes of shared memory of a program
    programs   programs that the call launches
    tokens     rows or tokens that the call serves
    trips      passes of the loop at the size of the case, if a kernel has one loop whose passes are known; or null
    seconds    seconds to compile it and to read its code
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sector.benchmarks import machine_code
from sector.engine.language.tokens import kernel_table
from sector.engine.models.sector import new_model
from sector.engine.samplers.gpu import kernel_model
from sector.kernels._triton import INTERPRETED, triton
from sector.kernels.acceptance import accept_kernel
from sector.kernels.completion import CompletionRequest, Model
from sector.kernels.consistency import majority_kernel
from sector.kernels.decode_attention import Positions, decode_attention_kernel
from sector.kernels.digit_sampler import Head, sample_digits_kernel
from sector.kernels.embedding import embed_kernel
from sector.kernels.first_pass import PassLayout
from sector.kernels.layer import add_norm_kernel, rotate_to_cache_kernel, square_of_relu_kernel
from sector.kernels.layout import parse_answers_kernel, parse_simplifications_kernel, prompt_ids_kernel
from sector.kernels.megakernel import complete_kernel
from sector.kernels.pass_attention import Spans, pass_attention_kernel
from sector.kernels.philox import Stream
from sector.kernels.sequences import SequenceField, advance_kernel, begin_kernel
from sector.kernels.simplification import simplification_ids_kernel
from sector.kernels.verify import verify_kernel

# Rows of a call, and slots of context that its rows attend to.
_ROWS = 1000
_CONTEXT = 64


@dataclass(frozen=True, slots=True)
class Case:
    """A call of a launcher.

    call: calls it.
    tokens: rows or tokens that the call serves.
    extent: the kernel's only loop: the argument that holds its step, and the size that it covers; None without a loop.
    """

    call: Callable[[], object]
    tokens: int = _ROWS
    extent: tuple[str, int] | None = None

    def trips(self, constants: dict[str, Any]) -> int | None:
        """Return the passes of the kernel's only loop, by the constants that it is compiled with."""
        if self.extent is None:
            return None
        name, size = self.extent
        return -(-size // constants[name])


class _AbsentGpu:
    """The part of a Triton driver that compiling uses."""

    def get_current_target(self) -> object:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _integers(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64)


def _sampler(
    size: int,
    dtype: torch.dtype,
    temperature: float,
    hidden_dtype: torch.dtype | None = None,
    update_dtype: torch.dtype | None = None,
) -> Case:
    head = Head(torch.zeros(size, dtype=dtype), torch.zeros(32, size, dtype=dtype), 1e-6)
    stream = Stream(_integers(1), _integers(_ROWS), _integers(_ROWS), _integers(_ROWS))
    hidden = torch.zeros(_ROWS, size, dtype=hidden_dtype or dtype)
    update = None if update_dtype is None else torch.zeros(_ROWS, size, dtype=update_dtype)
    return Case(
        lambda: sample_digits_kernel(hidden, _integers(_ROWS), head, kernel_table(), temperature, stream, None, update),
        extent=("BLOCK_HIDDEN", size),
    )


def _attention(heads: int, size: int, dtype: torch.dtype) -> Case:
    qkv, rope = torch.zeros(_ROWS, 3 * heads * size, dtype=dtype), torch.zeros(304, 2, size // 2)
    cache = torch.zeros(_ROWS, heads, 8, size, dtype=dtype)
    at = Positions(*(_integers(_ROWS) for _ in range(4)))
    return Case(
        lambda: decode_attention_kernel(qkv, _integers(_ROWS), rope, cache, cache.clone(), at),
        extent=("BLOCK_SLOTS", _CONTEXT),
    )


def _pass_attention(heads: int, size: int, dtype: torch.dtype) -> Case:
    queries, cache = torch.zeros(2, 128, heads, size, dtype=dtype), torch.zeros(2, heads, 128, size, dtype=dtype)
    return Case(lambda: pass_attention_kernel(queries, cache, cache.clone(), Spans(_integers(128), _integers(128), 64)))


def _verify(preset: str, dtype: torch.dtype, digits: int) -> Case:
    """Return the first pass over prefixes and the whole drafts of an answer and a simplification."""
    rows, limits = 2, [digits + 2, 2 * digits + 3]
    sizes = [2 * digits + 4, *limits]
    spans = Spans(_integers(sum(sizes)), _integers(sum(sizes)), sizes[0])
    layout = PassLayout(sizes, limits, spans, _integers(sum(limits)), _integers(sum(limits)), _integers(2, 2))

    def run() -> None:
        model = _preset(preset, dtype)
        layers, _, hidden = model.weights.up.shape
        cache = torch.zeros(layers, 2, rows, model.num_heads, 128, hidden // model.num_heads, dtype=dtype)
        verify_kernel(model, _integers(rows, sum(sizes)), layout, cache, _integers(rows * sum(limits)))

    return Case(run, tokens=rows * sum(sizes))


def _vote(guesses: int, length: int) -> Case:
    valid = torch.ones(_ROWS, guesses, dtype=torch.bool)
    return Case(lambda: majority_kernel(_integers(_ROWS, guesses, length), valid))


def _prompts(digits: int) -> Case:
    operand, row = _integers(_ROWS, digits), _integers(_ROWS)
    return Case(lambda: prompt_ids_kernel(operand, operand, row, row, kernel_table()))


def _simplifications(digits: int, least_first: bool) -> Case:
    ids, row = _integers(_ROWS, 2 * digits + 4), _integers(_ROWS)
    return Case(lambda: parse_simplifications_kernel(ids, digits, row, kernel_table(), least_first))


def _drafts(digits: int) -> Case:
    rest, row = _integers(_ROWS, digits)[:, :-1], _integers(_ROWS)
    return Case(lambda: simplification_ids_kernel(rest, rest, row, row, row, kernel_table()))


def _answers(digits: int) -> Case:
    return Case(lambda: parse_answers_kernel(_integers(_ROWS, digits + 2), digits, _integers(_ROWS), kernel_table()))


def _layer(heads: int, size: int, dtype: torch.dtype) -> Case:
    """Return the calls of a layer of the first pass."""
    count = _ROWS
    hidden, x = heads * size, torch.zeros(count, heads * size)
    cache, rope = torch.zeros(2, count, heads, 64, size, dtype=dtype), torch.zeros(304, 2, size // 2)
    weight, qkv = torch.zeros(hidden, dtype=dtype), torch.zeros(count, 1, 3 * hidden, dtype=dtype)

    def run() -> None:
        add_norm_kernel(x, None, weight, 1e-6)
        add_norm_kernel(x, x.to(dtype), weight, 1e-6)
        rotate_to_cache_kernel(qkv, _integers(count, 1), _integers(1), rope, *cache)
        square_of_relu_kernel(torch.zeros(count, 4 * hidden, dtype=dtype))

    return Case(run)


def _acceptance(length: int, drafted: bool) -> Case:
    ids = _integers(_ROWS, length)
    return Case(lambda: accept_kernel(ids, ids, ids if drafted else None, 0))


def _embedding(size: int, dtype: torch.dtype) -> Case:
    return Case(lambda: embed_kernel(_integers(_ROWS), torch.zeros(32, size, dtype=dtype), kernel_table()))


def _beginning() -> Case:
    """Return the beginning of two sequences a row."""
    counts, output = _integers(2, _ROWS // 2), _integers(10 * _ROWS + 1)
    return Case(lambda: begin_kernel(_integers(2, 2), 20, counts, output, _integers(_ROWS // 2), 3, kernel_table()))


def _advance() -> Case:
    state, stopped = _integers(len(SequenceField), _ROWS), torch.zeros(_ROWS, dtype=torch.bool)
    return Case(lambda: advance_kernel(state, stopped, _integers(10 * _ROWS + 1)))


def _megakernel(preset: str, dtype: torch.dtype, temperature: float) -> Case:
    """Return the call that completes fast answers and simplifications of 8 digits."""
    rows, lengths = 40, (10, 20)
    prefix, marks = _integers(rows, 2 * 8 + 4), _integers(rows, len(lengths))
    request = CompletionRequest(prefix, marks, lengths, _integers(rows), stage=3, seed=5, temperature=temperature)

    return Case(lambda: complete_kernel(_preset(preset, dtype), request), tokens=rows)


def _preset(name: str, dtype: torch.dtype) -> Model:
    model = new_model(name, seed=1)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return kernel_model(model, torch.device("cpu"))


BF16, FP32 = torch.bfloat16, torch.float32

CASES: dict[str, Case] = {
    "digit_sampler tiny fp32 sampled": _sampler(64, FP32, 0.7),
    "digit_sampler base bf16 sampled": _sampler(384, BF16, 0.7),
    "digit_sampler base bf16 under fp32 sampled": _sampler(384, BF16, 0.7, FP32),
    "digit_sampler base bf16 under fp32 greedy": _sampler(384, BF16, 0.0, FP32),
    # As stepwise decoding calls it: the residual stream is float32 whatever the weights, and the last update is added.
    "digit_sampler tiny fp32 with update greedy": _sampler(64, FP32, 0.0, FP32, FP32),
    "digit_sampler base bf16 with update greedy": _sampler(384, BF16, 0.0, FP32, BF16),
    "digit_sampler base fp32 greedy": _sampler(384, FP32, 0.0),
    "digit_sampler odd bf16 greedy": _sampler(90, BF16, 0.0),
    "decode_attention tiny fp32": _attention(4, 16, FP32),
    "decode_attention base bf16": _attention(12, 32, BF16),
    "decode_attention base fp32": _attention(12, 32, FP32),
    "decode_attention odd bf16": _attention(3, 22, BF16),
    "pass_attention tiny fp32": _pass_attention(4, 16, FP32),
    "pass_attention tiny bf16": _pass_attention(4, 16, BF16),
    "pass_attention base bf16": _pass_attention(12, 32, BF16),
    "pass_attention base fp32": _pass_attention(12, 32, FP32),
    "verify tiny fp32": _verify("tiny", FP32, 20),
    "verify tiny bf16": _verify("tiny", BF16, 20),
    "majority of 5": _vote(5, 30),
    "majority of 33": _vote(33, 257),
    "prompts 29": _prompts(29),
    "simplifications 29": _simplifications(29, False),
    "simplifications 256 least first": _simplifications(256, True),
    "drafts 29": _drafts(29),
    "answers 29": _answers(29),
    "layer tiny fp32": _layer(4, 16, FP32),
    "layer tiny bf16": _layer(4, 16, BF16),
    "layer base fp32": _layer(12, 32, FP32),
    "layer base bf16": _layer(12, 32, BF16),
    "acceptance 62 drafted": _acceptance(62, True),
    "acceptance 31 plain": _acceptance(31, False),
    "embedding tiny fp32": _embedding(64, FP32),
    "embedding base bf16": _embedding(384, BF16),
    "sequences begin": _beginning(),
    "sequences advance": _advance(),
    "megakernel tiny bf16 sampled": _megakernel("tiny", BF16, 0.8),
    "megakernel base bf16 sampled": _megakernel("base", BF16, 0.8),
    "megakernel tiny fp32 sampled": _megakernel("tiny", FP32, 0.8),
    "megakernel base fp32 sampled": _megakernel("base", FP32, 0.8),
    "megakernel tiny bf16 greedy": _megakernel("tiny", BF16, 0.0),
    "megakernel base bf16 greedy": _megakernel("base", BF16, 0.0),
}


def compile_cases(names: list[str], on_kernel: Callable[[dict[str, Any]], None]) -> None:
    """Compile the kernels of some cases, and pass on the line of each."""
    from triton.runtime.jit import JITFunction

    triton.runtime.driver.set_active(_AbsentGpu())
    run = JITFunction.run
    name = ""

    def compile_only(kernel: Any, *arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        compiled = run(kernel, *arguments, **{**options, "warmup": True})
        case = CASES[name]
        on_kernel(
            {
                "case": name,
                "kernel": kernel.fn.__name__,
                **machine_code.read(compiled.asm["cubin"]),
                "warps": compiled.metadata.num_warps,
                "shared": compiled.metadata.shared,
                "programs": math.prod(options["grid"]),
                "tokens": case.tokens,
                "trips": case.trips(options),
                "seconds": round(time.perf_counter() - started, 2),
            }
        )
        return compiled

    JITFunction.run = compile_only
    for name in names:
        CASES[name].call()


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE")
    names = parser.parse_args().cases or list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"there is no case {unknown[0]}")
    if INTERPRETED:
        parser.error("kernels are interpreted in this process; unset TRITON_INTERPRET")
    compile_cases(names, lambda line: print(json.dumps(line), flush=True))


if __name__ == "__main__":
    main()
