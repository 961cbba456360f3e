"""A contest of engines: the same checkpoint and problems, in one process, taking turns, warmed up.

Taking turns means that what disturbs the machine disturbs all; the figures are medians, and ratios are of medians.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sector.benchmarks.memory import peak_bytes, reset_peak
from sector.engine.config import Filter, VllmConfig
from sector.engine.language.layout import Layout
from sector.engine.language.operands import Problems, batches, draw_problems
from sector.engine.language.rows import cat
from sector.engine.models.sector import SectorForCausalLM
from sector.engine.policy.improve import Improved, improve
from sector.engine.samplers import make_sampler
from sector.engine.samplers.protocol import Sampler, Sampling, Savings
from sector.engine.seeding import generator

_WARM_UP = 64


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to run the improved policy: an engine, and whether rows whose fate is decided are dropped."""

    name: str
    sampler: Sampler
    drop_decided: bool = True


@dataclass(frozen=True, slots=True)
class Workload:
    """`count` problems of `digits` digits, `batch` at a time; `batch` 0 means all at once."""

    digits: int
    count: int
    batch: int

    def problems(self, seed: int, hard_share: float) -> Problems:
        return draw_problems(self.digits, self.count, generator(seed, "bench", self.digits), hard_share)


@dataclass(frozen=True, slots=True)
class Cell:
    """What one contender did with one workload. seconds: of every repetition. peak_memory_bytes: of the worst."""

    contender: str
    workload: Workload
    seconds: list[float]
    tokens: int
    accepted: int
    peak_memory_bytes: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def as_json(self) -> dict[str, Any]:
        """Rates by the median, with those of the slowest and the fastest repetition."""
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
    """What all contenders are asked to do, alike."""

    settings: Filter
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
        on_progress: Callable[[int, int, str], None],
    ) -> Iterator[tuple[list[Cell], int]]:
        """For each workload its cells, and how many problems were not treated alike by all contenders."""
        done, total = 0, len(contenders) * len(workloads) * repeats
        for workload in workloads:
            problems = workload.problems(self.seed, self.hard_share)
            seconds: dict[str, list[float]] = {each.name: [] for each in contenders}
            peaks = dict.fromkeys(seconds, 0)
            results: dict[str, Improved] = {}
            for each in contenders:
                self._improve(each, problems[:_WARM_UP], workload.batch)
            for turn in range(repeats):
                # The order turns too, so that nobody always comes first.
                for each in contenders if turn % 2 == 0 else reversed(contenders):
                    on_progress(done, total, f"{each.name}, {workload.digits} digits")
                    reset_peak(device)
                    start = time.perf_counter()
                    results[each.name] = self._improve(each, problems, workload.batch)
                    seconds[each.name].append(time.perf_counter() - start)
                    peaks[each.name] = max(peaks[each.name], peak_bytes(device))
                    done += 1
            cells = [
                Cell(name, workload, seconds[name], result.tokens, int(result.accepted.sum()), peaks[name])
                for name, result in ((each.name, results[each.name]) for each in contenders)
            ]
            yield cells, _unlike(list(results.values()))

    def _improve(self, contender: Contender, problems: Problems, batch: int) -> Improved:
        parts, start = [], 0
        for part in batches(problems, batch or len(problems)):
            rows = torch.arange(start, start + len(part))
            sampling = Sampling(self.temperature, self.seed, rows, stage=0)
            parts.append(improve(contender.sampler, part, self.settings, self.layout, sampling, contender.drop_decided))
            start += len(part)
        return cat(parts)


def engines(names: Sequence[str], model: SectorForCausalLM, vllm: VllmConfig | None = None) -> list[Contender]:
    """Contenders by the names of engines; vllm: settings of that one."""
    return [Contender(name, make_sampler(name, model, vllm)) for name in names]


def variants(model: SectorForCausalLM) -> list[Contender]:
    """The native engine in other ways: on a CPU without each of its savings, on a GPU with each way to decode."""
    if model.device.type == "cuda":
        return _ways_to_decode(model)
    from sector.engine.samplers.native import NativeSampler

    full = Savings()
    named = {
        "no drafts": replace(full, drafts=False),
        "no shared prefix": replace(full, shared_prefix=False),
        "no shared beginning": replace(full, shared_beginning=False),
        "keep finished": replace(full, drop_finished=False),
        "not compiled": replace(full, compiled=False),
    }
    contenders = [Contender(name, NativeSampler(model, savings=savings)) for name, savings in named.items()]
    contenders.append(Contender("keep decided", NativeSampler(model), drop_decided=False))
    none = Savings(shared_prefix=False, shared_beginning=False, drafts=False, drop_finished=False, compiled=False)
    plain = NativeSampler(model, savings=none)
    return [*contenders, Contender("plain", plain, drop_decided=False)]


def _ways_to_decode(model: SectorForCausalLM) -> list[Contender]:
    """The megakernel, where it supports the sizes of the model, and kernels step by step."""
    from sector.engine.samplers.gpu import Decode, GpuSampler

    ways = [Contender("kernels", GpuSampler(model, Decode.KERNELS))]
    # It says what it cannot run by refusing it.
    with suppress(ValueError):
        ways.insert(0, Contender("megakernel", GpuSampler(model, Decode.MEGAKERNEL)))
    return ways


def summary(cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """By contender, over all of its workloads: all tokens and accepted examples by the sum of the medians."""
    by_name: dict[str, list[Cell]] = {}
    for cell in cells:
        by_name.setdefault(cell.contender, []).append(cell)
    return {
        name: {
            "tokens_per_s": sum(cell.tokens for cell in own) / sum(cell.median for cell in own),
            "accepted_per_s": sum(cell.accepted for cell in own) / sum(cell.median for cell in own),
            "peak_memory_bytes": max(cell.peak_memory_bytes for cell in own),
        }
        for name, own in by_name.items()
    }


def ratios(figures: dict[str, dict[str, float]], first: str) -> dict[str, dict[str, float]]:
    """`first/other` for every other contender."""
    rates = ("tokens_per_s", "accepted_per_s")
    return {
        f"{first}/{name}": {rate: figures[first][rate] / own[rate] if own[rate] else float("inf") for rate in rates}
        for name, own in figures.items()
        if name != first
    }


def _unlike(results: Sequence[Improved]) -> int:
    """Problems on which not all results have the same verdict, or not the same answer where they accept."""
    first = results[0]
    unlike = torch.zeros(len(first.problems), dtype=torch.bool)
    for other in results[1:]:
        unlike |= _differs(first, other)
    return int(unlike.sum())


def _differs(one: Improved, other: Improved) -> Tensor:
    """`[B]` bool."""
    answers = (one.ballot.answers != other.ballot.answers).any(dim=1) & one.accepted & other.accepted
    return answers | (one.verdict != other.verdict)
