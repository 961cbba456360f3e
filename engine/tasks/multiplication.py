"""Multiplication: `a*b+c`, where a has W digits, b has M, and c, what is carried along, W again.

A simplification takes the last digit d off the multiplier: it works out c + a*d column by column, whose last digit is
the answer's, and whose others are the next c. After M of them b is used up, and c is what is left of the answer. A step
knows W + 1 columns and one digit of b, however long b is: every token of it needs what stands at its own place and the
one before, if the last digits come first (`digit_order = "lsd"`).

    prompt          < a ) + 0b ) + c ) >
    simplification  carries ) & c + a*d ) & 0b' ) & a E

The carries out of the columns are written first, as on paper, and so each token of the chain follows from four digits.
`digits` means M; a problem of N digits as drawn is one of N times N, with c nothing but zeros. Fast answers to whole
products are not taught (RESULTS.md, Multiplication): the direct answer is taught where no multiplier is left, and the
policies think down to there. The check is commutativity: `b*a+c` goes other ways to the same answer.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from sector.engine import tokens
from sector.engine.errors import InputError
from sector.engine.mistakes import Mistake, by_index, in_columns, index_of
from sector.engine.oracle import Truth
from sector.engine.policy import DigitOrder, PlaceLayout, digit_classes
from sector.engine.problem import digit_strings, digit_tensor
from sector.engine.task import Layout, Simplifications, Task

_TYPED = re.compile(r"\s*(\d+)\s*\*\s*(\d+)\s*=?\s*", re.ASCII)
_WRITTEN = re.compile(r"(\d+)\*(\d*)\+(\d+)(?:~(\d+))?", re.ASCII)


class Size(NamedTuple):
    """W digits of the multiplicand, M of the multiplier."""

    width: int
    digits: int


@dataclass(frozen=True, slots=True)
class Products:
    """Problems `a*b+c`.

    a: `[B, W]` digits, most significant first. b: `[B, M]`. c: `[B, W]`.
    work: `[B, W]` the carries out of the columns of the step that led here, as they were written; zeros before any.
    """

    task: ClassVar[str] = "multiplication"

    a: Tensor
    b: Tensor
    c: Tensor
    work: Tensor

    def __len__(self) -> int:
        return len(self.a)

    def __getitem__(self, rows: Tensor | slice) -> Self:
        return type(self)(*(getattr(self, each.name)[rows] for each in fields(self)))

    def to(self, device: torch.device) -> Self:
        """The same problems where an engine wants them."""
        return type(self)(*(getattr(self, each.name).to(device) for each in fields(self)))

    @property
    def device(self) -> torch.device:
        return self.a.device

    @property
    def size(self) -> Size:
        """W and M."""
        return Size(self.a.shape[1], self.b.shape[1])

    @property
    def digits(self) -> int:
        """M, the simplifications to the end."""
        return self.b.shape[1]

    @property
    def answer_width(self) -> int:
        """W+M, the digits of an answer."""
        return sum(self.size)

    @property
    def is_nothing(self) -> bool:
        """Is there no problem at all, because nothing was simplified?"""
        return self.a.shape[1] == 0

    def without_digits(self) -> Self:
        """As many problems of no digits."""
        empty = self.a[:, :0]
        return type(self)(empty, empty, empty, empty)

    def texts(self) -> list[str]:
        """`12*34+00`, and `~01` behind it where a step led here: its carries."""
        rows = zip(*(digit_strings(getattr(self, each.name)) for each in fields(self)), strict=True)
        return [f"{a}*{b}+{c}" + (f"~{work}" if work.strip("0") else "") for a, b, c, work in rows]

    @classmethod
    def cat(cls, parts: "Iterable[Self]") -> Self:
        parts = list(parts)
        return cls(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(cls)))


@dataclass(frozen=True, slots=True)
class ProductLayout(PlaceLayout):
    """Products as place-coupled ids; see the module's docstring. Sizes are `Size`."""

    simplification_shape: ClassVar[re.Pattern[str]] = re.compile(r"d+(\)&d+){3}E?_*")

    def answer_length(self, size: Any, /) -> int:
        """Digits of the answer, and the end."""
        return sum(size) + 1

    def simplification_length(self, size: Any, /) -> int:
        """Carries, sums, the multiplier with its zero, the multiplicand, their ends and the marks between them."""
        return 3 * size.width + size.digits + 8

    def beginning_length(self, size: Any, /) -> int:
        """`< a ) +`, which no simplification changes."""
        return size.width + 3

    def prefix_ids(self, problems: Products) -> Tensor:
        """`[B, 2W+M+7]` ids of `< a ) + 0b ) + c )`."""
        plus = self._marks(tokens.PLUS, len(problems), problems.device)
        start = self._marks(tokens.START, len(problems), problems.device)
        a, c = (self._number_ids(each, tokens.END) for each in (problems.a, problems.c))
        return torch.cat([start, a, plus, self._multiplier_ids(problems.b), plus, c], dim=1)

    def simplification_ids(self, rest: Products, digit: Tensor) -> Tensor:
        """`[B, 3W+M+8]` ids of `carries ) & c + a*d ) & 0b' ) & a E`."""
        join = self._marks(tokens.JOIN, len(rest), digit.device)
        sums = torch.cat([rest.c, digit.unsqueeze(1)], dim=1)
        work, sums = (self._number_ids(each, tokens.END) for each in (rest.work, sums))
        a = self._number_ids(rest.a, tokens.EOS)
        return torch.cat([work, join, sums, join, self._multiplier_ids(rest.b), join, a], dim=1)

    def _multiplier_ids(self, b: Tensor) -> Tensor:
        """`[B, M+2]` ids of `0b )`, the first digit first whatever the order: the one taken off is the last then, and
        the others keep their places.
        """
        return self._number_ids(self._ordered(_padded(b)), tokens.END)

    def parse_answers(self, ids: Tensor, size: Any, /) -> tuple[Tensor, Tensor]:
        """See `task.Layout`."""
        return self._parse_number(ids, sum(size))

    def parse_simplifications(self, ids: Tensor, size: Any, /) -> Simplifications:
        """See `task.Layout`."""
        width, digits = size
        ids = ids[:, : self.simplification_length(size)]
        parts, start = [], 0
        for length in (width, width + 1, digits, width):
            parts.append(self._ordered(digit_classes(ids[:, start : start + length])))
            start += length + 2
        work, sums, padded, a = parts
        rest, digit = Products(a, self._ordered(padded)[:, 1:], sums[:, :-1], work), sums[:, -1]
        valid = (self.simplification_ids(rest, digit) == ids).all(dim=1)
        keep = valid.long().unsqueeze(1)
        kept = Products(*(getattr(rest, each.name) * keep for each in fields(rest)))
        return Simplifications(kept, digit * valid, valid)


