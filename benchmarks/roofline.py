"""The roofline: the speed of the improved policy if the machine did nothing but its matrix products and reads.

A card (`card`) holds the figures of one length: the cost of a candidate and of a token in operations and bytes, the
ceilings of the machine as measured, and the speed that follows. On a CPU the improved policy is bound by operations: a
pass reads each weight once for a whole tile, which stays in the cache.

In the docstrings N is the digits, P the tokens of a prefix, T the tokens of a branch, D the hidden size, S the tokens
that one token attends to.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch

from sector.benchmarks.timing import timed
from sector.engine.config import Filter
from sector.engine.language.place_ids import DigitOrder
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.models.sector import SectorForCausalLM
from sector.engine.policy.checks import DIRECT, checks_of
from sector.engine.tasks import DEFAULT, find_task
from sector.engine.tasks.check import Solve
from sector.engine.threads import num_cores

T = TypeVar("T")

# Tokens of a tile of the CPU engine; a GPU needs larger products to reach its rate.
_CPU_TOKENS = 8192
_GPU_TOKENS = 1 << 17
_COPY_BYTES = 1 << 28
# Seconds over which a ceiling is measured.
_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The measured ceilings of the machine.

    operations_per_s: operations per second in matrix products of the model's sizes.
    copy_bytes_per_s: bytes per second, read plus written, in copies.
    """

    operations_per_s: float
    copy_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """The work of one candidate.

    tokens: tokens that pass through the model.
    generated: tokens that are generated.
    pairs: pairs of tokens that attend.
    """

    tokens: int
    generated: int
    pairs: int

    def __add__(self, other: "Work") -> "Work":
        return Work(self.tokens + other.tokens, self.generated + other.generated, self.pairs + other.pairs)


def measure_ceilings(model: SectorForCausalLM) -> Ceilings:
    """Measure the ceilings, with all cores or the GPU at work; the fastest of many repetitions counts.

    Call it before `tune_allocator`, which would keep the memory of the copies.
    """
    return Ceilings(matrix_rate(model), _copy_rate(model.device))


def matrix_rate(model: SectorForCausalLM) -> float:
    """Measure operations per second in the products of the model's matrices, in its dtype and on its device.

    On a CPU one thread per core computes its own products, as the engine does.
    """
    on_gpu = model.device.type == "cuda"
    weights = [weight.detach() for weight in model.blocks.parameters() if weight.ndim == 2]
    rows = _GPU_TOKENS if on_gpu else _CPU_TOKENS
    workers = 1 if on_gpu else num_cores()
    inputs = {weight.shape[1]: weight.new_ones(rows, weight.shape[1]) for weight in weights}
    outputs = [{weight.shape[0]: weight.new_empty(rows, weight.shape[0]) for weight in weights} for _ in range(workers)]

    def products(worker: int) -> None:
        # Without gradients and with outputs allocated before, only the products are timed.
        with torch.inference_mode():
            for weight in weights:
                torch.mm(inputs[weight.shape[1]], weight.T, out=outputs[worker][weight.shape[0]])

    return 2 * rows * sum(weight.numel() for weight in weights) * workers / _least_seconds(products, range(workers))


def improved_work(digits: int, settings: Filter, order: DigitOrder) -> Work:
    """Return the work of vote and checks for an accepted sum, if all drafts hold and shared beginnings are read once.

    Thinking rejected candidates through is not counted: its share depends on the model.
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
    """Return multiplications plus additions: 2 per weight and token, 4 D per layer and pair of attending tokens."""
    matrices = sum(weight.numel() for weight in model.blocks.parameters() if weight.ndim == 2)
    config = model.config
    attention = 4 * config.hidden_size * config.num_hidden_layers * work.pairs
    return 2 * work.tokens * matrices + 2 * work.generated * model.head.weight.numel() + attention


def decode_bytes(model: SectorForCausalLM, batch: int, attended: int) -> float:
    """Return the bytes that plain decoding reads per token: keys and values of S tokens, and a share of the weights.

    The rows of a batch share one read of the weights.
    """
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    config = model.config
    cached = 2 * config.num_hidden_layers * config.hidden_size * attended * model.head.weight.element_size()
    return cached + weights / batch


def card(model: SectorForCausalLM, ceilings: Ceilings, digits: int, settings: Filter, batch: int) -> dict[str, Any]:
    """Return the figures of a length: cost of a candidate and of a token, and candidates per second at the ceilings."""
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
    """Return the work of one vote; see `chain.simplify_then_guess`."""
    work = Work(0, 0, 0)
    for stage in range(num_simplifications + 1):
        thinks = stage < num_simplifications
        # A prompt begins like the prompt before it, up to the last digit of the first operand.
        shared = PlaceLayout(order).beginning_length(digits - stage + 1) if stage > 0 else 0
        work += _pass(digits - stage, shared, thinks, answers=stage > 0 or answers_first or not thinks)
    return work


def _chain(digits: int, order: DigitOrder) -> Work:
    """Return the work of a chain of thought to the end; see `chain.to_the_end`."""
    work = _pass(1, 0, thinks=False, answers=True)
    for remaining in range(2, digits + 1):
        shared = PlaceLayout(order).beginning_length(remaining + 1) if remaining < digits else 0
        work += _pass(remaining, shared, thinks=True, answers=False)
    return work


def _pass(digits: int, shared: int, thinks: bool, answers: bool) -> Work:
    """Return the work of reading a prefix and generating its branches.

    The mark of a branch is read, its last token is not.

    shared: tokens of the prefix that an earlier pass has read.
    thinks: whether there is a branch for a simplification.
    answers: whether there is a branch for the fast answer.
    """
    prefix, layout, branches = 2 * digits + 5, PlaceLayout(), []
    if thinks:
        branches.append(layout.simplification_length(digits))
    if answers:
        branches.append(layout.answer_length(digits))
    return Work(
        prefix - shared + sum(branches),
        sum(branches),
        _triangle(prefix) - _triangle(shared) + sum(length * prefix + _triangle(length) for length in branches),
    )


def _triangle(length: int) -> int:
    """Return the pairs of tokens in a sequence in which each token attends to itself and to those before it."""
    return length * (length + 1) // 2


def _copy_rate(device: torch.device) -> float:
    """Measure bytes per second, read plus written, in copies that are larger than any cache."""
    workers = 1 if device.type == "cuda" else num_cores()
    pairs = [
        (torch.ones(_COPY_BYTES // 4, device=device), torch.empty(_COPY_BYTES // 4, device=device))
        for _ in range(workers)
    ]
    return 2 * _COPY_BYTES * workers / _least_seconds(lambda pair: pair[1].copy_(pair[0]), pairs)


def _least_seconds(work: Callable[[T], object], items: Sequence[T]) -> float:
    """Return the seconds of the fastest repetition of some work on all items, each on a thread with one core."""
    with ThreadPoolExecutor(len(items), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return min(timed(lambda: list(pool.map(work, items)), _SECONDS).times)
