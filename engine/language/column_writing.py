"""Form of sums and differences as text with hints: before each digit stands a letter that marks its place.

    a3b2c1d0+a6b5c4d0+a0=      a9b7c5d0 and a newline             the fast answer of 123+456
    a3b2c1d0+a6b5c4d0+a0>      b2c1d0+b5c4d0+b0|a9 and a newline  the simplification: the rest, and the last digit

Digits of equal significance have equal letters, in both operands, the carry-in and the answer. So a model finds digits
by letters, and need not count (index hints: Zhou et al. 2024, arXiv 2402.09371). Letters begin anywhere in the alphabet
and go on at its beginning: variant v begins at letter v. Operands have a zero in front, so that each letter of the
answer stands in them; without it, a model wrote the last letter of a number by its count, and failed at one digit more
(log.md). All prompts of one length have as many tokens. Differences have `-` in the place of `+`.

`number_text.HintedNumberText` writes and reads the letters. In the shape descriptions B is the batch and N the digits
per operand.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from sector.engine.language.operands import Problems
from sector.engine.language.writing import Writing, Written


@dataclass(frozen=True, slots=True)
class ColumnWriting(Writing[Problems, int]):
    """Form of problems that are worked off column by column, and of their steps.

    problems: class of the problems: sums, or another batch of two operands and a carry.
    """

    problems: type[Problems]

    @property
    def problem(self) -> tuple[Written, ...]:
        """Numbers of a problem: both operands and the carry-in."""
        return Written(""), Written(self.problems.sign), Written(self.problems.sign)

    @property
    def step(self) -> tuple[Written, ...]:
        """Numbers of a step: the remaining problem, and the digit split off."""
        return *self.problem, Written("|")

    def problem_numbers(self, problems: Problems) -> tuple[Tensor, ...]:
        """Return the digits of 0a, 0b and the carry-in."""
        return F.pad(problems.a, (1, 0)), F.pad(problems.b, (1, 0)), problems.carry.unsqueeze(1)

    def step_numbers(self, rest: Problems, digit: Tensor) -> tuple[Tensor, ...]:
        """Return the digits of 0a', 0b' and the carry-in of the remaining problems, and the digits `[B]`."""
        return *self.problem_numbers(rest), digit.unsqueeze(1)

    def step_widths(self, digits: int) -> list[int]:
        """Return the digits of each number of a step, for problems of N = `digits`."""
        return [digits, digits, 1, 1]

    def answer_width(self, digits: int) -> int:
        """Return N+1."""
        return digits + 1

    def step_places(self, rest: Problems) -> tuple[int, ...]:
        """Return the place of the last digit of each number of a step: the digit split off was at place 0."""
        return 1, 1, 1, 0

    def read_problem(self, numbers: Sequence[Tensor]) -> Problems:
        """Return the problems with these numbers. A larger digit in the place of the carry-in counts as 1."""
        a, b, carry = numbers
        return self.problems(a[:, 1:], b[:, 1:], carry.squeeze(1).clamp(max=1))

    def read_step(self, numbers: Sequence[Tensor], digits: int) -> tuple[Problems, Tensor]:
        """Return remaining problems and digits `[B]` from the numbers of steps."""
        *rest, digit = numbers
        return self.read_problem(rest), digit.squeeze(1)
