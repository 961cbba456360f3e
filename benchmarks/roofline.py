"""The roofline: how fast the improved policy could be if the machine did nothing but its matrix products and reads.

A card says what a token costs in operations and bytes; the ceilings are measured here and now. The improved policy is
bound by operations on a CPU: a pass reads each weight once for a whole tile, which stays in the cache.

In the docstrings N is the digits, P the tokens of a prefix, T those of a branch, D the hidden size, S the tokens that
one token attends to.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sector.engine.config import Filter
from sector.engine.language.place_layout import DigitOrder, PlaceLayout
from sector.engine.models.sector import SectorForCausalLM
from sector.engine.policy.checks import DIRECT, checks_of
from sector.engine.tasks import DEFAULT, find_task
from sector.engine.tasks.check import Solve
from sector.engine.threads import num_cores

# A tile of the CPU engine; on a GPU products are larger before they reach their rate.
_CPU_TOKENS = 8192
_GPU_TOKENS = 1 << 17
_COPY_BYTES = 1 << 28
_REPEATS = 20


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Measured: operations per second in matrix products of the model's sizes, bytes per second read plus written."""

    operations_per_s: float
    copy_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens that pass through the model, tokens that come out, and pairs of tokens that attend."""

    tokens: int
    generated: int
    pairs: int

    def __add__(self, other: "Work") -> "Work":
        return Work(self.tokens + other.tokens, self.generated + other.generated, self.pairs + other.pairs)


def measure_ceilings(model: SectorForCausalLM) -> Ceilings:
    """Best of many repetitions, with all cores (or the GPU) at work.

    To be measured before `tune_allocator`, which would keep the memory of the copies.
    """
    return Ceilings(matrix_rate(model), _copy_rate(model.device))


def matrix_rate(model: SectorForCausalLM) -> float:
    """Operations per second in the products of the model's matrices, in its dtype, where it is.

    On a CPU one thread a core works side by side with the others, as the engine does.
    """
    on_gpu = model.device.type == "cuda"
    weights = [weight.detach() for weight in model.blocks.parameters() if weight.ndim == 2]
    rows = _GPU_TOKENS if on_gpu else _CPU_TOKENS
    workers = 1 if on_gpu else num_cores()
    inputs = {weight.shape[1]: weight.new_ones(rows, weight.shape[1]) for weight in weights}
    outputs = [{weight.shape[0]: weight.new_empty(rows, weight.shape[0]) for weight in weights} for _ in range(workers)]

    def products(worker: int) -> None:
        # Of no gradient, and into memory that is there: a product and nothing else.
        with torch.inference_mode():
            for weight in weights:
                torch.mm(inputs[weight.shape[1]], weight.T, out=outputs[worker][weight.shape[0]])

    with ThreadPoolExecutor(workers, initializer=_alone) as pool:
        seconds = _best_seconds(lambda: list(pool.map(products, range(workers))), model.device)
    return 2 * rows * sum(weight.numel() for weight in weights) * workers / seconds


def improved_work(digits: int, settings: Filter, order: DigitOrder) -> Work:
    """What vote and checks cost an accepted sum, if drafts hold and what prompts share is read once.

    Rejected candidates are thought through besides; how much that is depends on the model, and is not counted here.
    """
    num_simplifications = min(1 if settings.vote == "off" else settings.k, digits - 1)
    work = _vote(digits, num_simplifications, order, answers_first=True)
    for check in checks_of(settings, find_task(DEFAULT)):
        # The direct answer is a part of the vote.
        if check.solve is Solve.AT_ONCE and check is not DIRECT:
            work += _pass(digits, 0, thinks=False, answers=True)
        if check.solve is Solve.BY_VOTE:
            work += _vote(digits, num_simplifications, order, answers_first=num_simplifications == 0)
        if check.solve is Solve.TO_THE_END and digits > 1:
            work += _chain(digits, order)
    return work


def operations(model: SectorForCausalLM, work: Work) -> int:
    """Multiplications and additions: 2 a weight and token, 4 D a pair of attending tokens and layer."""
    matrices = sum(weight.numel() for weight in model.blocks.parameters() if weight.ndim == 2)
    config = model.config
    attention = 4 * config.hidden_size * config.num_hidden_layers * work.pairs
    return 2 * work.tokens * matrices + 2 * work.generated * model.head.weight.numel() + attention


def decode_bytes(model: SectorForCausalLM, batch: int, attended: int) -> float:
    """Bytes that plain decoding reads a token: keys and values of S tokens, and a batch's share of the weights."""
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    config = model.config
    cached = 2 * config.num_hidden_layers * config.hidden_size * attended * model.head.weight.element_size()
    return cached + weights / batch


