"""Generate: draw problems, ask the improved policy, keep what it agrees with itself on."""

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

# Candidates are drawn and solved this many at a time; a candidate's problem depends on its own block alone.
BLOCK = 250


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a generator is to do, whoever it is.

    task, layout: what is computed, and how the weights have learned to read and write it.
    digits, count: of the problems. settings: what must agree. hard_share: of problems harder than uniform digits.
    pool: problems drawn for each candidate; those that the model doubts become candidates first.
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
    with span("draw"):
        draws = generator(seed, "problems", digits, start)
        problems = assignment.task.draw(digits, BLOCK * assignment.pool, draws, assignment.hard_share)
    sampling = Sampling(settings.temperature, stream_seed(seed, "sampling", digits), rows, stage=0)
    spent = 0
    if assignment.pool > 1:
        counters = torch.arange(len(problems)) + start * assignment.pool
        with span("doubt"):
            doubted, spent = _doubts(
                sampler, problems, assignment.layout, replace(sampling, rows=counters, stage=STAGES)
            )
        problems = problems[_doubted_first(doubted)]
    solved = improve(sampler, problems[: len(rows)], settings, assignment.layout, sampling)
    return rows, replace(solved, tokens=solved.tokens + spent)


def _doubts(sampler: Sampler, problems: Batch, layout: Layout, sampling: Sampling) -> tuple[Tensor, int]:
    """`[B]` bool: does the fast policy contradict itself on another problem? And the tokens that it took.

    That problem is posed by the first check of the task.
    """
    answers, parsed, spent = answer_fast(sampler, problems, layout, sampling)
    posed = task_of(problems).checks[0].pose(problems, answers)
    assert posed is not None, "a task's first check poses a problem of every problem"
    other, expected = posed
    again, well, more = answer_fast(sampler, other, layout, replace(sampling, stage=sampling.stage + 1))
    return ~(parsed & well & (again == expected).all(dim=1)), spent + more


def _doubted_first(doubted: Tensor) -> Tensor:
    """`[B]` doubts of a pool -> indices `[BLOCK]`: half a block of doubted problems, if there are so many, then others.

    They keep their order, so that any first part of a block is like the whole.
    """
    doubts, others = doubted.nonzero().squeeze(1), (~doubted).nonzero().squeeze(1)
    few = doubts[: max(BLOCK // 2, BLOCK - len(others))]
    return torch.cat([few, others[: BLOCK - len(few)]]).sort().values
