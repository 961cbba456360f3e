"""Thinking through: solve a problem, and the problems that the checks pose of it, by chains of thought to the end.

All checks guess most of an answer, so they reject problems whose answers cannot be guessed; and problems that are
always rejected are never learned. A chain to the end guesses nothing. In the shape descriptions B is the batch, R the
rows on which all chains agree, W the digits of an answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sector.engine.language.layout import B, Layout, Simplifications
from sector.engine.policy.chain import STAGES_OF_A_CHAIN, to_the_end
from sector.engine.policy.checks import shifts_of
from sector.engine.samplers.protocol import Sampler, Sampling
from sector.engine.tasks.check import Check

# Random streams of one problem: two chains, one after the other.
STAGES = 2 * STAGES_OF_A_CHAIN
# Bits of a row counter; the bits above tell apart the chains of one row in a batch.
_BITS_OF_A_ROW = 40


@dataclass(frozen=True, slots=True)
class ThoughtThrough:
    """Problems on which all chains of thought to the end agree.

    rows: `[R]` indices of these problems in the batch.
    answers: `[R, W]` answers to them.
    said: by name of the check, `[R, W]` answers to the problems that it poses.
    tokens: count of tokens of all chains, including those that disagree.
    """

    rows: Tensor
    answers: Tensor
    said: dict[str, Tensor]
    tokens: int | Tensor


def think_through(
    sampler: Sampler,
    problems: B,
    draft: Tensor,
    first: Simplifications[B],
    checks: Sequence[Check[B]],
    layout: Layout[B],
    sampling: Sampling,
) -> ThoughtThrough:
    """Solve the problems, and the problems that the checks pose, by chains of thought to the end.

    The two operand orders of a sum are not enough. A column of two equal digits is the same column in `b+a`, so if the
    slow policy adds it up wrongly (as 0+0 with a carry), it does so in both orders. A complement has no column in
    common with its problem.

    The chains are few and take a pass per column, so they run together as one batch. Checks that need the answer
    before they can pose a problem run afterwards.

    draft: `[B, W]` likely answers.
    first: the simplifications that will be distilled; a chain must begin with them.
    sampling: the stages from `sampling.stage` to `sampling.stage + STAGES - 1` are used.
    """
    together = [check for check in checks if not check.needs_answers]
    chains = [(problems, draft, torch.zeros_like(sampling.rows))]
    chains += [(*_pose(check, problems, draft), shifts_of(check, sampling.rows, layout)) for check in together]
    batches, drafts, shifts = zip(*chains, strict=True)
    chain = to_the_end(
        sampler,
        type(problems).cat(batches),
        layout.shifted(torch.cat(shifts)),
        _side_by_side(sampling, len(chains)),
        torch.cat(drafts),
    )
    answers, *posed_answers = chain.guesses[0].split(len(problems))
    agree, *posed_valid = chain.valid[0].split(len(problems))
    agree = agree & _begins_with(first, chain.steps[0], layout)
    answers_by_check, tokens = {}, chain.tokens
    for check, check_answers, valid in zip(together, posed_answers, posed_valid, strict=True):
        agree = agree & valid & check.compare(check_answers, _pose(check, problems, answers)[1])
        answers_by_check[check.name] = check_answers
    later = replace(sampling, stage=sampling.stage + STAGES // 2)
    for check in checks:
        if check.needs_answers and agree.any():
            rows = agree.nonzero().squeeze(1)
            posed, expected = _pose(check, problems[rows], answers[rows])
            shifted = layout.shifted(shifts_of(check, sampling.rows[rows], layout))
            chain = to_the_end(sampler, posed, shifted, later[rows], expected)
            agree = agree.index_put((rows,), chain.valid[0] & check.compare(chain.guesses[0], expected))
            answers_by_check[check.name] = torch.zeros_like(answers).index_put((rows,), chain.guesses[0])
            tokens = tokens + chain.tokens
    rows = agree.nonzero().squeeze(1)
    said = {name: check_answers[rows] for name, check_answers in answers_by_check.items()}
    return ThoughtThrough(rows, answers[rows], said, tokens)


def _pose(check: Check[B], problems: B, answers: Tensor) -> tuple[B, Tensor]:
    """Return the problems that a check poses and the answers `[B, W]` that they must have."""
    posed = check.pose(problems, answers)
    assert posed is not None, f"{check.name} poses other problems"
    return posed


def _begins_with(first: Simplifications[B], steps: Simplifications[B], layout: Layout[B]) -> Tensor:
    """Return which chains begin with the simplification of their row in `first`, `[B]` bool.

    steps: first simplifications of all chains; those of the problems themselves come before the others.
    """
    rows = slice(len(first.digit))
    expected = layout.simplification_ids(first.rest, first.digit)
    return (layout.simplification_ids(steps.rest[rows], steps.digit[rows]) == expected).all(dim=1)


def _side_by_side(sampling: Sampling, count: int) -> Sampling:
    """Return the random streams of a batch that holds `count` chains of each row, one chain after another."""
    chains = torch.arange(count, device=sampling.rows.device) << _BITS_OF_A_ROW
    return replace(sampling, rows=(chains.unsqueeze(1) + sampling.rows).flatten())
