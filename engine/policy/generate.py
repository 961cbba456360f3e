"""Generation: draw problems by blocks, and solve them by the improved policy, one or several blocks together.

On a GPU a call costs the host milliseconds for any count of rows. Therefore many blocks are solved together there.
Draws and random streams depend on the block alone, so the examples are the same for any number of blocks together.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sector.engine.config import Filter
from sector.engine.language.layout import Batch, Layout
from sector.engine.policy.chance import draw_accepted
from sector.engine.policy.improve import STAGES, Improved, answer_fast, improve
from sector.engine.samplers.protocol import Room, Sampler, Sampling
from sector.engine.seeding import generator, stream_seed
from sector.engine.spans import span
from sector.engine.tasks import task_of
from sector.engine.tasks.task import Task

# Candidates drawn at a time. A candidate's problem depends on its block alone.
BLOCK = 250
# Blocks that are solved together at most, unless the settings ask for more. 16,000 rows keep a GPU busy, and more would
# only delay the report of progress.
_MOST_BLOCKS = 64


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
    blocks: blocks that are solved together; 0 chooses by the room of the engine. Examples do not depend on it.
    """

    task: Task
    layout: Layout
    digits: int
    count: int
    settings: Filter
    seed: int
    hard_share: float
    pool: int = 1
    blocks: int = 0

    def starts(self, blocks: int = 1, first: int = 0) -> range:
        """Return the first candidate of each group of `blocks` blocks; the first group begins at candidate `first`."""
        return range(first, self.count, BLOCK * blocks)

    def until(self, end: int) -> "Assignment":
        """Return the same work up to a candidate; the candidates before it stay the same."""
        return replace(self, count=min(end, self.count))


def generate(sampler: Sampler, assignment: Assignment, first: int = 0) -> Iterator[tuple[Tensor, Improved]]:
    """Yield (candidate indices `[B]`, improved batch) until all candidates have been tried.

    first: first candidate of the block to begin with.
    """
    blocks = assignment.blocks or blocks_with_room(sampler, assignment)
    for start in assignment.starts(blocks, first):
        yield generate_blocks(sampler, start, assignment, blocks)


def generate_blocks(sampler: Sampler, start: int, assignment: Assignment, blocks: int = 1) -> tuple[Tensor, Improved]:
    """Return the blocks from candidate `start` on, as `generate` yields them; no other block is needed.

    blocks: how many blocks to solve together; fewer if the candidates end.
    """
    settings, size = assignment.settings, BLOCK * assignment.pool
    rows = torch.arange(start, min(start + BLOCK * blocks, assignment.count))
    with span("draw"):
        drawn = [_draw(assignment, first) for first in range(start, start + len(rows), BLOCK)]
        problems = type(drawn[0]).cat(drawn)
    sampling = Sampling(
        settings.temperature, stream_seed(assignment.seed, "sampling", assignment.digits), rows, stage=0
    )
    pool_tokens = 0
    if assignment.pool > 1:
        counters = torch.arange(len(problems)) + start * assignment.pool
        with span("doubt"):
            doubted, pool_tokens = _doubts(
                sampler, problems, assignment.layout, replace(sampling, rows=counters, stage=STAGES)
            )
        chosen = [_doubted_first(pool) + block * size for block, pool in enumerate(doubted.split(size))]
        problems = problems[torch.cat(chosen)]
    improved = improve(sampler, problems[: len(rows)], settings, assignment.layout, sampling)
    improved = replace(improved, tokens=improved.tokens + pool_tokens)
    return rows, draw_accepted(improved, settings, sampling, BLOCK)


def _draw(assignment: Assignment, start: int) -> Batch:
    """Draw the pool of the block that starts at candidate `start`."""
    draws = generator(assignment.seed, "problems", assignment.digits, start)
    return assignment.task.draw(assignment.digits, BLOCK * assignment.pool, draws, assignment.hard_share)


def blocks_with_room(sampler: Sampler, assignment: Assignment) -> int:
    """Return the blocks that an engine solves together: one on a CPU, and on a GPU those that it has room for."""
    if not isinstance(sampler, Room):
        return 1
    layout, problem = assignment.layout, _draw(assignment, 0)[:1]
    lengths = layout.simplification_length(problem.size), layout.answer_length(problem.size)
    rows = sampler.room(layout.prefix_ids(problem).shape[1], lengths)
    return max(1, min(_MOST_BLOCKS, rows // BLOCK))


def _doubts(sampler: Sampler, problems: Batch, layout: Layout, sampling: Sampling) -> tuple[Tensor, int]:
    """Return which problems the model doubts (`[B]` bool), and the count of tokens.

    A problem is doubted if the fast answer to it contradicts the fast answer to the problem that the task's first check
    poses. None is doubted if the fast policy is not taught to answer problems of this length.
    """
    task = task_of(problems)
    if not task.answers_at_once(problems):
        return torch.zeros(len(problems), dtype=torch.bool), 0
    answers, parsed, tokens = answer_fast(sampler, problems, layout, sampling)
    check = task.checks[0]
    posed = check.pose(problems, answers)
    assert posed is not None, "a task's first check poses a problem of every problem"
    posed_problems, expected = posed
    posed_answers, posed_parsed, posed_tokens = answer_fast(
        sampler, posed_problems, layout, replace(sampling, stage=sampling.stage + 1)
    )
    agrees = parsed & posed_parsed & check.compare(posed_answers, expected)
    return ~agrees, tokens + posed_tokens


def _doubted_first(doubted: Tensor) -> Tensor:
    """Return the indices `[BLOCK]` of the candidates in a pool, from its doubts `[B]`.

    Up to half of the block are doubted problems, the rest are others. If the others are too few, more doubted problems
    fill the block. The problems keep their order, so that the first part of a block is like the whole.
    """
    doubts, others = doubted.nonzero().squeeze(1), (~doubted).nonzero().squeeze(1)
    first = doubts[: max(BLOCK // 2, BLOCK - len(others))]
    return torch.cat([first, others[: BLOCK - len(first)]]).sort().values
