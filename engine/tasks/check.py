"""A check: another way to the answer of a problem, which must not contradict it (SECToR section 3.2).

A check poses other problems whose answers follow from the voted ones, and says how the model is to solve them. Nothing
true is known here. B is the batch, W the digits of an answer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from torch import Tensor

# Problems and their voted answers `[B, W]` -> problems to be solved, and the answers `[B, W]` that they must have.
# None where there are none to pose; the same problems where their own answers are to be found in another way.
Pose = Callable[[Any, Tensor], tuple[Any, Tensor] | None]


class Solve(Enum):
    """How the posed problems are solved."""

    AT_ONCE = auto()
    """By the fast policy."""
    BY_VOTE = auto()
    """By simplify-then-guess and a vote, as the problem itself."""
    TO_THE_END = auto()
    """By a chain of thought down to one digit, which guesses nothing."""


@dataclass(frozen=True, slots=True)
class Check:
    """A relation that answers must satisfy, and how it is tried.

    name: as in the setting `filter.checks`; a candidate that fails it is filed as `not_<name>`.
    label: a noun for people, as `swapped operands`.
    pose: the problems to solve, and the answers that they must have.
    solve: how they are solved.
    needs_answers: do the posed problems depend on the answers, and not only on the problems?
    shifted: are they laid out at other places, a random shift a row?
    """

    name: str
    label: str
    pose: Pose
    solve: Solve
    needs_answers: bool = False
    shifted: bool = False

    @property
    def reason(self) -> str:
        """The verdict on a candidate that fails."""
        return f"not_{self.name}"
