"""Generate: draw problems, ask the improved policy, keep what it agrees with itself on."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from sector.engine.config import FilterConfig
from sector.engine.improve import FILTERS, Filter, Improved, SecondLook, Vote, improve
from sector.engine.policy import DigitOrder
from sector.engine.problem import draw_problems
from sector.engine.ranges import named
from sector.engine.samplers.protocol import Sampler, Sampling
from sector.engine.seeding import generator, stream_seed

# Candidates are drawn and solved this many at a time; a candidate's problem depends on its own block alone.
BLOCK = 250


def generate(
    sampler: Sampler,
    digits: int,
    count: int,
    settings: FilterConfig,
    order: DigitOrder,
    seed: int,
    hard_share: float,
) -> Iterator[tuple[Tensor, Improved]]:
    """Yield (candidate indices `[B]`, improved batch) until `count` candidates of `digits` digits have been tried."""
    for start in block_starts(count):
        yield generate_block(sampler, start, digits, count, settings, order, seed, hard_share)


def block_starts(count: int) -> range:
    """First candidates of the blocks that `count` candidates make."""
    return range(0, count, BLOCK)


def generate_block(
    sampler: Sampler,
    start: int,
    digits: int,
    count: int,
    settings: FilterConfig,
    order: DigitOrder,
    seed: int,
    hard_share: float,
) -> tuple[Tensor, Improved]:
    """The block that starts at candidate `start`, as `generate` yields it, whoever solved the others."""
    rows = torch.arange(start, min(start + BLOCK, count))
    with named("draw"):
        draws = generator(seed, "problems", digits, start)
        problems = draw_problems(digits, BLOCK, draws, hard_share)[: len(rows)]
    sampling = Sampling(settings.temperature, stream_seed(seed, "sampling", digits), rows, stage=0)
    return rows, improve(sampler, problems, filter_of(settings), settings.k, order, sampling)


def filter_of(settings: FilterConfig) -> Filter:
    """The filter that the settings name."""
    return Filter(
        Vote(settings.vote), SecondLook(settings.second_look), settings.direct, settings.complement, settings.think
    )


def filter_settings(name: str) -> dict[str, Any]:
    """The settings that make up a filter of `improve.FILTERS`, as `FilterConfig` takes them."""
    looks = FILTERS[name]
    return {key: getattr(value, "value", value) for key, value in asdict(looks).items()}
