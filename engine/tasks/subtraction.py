"""Subtraction: `a-b` and `a-b-1`, the larger number first.

A simplification subtracts the last column. The check subtracts the answer from `a`, which must give `b` back. Problems
are laid out as sums are, with the carry-in mark as a borrow. An answer has N+1 digits, the first of them 0.

In the shape descriptions B is the batch and N the digits per operand.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from sector.engine.errors import InputError
from sector.engine.language.operands import Problems, draw_problems
from sector.engine.seeding import generator
from sector.engine.tasks.addition import ColumnTask, ColumnTruth
from sector.engine.tasks.check import Check, Solve
from sector.engine.tasks.task import Family


class Differences(Problems):
    """Problems `a-b` and `a-b-1`, where `carry` is the borrow-in. No answer of drawn or typed problems is negative."""

    task: ClassVar[str] = "subtraction"
    sign: ClassVar[str] = "-"
    example: ClassVar[str] = "456-123"


class Remainders(ColumnTruth):
    """Truth of subtraction: school subtraction, one column a step. Carries are borrows."""

    sign: ClassVar[int] = -1

    def carries(self, problems: Problems) -> Tensor:
        """Return the borrow from each column of the answer, `[B, N+1]`; the last column pays the borrow-in."""
        borrows = [problems.carry]
        for column in reversed(range(problems.digits)):
            borrows.append((problems.a[:, column] < problems.b[:, column] + borrows[-1]).long())
        return torch.stack(borrows[::-1], dim=1)


def _inverse(problems: Differences, answers: Tensor) -> tuple[Differences, Tensor]:
    """Pose `a-c` for each answer c of `a-b`; its answer must be b.

    An answer with more digits than a is wrong. Its check expects digits of -1, which no answer has, and fails.
    """
    b = torch.cat([torch.zeros_like(problems.carry).unsqueeze(1), problems.b], dim=1)
    expected = torch.where(answers[:, :1] == 0, b, -1)
    return Differences(problems.a, answers[:, 1:], problems.carry), expected


class Subtraction(ColumnTask):
    """The task `a-b` and `a-b-1`, with N digits per operand."""

    name = "subtraction"
    columns = Differences
    example = "654321-123456"
    checks = (Check("commutative", "inverse subtraction", _inverse, Solve.BY_VOTE, needs_answers=True),)
    truth = Remainders()
    # Leaps have been measured for addition only.
    settings: ClassVar[Mapping[str, object]] = {"schedule": "paper"}

    @property
    def text_marks(self) -> tuple[str, ...]:
        """Return the sign of differences."""
        return (Differences.sign,)

    def draw(self, digits: int, count: int, draws: torch.Generator, hard_share: float = 0.0) -> Differences:
        """Draw operands as for sums, and put the larger one first.

        In carry chains, columns that would add up to nine become equal instead, so that borrows run through them.
        """
        sums = draw_problems(digits, count, draws, hard_share)
        nines = sums.a + sums.b == 9
        b = torch.where(_is_chain(sums).unsqueeze(1) & nines, sums.a, sums.b)
        return _ordered(sums.a, b, sums.carry)

    def digits_of(self, text: str) -> int:
        """Return the digits of the larger number. Raise InputError if it is the second one, which `parse` accepts."""
        first, second, borrow = Differences.operands_of(text)
        if int(first) < int(second) + borrow:
            raise InputError(f"{text.strip()!r} has a negative answer; write the larger number first")
        return len(first)

    def swapped(self, problems: Problems) -> Problems:
        """Return the problems themselves: a difference can be posed in one way only."""
        return problems

    def families(self) -> dict[str, Family]:
        """Return borrows through all digits."""
        return {"borrow chains": borrow_chains}


def borrow_chains(digits: int, samples: int, seed: int) -> Differences:
    """Draw operands that differ in the first column only, with a borrow-in, which runs through all columns."""
    draws = generator(seed, "eval-borrows", digits)
    a = torch.randint(0, 10, (samples, digits), generator=draws)
    a[:, 0] = torch.randint(1, 10, (samples,), generator=draws)
    b = a.clone()
    b[:, 0] -= 1
    return Differences(a, b, torch.ones(samples, dtype=torch.int64))


def _is_chain(sums: Problems) -> Tensor:
    """Return which rows `[B]` have more columns that add up to nine than chance makes."""
    return (sums.a + sums.b == 9).double().mean(dim=1) > 0.3


def _ordered(a: Tensor, b: Tensor, borrow: Tensor) -> Differences:
    """Return differences with the larger number first, and without a borrow-in if both numbers are equal."""
    differ = a != b
    first = differ.long().argmax(dim=1, keepdim=True)
    less = (a.gather(1, first) < b.gather(1, first)) & differ.any(dim=1, keepdim=True)
    return Differences(torch.where(less, b, a), torch.where(less, a, b), borrow * differ.any(dim=1))


TASK = Subtraction()