class Multiples(Truth):
    """Long multiplication, a digit of the multiplier at a time."""

    def answers(self, problems: Products) -> Tensor:
        """`[B, W+M]` digits, most significant first."""
        found: list[Tensor] = []
        while problems.digits:
            step = _step(problems)
            found.append(step.digit)
            problems = step.rest
        return torch.cat([problems.c, *(digit.unsqueeze(1) for digit in reversed(found))], dim=1)

    def simplifications(self, problems: Products) -> Simplifications:
        """One digit of the multiplier taken off; nothing is left of problems without one."""
        if problems.digits:
            return _step(problems)
        valid = torch.ones(len(problems), dtype=torch.bool)
        return Simplifications(problems.without_digits(), problems.c[:, -1], valid)

    def answer_mistakes(self, problems: Products, answers: Tensor) -> list[Mistake]:
        """Right or not: a digit of a whole product has many causes, and the chain says which."""
        truth = self.answers(problems)
        return in_columns(answers, truth, torch.full_like(truth, -1))

    def simplification_mistakes(self, problems: Products, said: Simplifications) -> list[Mistake]:
        """The first mistake of each, as it is written: a carry, a digit of the sums (`added`), a copy.

        A carry below the true one is missed, one above it invented.
        """
        truth = self.simplifications(problems)
        kinds = torch.full_like(said.digit, index_of(Mistake.RIGHT))
        copied = (said.rest.a == truth.rest.a).all(dim=1) & (said.rest.b == truth.rest.b).all(dim=1)
        kinds[~copied] = index_of(Mistake.COPIED)
        added = (said.rest.c == truth.rest.c).all(dim=1) & (said.digit == truth.digit)
        kinds[~added] = index_of(Mistake.ADDED)
        off = (said.rest.work - truth.rest.work).flip(1)
        first = off.gather(1, (off != 0).long().argmax(dim=1, keepdim=True)).squeeze(1)
        kinds[first < 0] = index_of(Mistake.CARRY_MISSED)
        kinds[first > 0] = index_of(Mistake.CARRY_INVENTED)
        return by_index(kinds)


