"""Generation: draw problems, and solve them by the improved policy, block by block."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sector.engine.config import Filter
from sector.engine.language.layout import Batch, Layout
from sector.engine.policy.improve import STAGES, Improved, answer_fast, improve
from sector.engine.samplers.protocol import Sampler, Sampling
from sector.engine.seeding import generator, stream_seed
from sector.engine.spans import span
from sector.engine.tasks import task_of
from sector.engine.tasks.task import Task

# Candidates drawn and solved at a time. A candidate's problem depends on its block alone.
BLOCK = 250


@dataclass(frozen=True, slots=True)
class Assignment:
    """The generation work of one round.

    task: the task of the problems.
    layout: the token layout that the weights were trained on.
    digits: digits per operand.
    count: number of candidates.
    settings: the vote and the checks.
    seed: seed of the problems and of sampling.
    hard_share: share of problems harder than uniform digits.
    pool: problems drawn per candidate. Problems that the model doubts become candidates first.
    """

    task: Task
    layout: Layout
    digits: int
    count: int
    settings: Filter
    seed: int
    hard_share: float
    pool: int = 1

    @property
    def starts(self) -> range:
        """Indices of the first candidate of each block."""
        return range(0, self.count, BLOCK)


def generate(sampler: Sampler, assignment: Assignment) -> Iterator[tuple[Tensor, Improved]]:
    """Yield (candidate indices `[B]`, improved batch) until all candidates have been tried."""
    for start in assignment.starts:
        yield generate_block(sampler, start, assignment)


def generate_block(sampler: Sampler, start: int, assignment: Assignment) -> tuple[Tensor, Improved]:
    """Return the block that starts at candidate `start`, as `generate` yields it; no other block is needed."""
    digits, seed, settings = assignment.digits, assignment.seed, assignment.settings
    rows = torch.arange(start, min(start + BLOCK, assignment.count))
    with span("draw"):
        draws = generator(seed, "problems", digits, start)
        problems = assignment.task.draw(digits, BLOCK * assignment.pool, draws, assignment.hard_share)
    sampling = Sampling(settings.temperature, stream_seed(seed, "sampling", digits), rows, stage=0)
    pool_tokens = 0
    if assignment.pool > 1:
        counters = torch.arange(len(problems)) + start * assignment.pool
        with span("doubt"):
            doubted, pool_tokens = _doubts(
                sampler, problems, assignment.layout, replace(sampling, rows=counters, stage=STAGES)
            )
        problems = problems[_doubted_first(doubted)]
    improved = improve(sampler, problems[: len(rows)], settings, assignment.layout, sampling)
    return rows, replace(improved, tokens=improved.tokens + pool_tokens)


def _doubts(sampler: Sampler, problems: Batch, layout: Layout, sampling: Sampling) -> tuple[Tensor, int]:
    """Return which problems the model doubts (`[B]` bool), and the count of tokens.

    A problem is doubted if the fast answer to it contradicts the fast answer to the problem that the task's first check
    poses.
    """
    answers, parsed, tokens = answer_fast(sampler, problems, layout, sampling)
    posed = task_of(problems).checks[0].pose(problems, answers)
    assert posed is not None, "a task's first check poses a problem of every problem"
    posed_problems, expected = posed
    posed_answers, posed_parsed, posed_tokens = answer_fast(
        sampler, posed_problems, layout, replace(sampling, stage=sampling.stage + 1)
    )
    agrees = parsed & posed_parsed & (posed_answers == expected).all(dim=1)
    return ~agrees, tokens + posed_tokens


def _doubted_first(doubted: Tensor) -> Tensor:
    """Return the indices `[BLOCK]` of the candidates in a pool, from its doubts `[B]`.

    Up to half of the block are doubted problems, the rest are others. If the others are too few, more doubted problems
    fill the block. The problems keep their order, so that the first part of a block is like the whole.
    """
    doubts, others = doubted.nonzero().squeeze(1), (~doubted).nonzero().squeeze(1)
    first = doubts[: max(BLOCK // 2, BLOCK - len(others))]
    return torch.cat([first, others[: BLOCK - len(first)]]).sort().values
