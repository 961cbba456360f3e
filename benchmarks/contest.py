"""A contest of engines: the same checkpoint and problems, in one process, taking turns after a warm-up of full size.

The engines take turns so that other work on the machine disturbs all of them alike. The figures are medians, and ratios
are ratios of medians.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from sector.benchmarks.memory import peak_bytes, reset_peak
from sector.engine.config import Filter, VllmConfig
from sector.engine.language.layout import Batch, Layout
from sector.engine.language.operands import batches
from sector.engine.language.rows import cat
from sector.engine.models.checkpoint import Model
from sector.engine.models.sector import SectorForCausalLM
from sector.engine.policy.improve import Improved, improve
from sector.engine.run.steps import OnProgress
from sector.engine.samplers import make_sampler
from sector.engine.samplers.protocol import Sampler, Sampling, Savings
from sector.engine.seeding import generator
from sector.engine.tasks.task import Task


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to run the improved policy.

    name: name in the record.
    sampler: the engine.
    drop_decided: whether rejected rows take no further check, as in `improve`.
    """

    name: str
    sampler: Sampler
    drop_decided: bool = True


@dataclass(frozen=True, slots=True)
class Workload:
    """Problems of one length.

    digits: digits per operand.
    count: count of problems.
    batch: problems at a time; 0 means all at once.
    """

    digits: int
    count: int
    batch: int

    def problems(self, task: Task, seed: int, hard_share: float) -> Batch:
        """Draw the problems."""
        problems: Batch = task.draw(self.digits, self.count, generator(seed, "bench", self.digits), hard_share)
        return problems


@dataclass(frozen=True, slots=True)
class ContestResult:
    """The result of one contender on one workload.

    contender: name of the contender.
    workload: the problems.
    seconds: seconds of each repetition.
    tokens: count of generated tokens.
    accepted: count of accepted candidates.
    peak_memory_bytes: highest peak of all repetitions.
    """

    contender: str
    workload: Workload
    seconds: list[float]
    tokens: int
    accepted: int
    peak_memory_bytes: int

    @property
    def median(self) -> float:
        """Median seconds of a repetition."""
        return statistics.median(self.seconds)

    def as_json(self) -> dict[str, object]:
        """Return the rates of the median repetition, and of the slowest and the fastest."""
        return {
            "engine": self.contender,
            "digits": self.workload.digits,
            "count": self.workload.count,
            "batch": self.workload.batch,
            "tokens": self.tokens,
            "accepted": self.accepted,
            "seconds": self.seconds,
            "tokens_per_s": self.tokens / self.median,
            "accepted_per_s": self.accepted / self.median,
            "accepted_per_s_low": self.accepted / max(self.seconds),
            "accepted_per_s_high": self.accepted / min(self.seconds),
            "peak_memory_bytes": self.peak_memory_bytes,
        }


@dataclass(frozen=True, slots=True)
class Contest:
    """The terms that hold for all contenders.

    settings: vote and checks.
    task: task of the problems.
    layout: token layout of the checkpoint.
    temperature: 0 is greedy.
    seed: seed of problems and sampling.
    hard_share: share of problems harder than uniform digits.
    """

    settings: Filter
    task: Task
    layout: Layout
    temperature: float
    seed: int
    hard_share: float

    def run(
        self,
        contenders: Sequence[Contender],
        workloads: Sequence[Workload],
        repeats: int,
        device: torch.device,
        on_progress: OnProgress,
    ) -> Iterator[tuple[list[ContestResult], int]]:
        """Yield for each workload its cells, and the count of problems on which the contenders differ."""
        done, total = 0, len(contenders) * len(workloads) * repeats
        for workload in workloads:
            problems = workload.problems(self.task, self.seed, self.hard_share)
            seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
            peaks = dict.fromkeys(seconds, 0)
            results: dict[str, Improved] = {}
            # With all rows: an engine on a GPU compiles and captures for each size of batch, once.
            for contender in contenders:
                self.improve(contender, problems, workload.batch)
            for turn in range(repeats):
                # The order is reversed every other turn, so that no contender is always first.
                for contender in contenders if turn % 2 == 0 else reversed(contenders):
                    name = contender.name
                    on_progress(done, total, f"{name}, {workload.digits} digits")
                    reset_peak(device)
                    start = time.perf_counter()
                    results[name] = self.improve(contender, problems, workload.batch)
                    seconds[name].append(time.perf_counter() - start)
                    peaks[name] = max(peaks[name], peak_bytes(device))
                    done += 1
            cells = [
                ContestResult(
                    name, workload, seconds[name], results[name].tokens, int(results[name].accepted.sum()), peak
                )
                for name, peak in peaks.items()
            ]
            yield cells, _num_differing(list(results.values()))

    def improve(self, contender: Contender, problems: Batch, batch: int) -> Improved:
        """Run the improved policy on all problems, batch by batch."""
        parts, start = [], 0
        for part in batches(problems, batch or len(problems)):
            rows = torch.arange(start, start + len(part))
            sampling = Sampling(self.temperature, self.seed, rows, stage=0)
            parts.append(improve(contender.sampler, part, self.settings, self.layout, sampling, contender.drop_decided))
            start += len(part)
        return cat(parts)


