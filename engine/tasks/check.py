"""Checks: relations by which a model tests its own answers (SECToR section 3.2).

A check poses other problems whose answers follow from the voted ones, and names the policy that solves them. It knows
no truth. In the shape descriptions B is the batch and W the digits of an answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Generic

import torch
from torch import Tensor

from sector.engine.language.layout import B
from sector.engine.language.operands import digit_tensor

# Problems and their voted answers `[B, W]` -> problems to solve, and the answers `[B, W]` that they must have.
# None if there is no problem to pose. The same problems are posed if they are to be solved in another way.
Pose = Callable[[B, Tensor], tuple[B, Tensor] | None]
# Answers to the posed problems and the answers that they must have, `[R, W]` each -> which agree, `[R]` bool.
Compare = Callable[[Tensor, Tensor], Tensor]


def equal(answers: Tensor, expected: Tensor) -> Tensor:
    """Return which answers `[R, W]` equal the expected ones in all digits, `[R]` bool."""
    return (answers == expected).all(dim=1)


def expected_digits(answers: Sequence[str | None], width: int) -> Tensor:
    """Return answers as `[B, W]` digits; None is an answer that no problem has: -1, which no model writes."""
    known = digit_tensor([answer or "" for answer in answers], width)
    is_none = torch.tensor([answer is None for answer in answers], dtype=torch.bool)
    return torch.where(is_none.unsqueeze(1), -1, known)


class Solve(Enum):
    """Policy that solves the posed problems."""

    AT_ONCE = auto()
    """The fast policy."""
    BY_VOTE = auto()
    """Simplify-then-guess and a vote, as for the problem itself."""
    TO_THE_END = auto()
    """A chain of thought down to one digit, without guesses."""


@dataclass(frozen=True, slots=True)
class Check(Generic[B]):
    """A relation that answers must satisfy, and the policy that tests it.

    name: name in the setting `filter.checks`; a candidate that fails is filed as `not_<name>`.
    label: noun for display, such as `swapped operands`.
    pose: function that returns the problems to solve and the answers that they must have.
    solve: policy that solves them.
    needs_answers: whether the posed problems depend on the answers, and not only on the problems.
    shifted: whether they are laid out at other places, with a random shift a row.
    compare: function that returns which answers agree with the expected ones; by default those that are equal.
    """

    name: str
    label: str
    pose: Pose[B]
    solve: Solve
    needs_answers: bool = False
    shifted: bool = False
    compare: Compare = equal

    @property
    def reason(self) -> str:
        """Verdict on a candidate that fails."""
        return f"not_{self.name}"