class Multiplication(Task):
    """`a*b`, N digits each."""

    name = "multiplication"
    summary = "a*b"
    truth = Multiples()
    at_once = 0

    def layout(self, order: str) -> ProductLayout:
        """See `ProductLayout`."""
        return ProductLayout(DigitOrder(order))

    def draw(self, digits: int, count: int, draws: torch.Generator, hard_share: float = 0.0) -> Products:
        """N times N digits and nothing carried along; a share has one factor that begins with zeros."""
        a, b = (torch.randint(0, 10, (count, digits), generator=draws) for _ in range(2))
        zeros = torch.randint(0, digits, (count, 1), generator=draws)
        short = (torch.rand(count, 1, generator=draws) < hard_share) & (torch.arange(digits) < zeros)
        first = torch.rand(count, 1, generator=draws) < 0.5
        return _begun(a.masked_fill(short & first, 0), b.masked_fill(short & ~first, 0))

    def num_lessons(self, digits: int) -> int:
        """Every stage of a chain: multipliers of 0 to N digits."""
        return digits + 1

    def draw_lesson(
        self, digits: int, lesson: int, count: int, draws: torch.Generator, hard_share: float = 0.0
    ) -> Products:
        """N digits times as many as the lesson says, and anything carried along."""
        drawn = self.draw(digits, count, draws, hard_share)
        c = torch.randint(0, 10, drawn.a.shape, generator=draws)
        blank = torch.rand(count, 1, generator=draws) < 0.1
        return Products(drawn.a, drawn.b[:, digits - lesson :], c.masked_fill(blank, 0), torch.zeros_like(c))

    def parse(self, texts: list[str], digits: int | None = None) -> Products:
        """Typed `12*345` is made square; `12*345+67`, as the chain writes it, is read as it stands."""
        written = [_WRITTEN.fullmatch(text) for text in texts]
        if all(written) and texts:
            return _as_written([match for match in written if match])
        rows = [_operands(text) for text in texts]
        longest = max((len(operand) for row in rows for operand in row), default=1)
        digits = longest if digits is None else digits
        if longest > digits:
            raise InputError(f"a factor has {longest} digits, more than {digits}")
        return _begun(*(digit_tensor([row[index] for row in rows], digits) for index in (0, 1)))

    def digits_of(self, text: str) -> int:
        """Of the longer factor."""
        return max(map(len, _operands(text)))

    def size_of(self, text: str, digits: int) -> Size:
        """As written."""
        match = _WRITTEN.fullmatch(text)
        if match is None:
            raise InputError(f"{text!r} is no problem as a chain writes it, 12*345+67")
        return Size(len(match[1]), len(match[2]))

    def second_look(self, problems: Products, answers: Tensor) -> tuple[Products, Tensor]:
        """Commutativity: `b*a` has the same answer. For squares, which all drawn problems are."""
        return self.swapped(problems), answers

    def swapped(self, problems: Products) -> Products:
        """`b*a`."""
        return Products(problems.b, problems.a, problems.c, problems.work)

    def draft(self, problems: Products, answers: Tensor | None, layout: Layout) -> None:
        """A step begins with what only the model can know."""
        return


def _step(problems: Products) -> Simplifications:
    """c + a*d, column by column from the last, d the multiplier's last digit."""
    factor, carry = problems.b[:, -1], torch.zeros_like(problems.b[:, -1])
    carries, sums = [], []
    for column in reversed(range(problems.size.width)):
        total = problems.c[:, column] + problems.a[:, column] * factor + carry
        carry = total // 10
        carries.append(carry)
        sums.append(total % 10)
    written = torch.stack([carry, *sums[::-1]], dim=1)
    work = torch.stack(carries[::-1], dim=1)
    rest = Products(problems.a, problems.b[:, :-1], written[:, :-1], work)
    return Simplifications(rest, written[:, -1], torch.ones_like(carry, dtype=torch.bool))


def _begun(a: Tensor, b: Tensor) -> Products:
    zeros = torch.zeros_like(a)
    return Products(a, b, zeros, zeros)


def _padded(b: Tensor) -> Tensor:
    """A zero before the multiplier, so that a number stands there when it is used up."""
    return torch.nn.functional.pad(b, (1, 0))


def _operands(text: str) -> tuple[str, str]:
    match = _TYPED.fullmatch(text)
    if match is None:
        raise InputError(f"{text.strip()!r} is not a problem; write two non-negative integers as 123*456")
    return match[1].lstrip("0") or "0", match[2].lstrip("0") or "0"


def _as_written(rows: list[re.Match[str]]) -> Products:
    width, digits = len(rows[0][1]), len(rows[0][2])
    numbers = [(row[1], row[2], row[3], row[4] or "0") for row in rows]
    if any(len(row[0]) != width or len(row[1]) != digits or len(row[2]) != width for row in numbers):
        raise InputError("products of different sizes do not make a batch")
    widths = (width, digits, width, width)
    return Products(*(digit_tensor([row[index] for row in numbers], each) for index, each in enumerate(widths)))


TASK = Multiplication()
