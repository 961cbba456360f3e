"""Multiplication: `a*b+c`, where a has W digits, b has M, and the carried-along c has W.

A simplification takes the last digit d off the multiplier b. It computes c + a*d; the last digit is the answer's, the
others are the next c. After M simplifications b is used up, and c holds the leading digits of the answer. A step works
on W + 1 columns and one digit of b, for any length of b.

    prompt          < a ) + 0b ) + c ) >
    simplification  tens ) & units ) & carries ) & a*d ) & carries ) & c + a*d ) & 0b' ) & a E
    as text         12*034+00>00,48,00,048,00:048|03*12

The work is that of long multiplication on paper: the tens and units of each digit of a times d, the sum of both with
the tens one column to the left, and the sum of that and c. The carries out of the columns of a sum are written before
it. With the least significant digit first (`digit_order = "lsd"`) each token thus follows from at most three digits, at
its own place and the place before: two to add and a carry, or two to multiply. A digit of c + a*d written directly
depends on four digits, and was not learned (results.md).

`digits` means M. A drawn problem of N digits is one of N times N digits, with c = 0. Fast answers to whole products are
not taught: the direct answer is taught for problems without a multiplier, and all policies simplify down to them. The
check is commutativity: `b*a` takes other steps to the same answer.

In the shape descriptions B is the batch.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from sector.engine.errors import InputError
from sector.engine.language.layout import Layout, Simplifications
from sector.engine.language.operands import digit_tensor
from sector.engine.language.place_ids import DigitOrder
from sector.engine.language.products import (
    ProductLayout,
    Products,
    ProductWriting,
    Size,
    first_step,
    split_work,
    with_leading_zero,
    work_widths,
)
from sector.engine.language.writing import Writing
from sector.engine.tasks.check import Check, Solve
from sector.engine.tasks.mistakes import Mistake, by_index, index_of
from sector.engine.tasks.oracle import Truth
from sector.engine.tasks.task import Task

_TYPED = re.compile(r"\s*(\d+)\s*\*\s*(\d+)\s*=?\s*", re.ASCII)
_WRITTEN = re.compile(r"(\d+)\*(\d*)\+(\d+)(?:~(\d+(?:,\d+){4}))?", re.ASCII)

# Which numbers of a step hold carries: tens, units, carries, a*d, carries, and c + a*d.
_IS_CARRY = (False, False, True, False, True, False)


class Multiples(Truth[Products]):
    """Truth of multiplication: long multiplication, one digit of the multiplier a step."""

    def answers(self, problems: Products) -> Tensor:
        """Return the answers, `[B, W+M]` digits, most significant first."""
        digits: list[Tensor] = []
        while problems.digits:
            step = _step(problems)
            digits.append(step.digit.unsqueeze(1))
            problems = step.rest
        return torch.cat([problems.c, *reversed(digits)], dim=1)

    def simplifications(self, problems: Products) -> Simplifications[Products]:
        """Return the problems with one digit less of the multiplier; the rest has no digits if there is none left."""
        if problems.digits:
            return _step(problems)
        valid = torch.ones(len(problems), dtype=torch.bool)
        return Simplifications(problems.without_digits(), problems.c[:, -1], valid)

    def simplification_mistakes(self, problems: Products, outputs: Simplifications[Products]) -> list[Mistake]:
        """Return the first mistake of each simplification, in writing order, each number from its last digit on.

        A carry below the true one is CARRY_MISSED, one above it CARRY_INVENTED. Another wrong digit is ADDED, and a
        wrong copy of a or b is COPIED.
        """
        truth = self.simplifications(problems)
        kinds = torch.full_like(outputs.digit, index_of(Mistake.RIGHT))
        copied = (outputs.rest.a == truth.rest.a).all(dim=1) & (outputs.rest.b == truth.rest.b).all(dim=1)
        kinds[~copied] = index_of(Mistake.COPIED)
        numbers = zip(_IS_CARRY, _written_numbers(outputs), _written_numbers(truth), strict=True)
        # Backwards, so that earlier mistakes replace later ones.
        for is_carry, number, true_number in reversed(list(numbers)):
            errors = (number - true_number).flip(1)
            first = errors.gather(1, (errors != 0).long().argmax(dim=1, keepdim=True)).squeeze(1)
            kinds[first < 0] = index_of(Mistake.CARRY_MISSED if is_carry else Mistake.ADDED)
            kinds[first > 0] = index_of(Mistake.CARRY_INVENTED if is_carry else Mistake.ADDED)
        return by_index(kinds)


def _swapped(problems: Products, answers: Tensor) -> tuple[Products, Tensor]:
    """Pose `b*a`, which has the same answer."""
    return problems.swapped(), answers


class Multiplication(Task[Products]):
    """The task `a*b`, with N digits per factor."""

    name = "multiplication"
    example = "1234*5678"
    truth = Multiples()
    at_once = 0
    checks = (Check("commutative", "swapped factors", _swapped, Solve.BY_VOTE),)
    # A row has three times the tokens of a sum's row, and a chain has N rows. With the learning rates of addition,
    # rounds forget more than they learn.
    settings: ClassVar[Mapping[str, object]] = {
        "digit_order": "lsd",
        "schedule": "paper",
        "until": 12,
        "hard_share": 0.2,
        "supervised": {
            "max_digits": 3,
            "cycle_steps": 2400,
            "more_steps": 1200,
            "examples": 400,
            "target_agreement": 0.8,
            "trainer": {"shard_rows": 64},
        },
        "round": {
            "candidates": 300,
            "cycle_steps": 120,
            "probe": 100,
            "probe_trained": 20,
            "trainer": {"learning_rate": 5e-4, "muon_learning_rate": 2e-3},
        },
    }

    @property
    def writing(self) -> Writing:
        """Form of products and their steps."""
        return ProductWriting()

    def layout(self, order: str) -> ProductLayout:
        """Return the place-coupled layout of products."""
        return ProductLayout(DigitOrder(order), writing=self.writing)

    def draw(self, digits: int, count: int, draws: torch.Generator, hard_share: float = 0.0) -> Products:
        """Draw N times N digits with c = 0; in a share `hard_share` of the rows one factor starts with zeros."""
        a, b = (torch.randint(0, 10, (count, digits), generator=draws) for _ in range(2))
        zeros = torch.randint(0, digits, (count, 1), generator=draws)
        short = (torch.rand(count, 1, generator=draws) < hard_share) & (torch.arange(digits) < zeros)
        first = torch.rand(count, 1, generator=draws) < 0.5
        return first_step(a.masked_fill(short & first, 0), b.masked_fill(short & ~first, 0))

    def num_lessons(self, digits: int) -> int:
        """Return the number of stages of a chain: multipliers of 0 to N digits."""
        return digits + 1

    def draw_lesson(
        self, digits: int, lesson: int, count: int, draws: torch.Generator, hard_share: float = 0.0
    ) -> Products:
        """Draw N digits times `lesson` digits with random c, which is 0 in a tenth of the rows."""
        drawn = self.draw(digits, count, draws, hard_share)
        c = torch.randint(0, 10, drawn.a.shape, generator=draws)
        blank = torch.rand(count, 1, generator=draws) < 0.1
        return replace(drawn, b=drawn.b[:, digits - lesson :], c=c.masked_fill(blank, 0))

    def parse(self, texts: list[str], digits: int | None = None) -> Products:
        """Parse problems: typed `12*345` gets factors of one length, `12*345+67` of a chain keeps its lengths."""
        matches = [_WRITTEN.fullmatch(text) for text in texts]
        if all(matches) and texts:
            return _parse_written([match for match in matches if match])
        rows = [_operands(text) for text in texts]
        longest = max((len(operand) for row in rows for operand in row), default=1)
        digits = longest if digits is None else digits
        if longest > digits:
            raise InputError(f"a factor has {longest} digits, more than {digits}")
        return first_step(digit_tensor([a for a, _ in rows], digits), digit_tensor([b for _, b in rows], digits))

    def digits_of(self, text: str) -> int:
        """Return the digits of the longer factor."""
        return max(map(len, _operands(text)))

    def size_of(self, text: str, digits: int) -> Size:
        """Return the size of a problem as a chain writes it."""
        match = _WRITTEN.fullmatch(text)
        if match is None:
            raise InputError(f"{text!r} is not a problem in the form of a chain; write it as 12*345+67")
        return Size(len(match[1]), len(match[2]))

    def swapped(self, problems: Products) -> Products:
        """Return `b*a`."""
        return problems.swapped()

    def draft(self, problems: Products, answers: Tensor | None, layout: Layout) -> None:
        """Return no draft: a step begins with numbers that only the model computes."""
        return


def _step(problems: Products) -> Simplifications[Products]:
    """Compute c + a*d by long multiplication, where d is the multiplier's last digit."""
    products = problems.a * problems.b[:, -1:]
    tens, units = products // 10, products % 10
    product_carries, product = _add(with_leading_zero(units), torch.nn.functional.pad(tens, (0, 1)))
    total_carries, total = _add(with_leading_zero(problems.c), product)
    work = torch.cat([tens, units, product_carries, product, total_carries], dim=1)
    digit = total[:, -1]
    rest = Products(problems.a, problems.b[:, :-1], total[:, :-1], work)
    return Simplifications(rest, digit, torch.ones_like(digit, dtype=torch.bool))


