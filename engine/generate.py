"""Generate: draw problems, ask the improved policy, keep what it agrees with itself on."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sector.engine.config import FilterConfig
from sector.engine.improve import FILTERS, Filter, Improved, SecondLook, Through, Vote, improve
from sector.engine.ranges import named
from sector.engine.samplers.protocol import Sampler, Sampling
from sector.engine.seeding import generator, stream_seed
from sector.engine.task import Layout, Task

# Candidates are drawn and solved this many at a time; a candidate's problem depends on its own block alone.
BLOCK = 250


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a generator is to do, whoever it is.

    task, layout: what is computed, and how the weights have learned to read and write it.
    digits, count: of the problems. settings: what must agree. hard_share: of problems harder than uniform digits.
    """

    task: Task
    layout: Layout
    digits: int
    count: int
    settings: FilterConfig
    seed: int
    hard_share: float

    @property
    def starts(self) -> range:
        """First candidates of the blocks."""
        return range(0, self.count, BLOCK)


def generate(sampler: Sampler, assignment: Assignment) -> Iterator[tuple[Tensor, Improved]]:
    """Yield (candidate indices `[B]`, improved batch) until all candidates have been tried."""
    for start in assignment.starts:
        yield generate_block(sampler, start, assignment)


def generate_block(sampler: Sampler, start: int, assignment: Assignment) -> tuple[Tensor, Improved]:
    """The block that starts at candidate `start`, as `generate` yields it, whoever solved the others."""
    digits, seed, settings = assignment.digits, assignment.seed, assignment.settings
    rows = torch.arange(start, min(start + BLOCK, assignment.count))
    with named("draw"):
        draws = generator(seed, "problems", digits, start)
        problems = assignment.task.draw(digits, BLOCK, draws, assignment.hard_share)[: len(rows)]
    sampling = Sampling(settings.temperature, stream_seed(seed, "sampling", digits), rows, stage=0)
    return rows, improve(sampler, problems, filter_of(settings), settings.k, assignment.layout, sampling)


def filter_of(settings: FilterConfig) -> Filter:
    """The filter that the settings name."""
    return Filter(
        Vote(settings.vote),
        SecondLook(settings.second_look),
        settings.direct,
        settings.complement,
        settings.think,
        Through(settings.through),
    )


def filter_settings(name: str) -> dict[str, Any]:
    """The settings that make up a filter of `improve.FILTERS`, as `FilterConfig` takes them."""
    looks = FILTERS[name]
    return {key: getattr(value, "value", value) for key, value in asdict(looks).items()}
