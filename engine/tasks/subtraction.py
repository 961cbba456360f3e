"""Subtraction: `a-b` and `a-b-1`, the larger number first.

A simplification subtracts the last column. The check subtracts the answer from `a`, which must give `b` back. Problems
are laid out as sums are, with the carry-in mark as a borrow. An answer has N+1 digits, the first of them 0.

In the shape descriptions B is the batch and N the digits per operand.
"""

import re
from typing import Any, ClassVar

import torch
from torch import Tensor

from sector.engine.errors import InputError
from sector.engine.language.layout import Layout, Simplifications
from sector.engine.language.operands import Problems, digit_tensor, draw_problems
from sector.engine.language.place_layout import DigitOrder, PlaceLayout
from sector.engine.seeding import generator
from sector.engine.tasks.addition import simplification_mistakes
from sector.engine.tasks.check import Check, Solve
from sector.engine.tasks.mistakes import Mistake, in_columns
from sector.engine.tasks.oracle import Truth
from sector.engine.tasks.task import Family, Task

_PATTERN = re.compile(r"\s*(\d+)\s*-\s*(\d+)\s*(-\s*[01]\s*)?=?\s*", re.ASCII)


class Differences(Problems):
    """Problems `a-b` and `a-b-1`, where `carry` is the borrow-in. No answer of drawn or typed problems is negative."""

    task: ClassVar[str] = "subtraction"
    sign: ClassVar[str] = "-"


class Remainders(Truth):
    """Truth of subtraction: school subtraction, one column a step."""

    def answers(self, problems: Differences) -> Tensor:
        """Return the differences, `[B, N+1]` digits, most significant first; the first is the borrow that is left."""
        borrows = self.borrows(problems)
        return torch.cat([borrows[:, :1], (problems.a - problems.b - borrows[:, 1:]) % 10], dim=1)

    def borrows(self, problems: Differences) -> Tensor:
        """Return the borrow from each column of the answer, `[B, N+1]`; the last column pays the borrow-in."""
        borrows = [problems.carry]
        for column in reversed(range(problems.digits)):
            borrows.append((problems.a[:, column] < problems.b[:, column] + borrows[-1]).long())
        return torch.stack(borrows[::-1], dim=1)

    def simplifications(self, problems: Differences) -> Simplifications:
        """Return the problems without their last columns, whose borrows become borrow-ins, and the last digits."""
        borrows, answers = self.borrows(problems), self.answers(problems)
        valid = torch.ones_like(problems.carry, dtype=torch.bool)
        if problems.digits == 1:
            return Simplifications(problems.without_digits(), answers[:, -1], valid)
        rest = Differences(problems.a[:, :-1], problems.b[:, :-1], borrows[:, -2])
        return Simplifications(rest, answers[:, -1], valid)

    def answer_mistakes(self, problems: Differences, answers: Tensor) -> list[Mistake]:
        """Return the first mistake of each answer `[B, N+1]`, from the last column on."""
        return in_columns(answers, self.answers(problems), self.borrows(problems), sign=-1)

    def simplification_mistakes(self, problems: Differences, outputs: Simplifications) -> list[Mistake]:
        """Return the first mistake of each simplification, in writing order."""
        return simplification_mistakes(outputs, self.simplifications(problems))


def _inverse(problems: Differences, answers: Tensor) -> tuple[Differences, Tensor]:
    """Pose `a-c` for each answer c of `a-b`; its answer must be b.

    An answer with more digits than a is wrong. Its check expects digits of -1, which no answer has, and fails.
    """
    b = torch.cat([torch.zeros_like(problems.carry).unsqueeze(1), problems.b], dim=1)
    expected = torch.where(answers[:, :1] == 0, b, -1)
    return Differences(problems.a, answers[:, 1:], problems.carry), expected


class Subtraction(Task):
    """The task `a-b` and `a-b-1`, with N digits per operand."""

    name = "subtraction"
    example = "654321-123456"
    checks = (Check("commutative", "inverse subtraction", _inverse, Solve.BY_VOTE, needs_answers=True),)
    truth = Remainders()
    # Leaps have been measured for addition only.
    settings: ClassVar[dict[str, Any]] = {"schedule": "paper"}

    def layout(self, order: str) -> PlaceLayout:
        """Return the place-coupled layout of sums, for differences."""
        return PlaceLayout(DigitOrder(order), problems=Differences)

    def draw(self, digits: int, count: int, draws: torch.Generator, hard_share: float = 0.0) -> Differences:
        """Draw operands as for sums, and put the larger one first.

        In carry chains, columns that would add up to nine become equal instead, so that borrows run through them.
        """
        sums = draw_problems(digits, count, draws, hard_share)
        nines = sums.a + sums.b == 9
        b = torch.where(_is_chain(sums).unsqueeze(1) & nines, sums.a, sums.b)
        return _ordered(sums.a, b, sums.carry)

    def parse(self, texts: list[str], digits: int | None = None) -> Differences:
        """Parse problems as typed; see `Task.parse`. The larger number need not come first here; see `digits_of`."""
        rows = [_operands(text) for text in texts]
        longest = max((len(operand) for first, second, _ in rows for operand in (first, second)), default=1)
        digits = longest if digits is None else digits
        if longest > digits:
            raise InputError(f"an operand has {longest} digits, more than {digits}")
        a = digit_tensor([first for first, _, _ in rows], digits)
        b = digit_tensor([second for _, second, _ in rows], digits)
        return Differences(a, b, torch.tensor([row[2] for row in rows], dtype=torch.int64))

    def digits_of(self, text: str) -> int:
        """Return the digits of the larger number. InputError if it is the second one."""
        first, second, borrow = _operands(text)
        if int(first) < int(second) + borrow:
            raise InputError(f"{text.strip()!r} has a negative answer; write the larger number first")
        return len(first)

    def swapped(self, problems: Differences) -> Differences:
        """Return the problems themselves: a difference can be posed in one way only."""
        return problems

    def draft(self, problems: Differences, answers: Tensor | None, layout: Layout) -> Tensor:
        """Return the copied digits, and the borrow and the last digit if earlier answers predict them."""
        a, b = problems.a[:, :-1], problems.b[:, :-1]
        if answers is None:
            return layout.simplification_ids(Differences(a, b, problems.carry), problems.carry)[:, :-3]
        digit = answers[:, problems.digits].clamp(min=0)
        borrow = ((a[:, -1] - b[:, -1] - answers[:, problems.digits - 1]) % 10).clamp(max=1)
        return layout.simplification_ids(Differences(a, b, borrow), digit)

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


def _operands(text: str) -> tuple[str, str, int]:
    """Return both operands of a typed problem, without leading zeros, and its borrow-in. InputError if it is none."""
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise InputError(f"{text.strip()!r} is not a problem; write two non-negative integers as 456-123 or 456-123-1")
    return match[1].lstrip("0") or "0", match[2].lstrip("0") or "0", int(match[3] is not None and "1" in match[3])


TASK = Subtraction()
