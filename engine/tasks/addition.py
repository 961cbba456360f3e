"""Addition: `a+b` and `a+b+1`.

A simplification adds the last column. The checks solve the nines' complement and `b+a`. In the shape descriptions B is
the batch and N the digits per operand.
"""

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from sector.engine.language import operands
from sector.engine.language.alphabet import Alphabet
from sector.engine.language.column_writing import ColumnWriting
from sector.engine.language.examples import Examples
from sector.engine.language.layout import Layout, Simplifications
from sector.engine.language.number_text import HintedNumberText
from sector.engine.language.operands import Problems, draw_problems, run_of_columns
from sector.engine.language.place_ids import DigitOrder
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.language.text_layout import TextLayout
from sector.engine.seeding import generator
from sector.engine.tasks.check import Check, Solve
from sector.engine.tasks.mistakes import Mistake, by_index, in_columns, index_of
from sector.engine.tasks.oracle import Truth
from sector.engine.tasks.task import Family, Task


class ColumnTruth(Truth[Problems]):
    """Truth of a task that works column by column, from the last to the first, with carries between columns.

    sign: 1 if b is added to a, -1 if it is subtracted. Carries are borrows then.
    """

    sign: ClassVar[int] = 1

    @abstractmethod
    def carries(self, problems: Problems) -> Tensor:
        """Return the carry into each column of the answer, `[B, N+1]`; the last column receives the carry-in."""

    def answers(self, problems: Problems) -> Tensor:
        """Return the answers, `[B, N+1]` digits, most significant first; the first is the carry that is left."""
        return self._answers(problems, self.carries(problems))

    def _answers(self, problems: Problems, carries: Tensor) -> Tensor:
        """Return the answers, `[B, N+1]` digits, from the carries."""
        digits = (problems.a + self.sign * (problems.b + carries[:, 1:])) % 10
        return torch.cat([carries[:, :1], digits], dim=1)

    def simplifications(self, problems: Problems) -> Simplifications[Problems]:
        """Return the problems without their last columns, whose carries become carry-ins, and the last digits."""
        carries = self.carries(problems)
        answers = self._answers(problems, carries)
        valid = torch.ones_like(problems.carry, dtype=torch.bool)
        if problems.digits == 1:
            return Simplifications(problems.without_digits(), answers[:, -1], valid)
        rest = type(problems)(problems.a[:, :-1], problems.b[:, :-1], carries[:, -2])
        return Simplifications(rest, answers[:, -1], valid)

    def answer_mistakes(self, problems: Problems, answers: Tensor) -> list[Mistake]:
        """Return the first mistake of each answer `[B, N+1]`, from the last column on."""
        return in_columns(answers, self.answers(problems), self.carries(problems), self.sign)

    def simplification_mistakes(self, problems: Problems, outputs: Simplifications[Problems]) -> list[Mistake]:
        """Return the first mistake of each simplification, in writing order: copies, then carry, then digit."""
        truth = self.simplifications(problems)
        copied = (outputs.rest.a == truth.rest.a) & (outputs.rest.b == truth.rest.b)
        kinds = torch.full_like(outputs.digit, index_of(Mistake.RIGHT))
        kinds[outputs.digit != truth.digit] = index_of(Mistake.ADDED)
        kinds[outputs.rest.carry < truth.rest.carry] = index_of(Mistake.CARRY_MISSED)
        kinds[outputs.rest.carry > truth.rest.carry] = index_of(Mistake.CARRY_INVENTED)
        kinds[~copied.all(dim=1)] = index_of(Mistake.COPIED)
        return by_index(kinds)


class Sums(ColumnTruth):
    """Truth of addition: school addition, one column a step."""

    def carries(self, problems: Problems) -> Tensor:
        """Return the carry into each column of the answer, `[B, N+1]`; the last column receives the carry-in."""
        carries = [problems.carry]
        for column in reversed((problems.a + problems.b).unbind(1)):
            carries.append(torch.floor_divide(column + carries[-1], 10))
        return torch.stack(carries[::-1], dim=1)