def engines(names: Sequence[str], model: Model, vllm: VllmConfig | None = None) -> list[Contender]:
    """Return a contender for each engine.

    vllm: settings of the engine `vllm`.
    """
    return [Contender(name, make_sampler(name, model, vllm)) for name in names]


def variants(model: SectorForCausalLM) -> list[Contender]:
    """Return variants of the native engine: on a CPU without each of its savings, on a GPU with each way to decode."""
    if model.device.type == "cuda":
        return _ways_to_decode(model)
    from sector.engine.samplers.native import NativeSampler

    savings_by_name = {
        "no drafts": Savings(drafts=False),
        "no shared prefix": Savings(shared_prefix=False),
        "no shared beginning": Savings(shared_beginning=False),
        "keep finished": Savings(drop_finished=False),
        "not compiled": Savings(compiled=False),
    }
    contenders = [Contender(name, NativeSampler(model, savings=savings)) for name, savings in savings_by_name.items()]
    contenders.append(Contender("keep decided", NativeSampler(model), drop_decided=False))
    none = Savings(shared_prefix=False, shared_beginning=False, drafts=False, drop_finished=False, compiled=False)
    plain = NativeSampler(model, savings=none)
    return [*contenders, Contender("plain", plain, drop_decided=False)]


def _ways_to_decode(model: SectorForCausalLM) -> list[Contender]:
    """Return each way to decode that supports the sizes of the model."""
    from sector.engine.samplers.gpu import Decode, GpuSampler

    ways = []
    for decode in (Decode.MEGAKERNEL, Decode.KERNELS, Decode.VERIFY):
        # The constructor raises ValueError for sizes that a kernel does not support.
        with suppress(ValueError):
            ways.append(Contender(decode, GpuSampler(model, decode)))
    return ways


def summary(cells: Sequence[ContestResult]) -> dict[str, dict[str, float]]:
    """Return rates and peak memory by contender, over all its workloads: sums divided by the sum of the medians."""
    by_name: dict[str, list[ContestResult]] = {}
    for cell in cells:
        by_name.setdefault(cell.contender, []).append(cell)
    return {
        name: {
            "tokens_per_s": sum(cell.tokens for cell in cells) / sum(cell.median for cell in cells),
            "accepted_per_s": sum(cell.accepted for cell in cells) / sum(cell.median for cell in cells),
            "peak_memory_bytes": max(cell.peak_memory_bytes for cell in cells),
        }
        for name, cells in by_name.items()
    }


def ratios(figures: dict[str, dict[str, float]], first: str) -> dict[str, dict[str, float]]:
    """Return the ratios `first/other` of the rates for every other contender."""
    rates = ("tokens_per_s", "accepted_per_s")

    def ratio(name: str, rate: str) -> float:
        divisor = figures[name][rate]
        return figures[first][rate] / divisor if divisor else float("inf")

    return {f"{first}/{name}": {rate: ratio(name, rate) for rate in rates} for name in figures if name != first}


def _num_differing(results: Sequence[Improved]) -> int:
    """Return the count of problems on which results differ: in the verdict, or in the answer if both accept."""
    first = results[0]
    differing = torch.zeros(len(first.problems), dtype=torch.bool)
    for other in results[1:]:
        differing |= differs(first, other)
    return int(differing.sum())


def differs(first: Improved, second: Improved, rows: slice = slice(None)) -> Tensor:
    """Return on which problems (of some rows) two results differ, `[B]` bool."""
    answers = (first.ballot.answers[rows] != second.ballot.answers[rows]).any(dim=1)
    both_accept = first.accepted[rows] & second.accepted[rows]
    return (answers & both_accept) | (first.verdict[rows] != second.verdict[rows])