def card(model: SectorForCausalLM, ceilings: Ceilings, digits: int, settings: Filter, batch: int) -> dict[str, Any]:
    """The card: what a candidate and a token cost, and how many candidates a second the ceilings allow."""
    work = improved_work(digits, settings, DigitOrder(model.config.digit_order))
    per_candidate = operations(model, work)
    attended = work.pairs // work.tokens
    return {
        "digits": digits,
        "tokens_a_candidate": work.tokens,
        "generated_a_candidate": work.generated,
        "operations_a_candidate": per_candidate,
        "operations_a_token": per_candidate / work.tokens,
        "decode_bytes_a_token": decode_bytes(model, batch, attended),
        **asdict(ceilings),
        "candidates_per_s": ceilings.operations_per_s / per_candidate,
    }


def _vote(digits: int, num_simplifications: int, order: DigitOrder, answers_first: bool) -> Work:
    """One solution by simplify-then-guess; see `chain.simplify_then_guess`."""
    work = Work(0, 0, 0)
    for stage in range(num_simplifications + 1):
        thinks = stage < num_simplifications
        # A prompt begins as the one before it, but for the digit of its first operand that is gone.
        known = PlaceLayout(order).beginning_length(digits - stage + 1) if stage > 0 else 0
        work += _pass(digits - stage, known, thinks, answers=stage > 0 or answers_first or not thinks)
    return work


def _chain(digits: int, order: DigitOrder) -> Work:
    """A chain of thought to the end: a simplification a digit, and the answer to the last; see `chain.to_the_end`."""
    work = _pass(1, 0, thinks=False, answers=True)
    for left in range(2, digits + 1):
        known = PlaceLayout(order).beginning_length(left + 1) if left < digits else 0
        work += _pass(left, known, thinks=True, answers=False)
    return work


def _pass(digits: int, known: int, thinks: bool, answers: bool) -> Work:
    """A prefix, `known` tokens of it read before, with the branches behind it.

    The last token of a branch is chosen, not read; its mark is read.
    """
    prefix, layout = 2 * digits + 5, PlaceLayout()
    branches = [layout.simplification_length(digits)] * thinks + [layout.answer_length(digits)] * answers
    return Work(
        prefix - known + sum(branches),
        sum(branches),
        _triangle(prefix) - _triangle(known) + sum(length * prefix + _triangle(length) for length in branches),
    )


def _triangle(length: int) -> int:
    return length * (length + 1) // 2


def _copy_rate(device: torch.device) -> float:
    """Bytes per second, read and written, of copies that fit in no cache."""
    workers = 1 if device.type == "cuda" else num_cores()
    pairs = [
        (torch.ones(_COPY_BYTES // 4, device=device), torch.empty(_COPY_BYTES // 4, device=device))
        for _ in range(workers)
    ]
    with ThreadPoolExecutor(workers, initializer=_alone) as pool:
        seconds = _best_seconds(lambda: list(pool.map(lambda pair: pair[1].copy_(pair[0]), pairs)), device)
    return 2 * _COPY_BYTES * workers / seconds


def _best_seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Shortest of some runs; a ceiling is what was reached at least once."""
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _alone() -> None:
    """One core a thread."""
    torch.set_num_threads(1)
