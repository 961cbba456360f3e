"""Think through: solve problems by chains of thought to the end, in all the ways that checks know.

All checks guess most of an answer, so that what cannot be guessed is what they reject; and what is always rejected is
never learned. A chain to the end guesses nothing. In the shape descriptions R is the rows, W the digits of an answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sector.engine.language.layout import Batch, Layout, Simplifications
from sector.engine.policy.chain import STAGES_OF_A_CHAIN, to_the_end
from sector.engine.policy.checks import shifts_of
from sector.engine.samplers.protocol import Sampler, Sampling
from sector.engine.tasks.check import Check

# Generations of one problem take random streams of their own: two chains, one after another.
STAGES = 2 * STAGES_OF_A_CHAIN
# Of the counter of a row; what lies above tells apart chains that share a batch.
_BITS_OF_A_ROW = 40


@dataclass(frozen=True, slots=True)
class ThoughtThrough:
    """Problems on which chains of thought to the end agree.

    rows: `[R]` which of those that were asked.
    answers: `[R, W]` to them.
    said: by check, `[R, W]` the answers to the problems that it poses.
    tokens: of all chains, also those that disagree.
    """

    rows: Tensor
    answers: Tensor
    said: dict[str, Tensor]
    tokens: int | Tensor


def think_through(
    sampler: Sampler,
    problems: Batch,
    draft: Tensor,
    first: Simplifications,
    checks: Sequence[Check],
    layout: Layout,
    sampling: Sampling,
) -> ThoughtThrough:
    """Chains of thought to the end: of the problems, and of those that the checks pose.

    Both orders of a sum are not enough. A column of two digits alike is the same column in `b+a`, so that one which the
    slow policy adds up wrongly, say 0+0 with a carry, goes wrong in both. A complement has no column of its problem.

    The chains are few and have a pass a column, so they go together, as one batch; but for checks that must know the
    answer before they pose a problem.

    draft: `[B, W]` answers that the chains are likely to come to. first: the simplifications that are distilled, with
    which a chain must begin. sampling: its stage, and `STAGES` - 1 behind it, are taken.
    """
    together = [check for check in checks if not check.needs_answers]
    chains = [(problems, draft, torch.zeros_like(sampling.rows))]
    chains += [(*_pose(check, problems, draft), shifts_of(check, sampling.rows, layout)) for check in together]
    batches, drafts, shifts = zip(*chains, strict=True)
    ran = to_the_end(
        sampler,
        type(problems).cat(batches),
        layout.shifted(torch.cat(shifts)),
        _side_by_side(sampling, len(chains)),
        torch.cat(drafts),
    )
    answers, *others = ran.guesses[0].split(len(problems))
    agree, *parsed = ran.valid[0].split(len(problems))
    agree = agree & _begins_with(first, ran.steps[0], layout)
    said, tokens = {}, ran.tokens
    for check, theirs, well in zip(together, others, parsed, strict=True):
        agree = agree & well & (theirs == _pose(check, problems, answers)[1]).all(dim=1)
        said[check.name] = theirs
    for check in checks:
        if check.needs_answers and agree.any():
            rows = agree.nonzero().squeeze(1)
            asked, expected = _pose(check, problems[rows], answers[rows])
            shifted = layout.shifted(shifts_of(check, sampling.rows[rows], layout))
            last = to_the_end(
                sampler, asked, shifted, replace(sampling[rows], stage=sampling.stage + STAGES // 2), expected
            )
            agree = agree.index_put((rows,), last.valid[0] & (last.guesses[0] == expected).all(dim=1))
            said[check.name] = torch.zeros_like(answers).index_put((rows,), last.guesses[0])
            tokens = tokens + last.tokens
    rows = agree.nonzero().squeeze(1)
    return ThoughtThrough(rows, answers[rows], {name: theirs[rows] for name, theirs in said.items()}, tokens)


def _pose(check: Check, problems: Batch, answers: Tensor) -> tuple[Any, Tensor]:
    posed = check.pose(problems, answers)
    assert posed is not None, f"{check.name} poses other problems"
    return posed


def _begins_with(first: Simplifications, steps: Simplifications, layout: Layout) -> Tensor:
    """`[B]`: is the first of more rows of steps the same?"""
    rows = slice(len(first.digit))
    kept = layout.simplification_ids(first.rest, first.digit)
    return (layout.simplification_ids(steps.rest[rows], steps.digit[rows]) == kept).all(dim=1)


def _side_by_side(sampling: Sampling, count: int) -> Sampling:
    """The random streams of so many chains of each row in one batch, a chain after another."""
    chains = torch.arange(count, device=sampling.rows.device) << _BITS_OF_A_ROW
    return replace(sampling, rows=(chains.unsqueeze(1) + sampling.rows).flatten())
