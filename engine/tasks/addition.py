"""Addition: `a+b` and `a+b+1`. A simplification adds the last column; the check is that `b+a` gives the same."""

import torch
from torch import Tensor

from sector.engine.language import operands
from sector.engine.language.alphabet import Alphabet
from sector.engine.language.examples import Examples
from sector.engine.language.layout import Layout, Simplifications
from sector.engine.language.operands import Problems, draw_problems, run_of_columns
from sector.engine.language.place_layout import DigitOrder, PlaceLayout
from sector.engine.language.text_layout import TextLayout
from sector.engine.seeding import generator
from sector.engine.tasks.check import Check, Solve
from sector.engine.tasks.mistakes import Mistake, by_index, in_columns, index_of
from sector.engine.tasks.oracle import Truth
from sector.engine.tasks.task import Family, Task


class Sums(Truth):
    """School addition, one column a step."""

    def answers(self, problems: Problems) -> Tensor:
        """The sums, `[B, N+1]` digits, most significant first."""
        total = problems.a + problems.b
        carries = self.carries(problems)
        return torch.cat([carries[:, :1], (total + carries[:, 1:]) % 10], dim=1)

    def carries(self, problems: Problems) -> Tensor:
        """The carry into each column of the answer, `[B, N+1]`; the last column receives the carry-in."""
        carries = [problems.carry]
        for column in reversed(range(problems.digits)):
            carries.append((problems.a[:, column] + problems.b[:, column] + carries[-1]) // 10)
        return torch.stack(carries[::-1], dim=1)

    def simplifications(self, problems: Problems) -> Simplifications:
        """The problems without their last columns, with the carries out of those; and the last digits of the sums."""
        carries, answers = self.carries(problems), self.answers(problems)
        valid = torch.ones_like(problems.carry, dtype=torch.bool)
        if problems.digits == 1:
            return Simplifications(problems.without_digits(), answers[:, -1], valid)
        rest = type(problems)(problems.a[:, :-1], problems.b[:, :-1], carries[:, -2])
        return Simplifications(rest, answers[:, -1], valid)

    def answer_mistakes(self, problems: Problems, answers: Tensor) -> list[Mistake]:
        """The first mistake of each answer `[B, N+1]`, as one adds."""
        return in_columns(answers, self.answers(problems), self.carries(problems))

    def simplification_mistakes(self, problems: Problems, said: Simplifications) -> list[Mistake]:
        """The first mistake of each simplification, in the order in which it is written."""
        return simplification_mistakes(said, self.simplifications(problems))


def simplification_mistakes(said: Simplifications, truth: Simplifications) -> list[Mistake]:
    """The same for any two operands and a carry: the copy first, then the carry, then the digit."""
    copied = (said.rest.a == truth.rest.a) & (said.rest.b == truth.rest.b)
    kinds = torch.full_like(said.digit, index_of(Mistake.RIGHT))
    kinds[said.digit != truth.digit] = index_of(Mistake.ADDED)
    kinds[said.rest.carry < truth.rest.carry] = index_of(Mistake.CARRY_MISSED)
    kinds[said.rest.carry > truth.rest.carry] = index_of(Mistake.CARRY_INVENTED)
    kinds[~copied.all(dim=1)] = index_of(Mistake.COPIED)
    return by_index(kinds)


def _complement(problems: Problems, answers: Tensor) -> tuple[Problems, Tensor]:
    """The nines' complements. All other checks read the same carries; here every carry is the other one."""
    return problems.complement(), operands.complement_answers(answers)


def _swapped(problems: Problems, answers: Tensor) -> tuple[Problems, Tensor]:
    """Commutativity: `b+a` has the same answer."""
    return problems.swapped(), answers


class Addition(Task):
    """`a+b` and `a+b+1` of N digits each."""

    name = "addition"
    example = "123456+654321"
    truth = Sums()
    checks = (
        Check("complement", "nines' complement", _complement, Solve.AT_ONCE),
        Check("commutative", "swapped operands", _swapped, Solve.BY_VOTE),
    )

    def layout(self, order: str) -> PlaceLayout:
        """See `policy.PlaceLayout`."""
        return PlaceLayout(DigitOrder(order))

    def text_layout(self, alphabet: Alphabet) -> TextLayout:
        """See `text.layout.TextLayout`."""
        return TextLayout(alphabet)

    def draw(self, digits: int, count: int, draws: torch.Generator, hard_share: float = 0.0) -> Problems:
        """See `operands.draw_problems`."""
        return draw_problems(digits, count, draws, hard_share)

    def parse(self, texts: list[str], digits: int | None = None) -> Problems:
        """See `Problems.parse`."""
        return Problems.parse(texts, digits)

    def digits_of(self, text: str) -> int:
        """Of the longer operand."""
        return operands.problem_digits(text)

    def swapped(self, problems: Problems) -> Problems:
        """`b+a`."""
        return problems.swapped()

    def restated(self, examples: Examples) -> list[Examples]:
        """`b+a`, and the nines' complements of both: digits and carries of a step follow as those of an answer do."""
        swapped = Examples(examples.problems.swapped(), examples.answers, examples.rest.swapped(), examples.digit)
        return [swapped, *(_complemented(each) for each in (examples, swapped))]

    def draft(self, problems: Problems, answers: Tensor | None, layout: Layout) -> Tensor:
        """The prompt's own digits, up to where thinking begins.

        What comes then only the model can know, but an answer that it gave before foretells it: its last digit, and the
        carry with which the column before gives the digit before.
        """
        a, b = problems.a[:, :-1], problems.b[:, :-1]
        if answers is None:
            return layout.simplification_ids(Problems(a, b, problems.carry), problems.carry)[:, :-3]
        digit = answers[:, problems.digits]
        carry = ((answers[:, problems.digits - 1] - a[:, -1] - b[:, -1]) % 10).clamp(max=1)
        return layout.simplification_ids(Problems(a, b, carry), digit)

    def families(self) -> dict[str, Family]:
        """Carries through every digit, or through a run of digits; operands of unequal lengths; leading zeros."""
        return {
            "carry chains": carry_chains,
            "carry runs": carry_runs,
            "unequal lengths": short_operands,
            "leading zeros": leading_zeros,
        }


def _complemented(examples: Examples) -> Examples:
    """The nines' complements of examples, but for those whose answers cannot be sums and so have no complement."""
    kept = examples[examples.answers[:, 0] <= 1]
    rest = kept.rest if kept.rest.is_nothing else kept.rest.complement()
    return Examples(kept.problems.complement(), operands.complement_answers(kept.answers), rest, 9 - kept.digit)


def carry_chains(digits: int, samples: int, seed: int) -> Problems:
    """`9...9 + b` with small b, and columns that all add up to nine with a carry-in: a carry through every digit."""
    draws = generator(seed, "eval-chains", digits)
    problems = draw_problems(digits, samples, draws)
    nines = torch.arange(samples) % 2 == 0
    a = torch.where(nines[:, None], 9, problems.a)
    small = torch.zeros_like(problems.b)
    small[:, -1] = torch.randint(1, 10, (samples,), generator=draws)
    return Problems(a, torch.where(nines[:, None], small, 9 - problems.a), torch.where(nines, problems.carry, 1))


def carry_runs(digits: int, samples: int, seed: int) -> Problems:
    """Uniform digits, but for one run of columns that add up to nine: is there a carry at its head, or not?"""
    draws = generator(seed, "eval-runs", digits)
    problems = draw_problems(digits, samples, draws)
    run = run_of_columns(digits, samples, draws)
    return Problems(problems.a, torch.where(run, 9 - problems.a, problems.b), problems.carry)


def short_operands(digits: int, samples: int, seed: int) -> Problems:
    """One operand of `digits` digits, the other of a random smaller length: leading zeros, as when people type."""
    draws = generator(seed, "eval-short", digits)
    problems = draw_problems(digits, samples, draws)
    lengths = torch.randint(1, max(2, digits), (samples, 1), generator=draws)
    b = problems.b.masked_fill(torch.arange(digits) < digits - lengths, 0)
    flip = torch.rand(samples, 1, generator=draws) < 0.5
    return Problems(torch.where(flip, b, problems.a), torch.where(flip, problems.a, b), problems.carry)


def leading_zeros(digits: int, samples: int, seed: int) -> Problems:
    """Both operands padded with zeros, each by a random number of them, as in `0012+0345`."""
    draws = generator(seed, "eval-zeros", digits)
    problems = draw_problems(digits, samples, draws)
    columns = torch.arange(digits)
    zeros = torch.randint(min(1, digits - 1), digits, (2, samples, 1), generator=draws)
    return Problems(
        problems.a.masked_fill(columns < zeros[0], 0), problems.b.masked_fill(columns < zeros[1], 0), problems.carry
    )


TASK = Addition()