def column_draft(problems: Problems, answers: Tensor | None, layout: Layout, sign: int) -> Tensor:
    """Return a draft of simplifications: the copied digits, and carry and last digit if answers predict them.

    The last digit is that of the earlier answers `[B, >= N+1]`. The carry is the one with which the next column gives
    the answers' next digit.

    sign: 1 for sums, -1 for differences.
    """
    a, b = problems.a[:, :-1], problems.b[:, :-1]
    if answers is None:
        return layout.simplification_ids(type(problems)(a, b, problems.carry), problems.carry)[:, :-3]
    # Answers that cannot be right hold -1 (`subtraction.py`).
    digit = answers[:, problems.digits].clamp(min=0)
    carry = ((sign * (answers[:, problems.digits - 1] - a[:, -1]) - b[:, -1]) % 10).clamp(max=1)
    return layout.simplification_ids(type(problems)(a, b, carry), digit)


def _complement(problems: Problems, answers: Tensor) -> tuple[Problems, Tensor]:
    """Pose the nines' complements. All other checks read the same carries; here every carry is flipped."""
    return problems.complement(), operands.complement_answers(answers)


def _swapped(problems: Problems, answers: Tensor) -> tuple[Problems, Tensor]:
    """Pose `b+a`, which has the same answer."""
    return problems.swapped(), answers


def same_places(digits: int) -> list[int]:
    """Return an order of N columns that moves digits by even numbers of places only, and takes neighbours apart.

    A place is worth 1 or 10 modulo 99, in turns, so the order changes no remainder. Fewer than three columns stay.
    """
    order = list(range(digits))
    for parity in range(2):
        places = order[parity::2]
        order[parity::2] = places[1::2] + places[0::2]
    return order


def _reordered(problems: Problems, answers: Tensor) -> tuple[Problems, Tensor]:
    """Pose the sum of the operands with their columns in another order; it has the same remainder modulo 99.

    A carry that is missed or invented changes a sum by a power of ten, and so its remainder. The order changes the
    carries, so that two answers seldom err by the same remainder.
    """
    order = same_places(problems.digits)
    return replace(problems, a=problems.a[:, order], b=problems.b[:, order]), answers


def same_remainder(answers: Tensor, expected: Tensor) -> Tensor:
    """Return which answers `[R, W]` leave the same remainder modulo 99 as the expected ones, `[R]` bool."""
    worth = torch.tensor([(1, 10)[place % 2] for place in reversed(range(answers.shape[1]))], device=answers.device)
    return ((answers - expected) * worth).sum(dim=1) % 99 == 0


class ColumnTask(Task[Problems]):
    """A task on two operands and a carry-in, worked off column by column; laid out as sums are."""

    columns: ClassVar[type[Problems]]
    truth: ColumnTruth
    text_orders = ("msd",)

    def layout(self, order: str) -> PlaceLayout:
        """Return the place-coupled layout of sums."""
        return PlaceLayout(DigitOrder(order), problems=self.columns)

    def text_layout(self, alphabet: Alphabet, order: str = "msd") -> TextLayout:
        """Return the text layout of sums, which has one order."""
        return TextLayout(alphabet, self.columns)

    def hint_layout(self, alphabet: Alphabet, order: str) -> HintedNumberText[Problems, int]:
        """Return the layout of sums with a letter before each digit."""
        return HintedNumberText(alphabet, ColumnWriting(self.columns), DigitOrder(order))

    def parse(self, texts: list[str], digits: int | None = None) -> Problems:
        """Parse problems; see `Problems.parse`."""
        return self.columns.parse(texts, digits)

    def draft(self, problems: Problems, answers: Tensor | None, layout: Layout) -> Tensor:
        """Return a draft; see `column_draft`."""
        return column_draft(problems, answers, layout, self.truth.sign)