def _add(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Add numbers `[B, W+1]` whose sums are no longer; return the carries into the first W columns, and the sums."""
    carry = torch.zeros_like(a[:, -1])
    carries, digits = [], []
    for column in reversed(range(a.shape[1])):
        total = a[:, column] + b[:, column] + carry
        carry = total // 10
        carries.append(carry)
        digits.append(total % 10)
    return torch.stack(carries[-2::-1], dim=1), torch.stack(digits[::-1], dim=1)


def _written_numbers(step: Simplifications[Products]) -> tuple[Tensor, ...]:
    """Return the numbers that a step writes: its work, and c + a*d."""
    return *split_work(step.rest.work), torch.cat([step.rest.c, step.digit.unsqueeze(1)], dim=1)


def _operands(text: str) -> tuple[str, str]:
    """Return both factors of a typed problem, without leading zeros. Raise InputError if it is no product."""
    match = _TYPED.fullmatch(text)
    if match is None:
        raise InputError(f"{text.strip()!r} is not a problem; write two non-negative integers as 123*456")
    return match[1].lstrip("0") or "0", match[2].lstrip("0") or "0"


def _parse_written(matches: list[re.Match[str]]) -> Products:
    """Parse problems of one size as a chain writes them, with their work. Raise InputError if sizes differ."""
    width, digits = len(matches[0][1]), len(matches[0][2])
    widths = (width, digits, width, *work_widths(width))
    no_work = ",".join("0" * work_width for work_width in work_widths(width))
    rows = [(match[1], match[2], match[3], *(match[4] or no_work).split(",")) for match in matches]
    if any(tuple(map(len, row)) != widths for row in rows):
        raise InputError("products of different sizes do not make a batch")
    a, b, c, *work = (
        digit_tensor(list(numbers), length) for numbers, length in zip(zip(*rows, strict=True), widths, strict=True)
    )
    return Products(a, b, c, torch.cat(work, dim=1))


TASK = Multiplication()