class Addition(ColumnTask):
    """The task `a+b` and `a+b+1`, with N digits per operand."""

    name = "addition"
    columns = Problems
    example = "123456+654321"
    truth = Sums()
    checks = (
        Check("complement", "nines' complement", _complement, Solve.AT_ONCE),
        Check("remainder", "remainder modulo 99", _reordered, Solve.AT_ONCE, compare=same_remainder),
        Check("commutative", "swapped operands", _swapped, Solve.BY_VOTE),
    )

    def draw(self, digits: int, count: int, draws: torch.Generator, hard_share: float = 0.0) -> Problems:
        """Draw problems; see `operands.draw_problems`."""
        return draw_problems(digits, count, draws, hard_share)

    def digits_of(self, text: str) -> int:
        """Return the digits of the longer operand."""
        return operands.problem_digits(text)

    def swapped(self, problems: Problems) -> Problems:
        """Return `b+a`."""
        return problems.swapped()

    def restated(self, examples: Examples[Problems]) -> list[Examples[Problems]]:
        """Return `b+a`, and the nines' complements of both; their simplifications follow as their answers do."""
        swapped = Examples(examples.problems.swapped(), examples.answers, examples.rest.swapped(), examples.digit)
        return [swapped, _complemented(examples), _complemented(swapped)]

    def families(self) -> dict[str, Family]:
        """Return carries through all digits, carries through a run, operands of unequal lengths, and leading zeros."""
        return {
            "carry chains": carry_chains,
            "carry runs": carry_runs,
            "unequal lengths": short_operands,
            "leading zeros": leading_zeros,
        }


def _complemented(examples: Examples[Problems]) -> Examples[Problems]:
    """Return the nines' complements of the examples whose answers start with 0 or 1; other answers are no sums."""
    sums = examples[examples.answers[:, 0] <= 1]
    rest = sums.rest if sums.rest.is_nothing else sums.rest.complement()
    return Examples(sums.problems.complement(), operands.complement_answers(sums.answers), rest, 9 - sums.digit)


def carry_chains(digits: int, samples: int, seed: int) -> Problems:
    """Draw `9...9 + b` with small b, and columns that all add up to nine with a carry-in: carries through all digits.

    The two kinds take turns.
    """
    draws = generator(seed, "eval-chains", digits)
    problems = draw_problems(digits, samples, draws)
    nines = torch.arange(samples) % 2 == 0
    a = torch.where(nines[:, None], 9, problems.a)
    small = torch.zeros_like(problems.b)
    small[:, -1] = torch.randint(1, 10, (samples,), generator=draws)
    return Problems(a, torch.where(nines[:, None], small, 9 - problems.a), torch.where(nines, problems.carry, 1))


def carry_runs(digits: int, samples: int, seed: int) -> Problems:
    """Draw uniform digits with one run of columns that add up to nine, through which a carry runs or does not."""
    draws = generator(seed, "eval-runs", digits)
    problems = draw_problems(digits, samples, draws)
    run = run_of_columns(digits, samples, draws)
    return Problems(problems.a, torch.where(run, 9 - problems.a, problems.b), problems.carry)


def short_operands(digits: int, samples: int, seed: int) -> Problems:
    """Draw one operand of `digits` digits and one of a random smaller length, padded with zeros."""
    draws = generator(seed, "eval-short", digits)
    problems = draw_problems(digits, samples, draws)
    lengths = torch.randint(1, max(2, digits), (samples, 1), generator=draws)
    b = problems.b.masked_fill(torch.arange(digits) < digits - lengths, 0)
    flip = torch.rand(samples, 1, generator=draws) < 0.5
    return Problems(torch.where(flip, b, problems.a), torch.where(flip, problems.a, b), problems.carry)


def leading_zeros(digits: int, samples: int, seed: int) -> Problems:
    """Draw operands that both start with a random number of zeros, as in `0012+0345`."""
    draws = generator(seed, "eval-zeros", digits)
    problems = draw_problems(digits, samples, draws)
    columns = torch.arange(digits)
    zeros = torch.randint(min(1, digits - 1), digits, (2, samples, 1), generator=draws)
    return Problems(
        problems.a.masked_fill(columns < zeros[0], 0), problems.b.masked_fill(columns < zeros[1], 0), problems.carry
    )


TASK = Addition()
