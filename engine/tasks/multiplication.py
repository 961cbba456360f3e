"""Multiplication: `a*b+c`, where a has W digits, b has M, and c, what is carried along, W again.

A simplification takes the last digit d off the multiplier: it works out c + a*d, whose last digit is the answer's, and
whose others are the next c. After M of them b is used up, and c is what is left of the answer. A step knows W + 1
columns and one digit of b, however long b is.

    prompt          < a ) + 0b ) + c ) >
    simplification  tens ) & units ) & carries ) & a*d ) & carries ) & c + a*d ) & 0b' ) & a E

It is worked out as on paper: the tens and units of each digit of a times d, their sum one column to the left, and
that and c. The carries out of the columns of a sum are written before it. So every token follows from three digits at
most, two to be added and a carry, or two to be multiplied, at its own place and the one before, if the last digits come
first (`digit_order = "lsd"`). Written at once c + a*d depends on four, and was not learned (RESULTS.md).

`digits` means M; a problem of N digits as drawn is one of N times N, with c nothing but zeros. Fast answers to whole
products are not taught: the direct answer is taught where no multiplier is left, and the policies think down to there.
The check is commutativity: `b*a+c` goes other ways to the same answer.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from sector.engine.errors import InputError
from sector.engine.language import tokens
from sector.engine.language.layout import Layout, Simplifications
from sector.engine.language.operands import digit_strings, digit_tensor
from sector.engine.language.place_layout import DigitOrder, PlaceLayout, digit_classes
from sector.engine.tasks.check import Check, Solve
from sector.engine.tasks.mistakes import Mistake, by_index, in_columns, index_of
from sector.engine.tasks.oracle import Truth
from sector.engine.tasks.task import Task

_TYPED = re.compile(r"\s*(\d+)\s*\*\s*(\d+)\s*=?\s*", re.ASCII)
_WRITTEN = re.compile(r"(\d+)\*(\d*)\+(\d+)(?:~(\d+(?:,\d+){4}))?", re.ASCII)

# Of the rows of a step: tens, units, carries, a*d, carries, and c + a*d.
_IS_CARRY = (False, False, True, False, True, False)


class Size(NamedTuple):
    """W digits of the multiplicand, M of the multiplier."""

    width: int
    digits: int


@dataclass(frozen=True, slots=True)
class Products:
    """Problems `a*b+c`.

    a: `[B, W]` digits, most significant first. b: `[B, M]`. c: `[B, W]`.
    work: `[B, 5W+1]` what the step that led here wrote before c: tens and units `[B, W]` each, carries `[B, W]`, a*d
        `[B, W+1]`, carries `[B, W]`, as they were written; zeros before any.
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

    def swapped(self) -> Self:
        """`b*a`. For squares, which all drawn problems are."""
        return type(self)(self.b, self.a, self.c, self.work)

    def without_digits(self) -> "Products":
        """As many problems of no digits."""
        return _begun(self.a[:, :0], self.b[:, :0])

    def texts(self) -> list[str]:
        """`12*34+00`, and `~00,48,00,048,00` behind it where a step led here: its work."""
        rows = zip(*(digit_strings(each) for each in (self.a, self.b, self.c, *_rows(self.work))), strict=True)
        return [f"{a}*{b}+{c}" + (f"~{','.join(work)}" if "".join(work).strip("0") else "") for a, b, c, *work in rows]

    @classmethod
    def cat(cls, parts: "Iterable[Self]") -> Self:
        parts = list(parts)
        return cls(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(cls)))


@dataclass(frozen=True, slots=True)
class ProductLayout(PlaceLayout):
    """Products as place-coupled ids; see the module's docstring. Sizes are `Size`."""

    simplification_shape: ClassVar[re.Pattern[str]] = re.compile(r"d+(\)&d+){7}E?_*")

    def answer_length(self, size: Any, /) -> int:
        """Digits of the answer, and the end."""
        return sum(size) + 1

    def simplification_length(self, size: Any, /) -> int:
        """Five rows of work, sums, the multiplier with its zero, the multiplicand, ends and marks between them."""
        return 7 * size.width + size.digits + 17

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
        """`[B, 7W+M+17]` ids of `work ) & c + a*d ) & 0b' ) & a E`, five numbers of work."""
        join = self._marks(tokens.JOIN, len(rest), digit.device)
        sums = torch.cat([rest.c, digit.unsqueeze(1)], dim=1)
        numbers = [self._number_ids(each, tokens.END) for each in (*_rows(rest.work), sums)]
        numbers += [self._multiplier_ids(rest.b), self._number_ids(rest.a, tokens.EOS)]
        return torch.cat([part for number in numbers for part in (number, join)][:-1], dim=1)

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
        for length in (*_widths(width), width + 1, digits, width):
            parts.append(self._ordered(digit_classes(ids[:, start : start + length])))
            start += length + 2
        *work, sums, padded, a = parts
        rest, digit = Products(a, self._ordered(padded)[:, 1:], sums[:, :-1], torch.cat(work, dim=1)), sums[:, -1]
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
        """The first mistake of each, as it is worked out: a carry below the true one is missed, one above it invented;
        any other digit of tens, units and sums is `added`; then copies.
        """
        truth = self.simplifications(problems)
        kinds = torch.full_like(said.digit, index_of(Mistake.RIGHT))
        copied = (said.rest.a == truth.rest.a).all(dim=1) & (said.rest.b == truth.rest.b).all(dim=1)
        kinds[~copied] = index_of(Mistake.COPIED)
        rows = zip(_worked_out(said), _worked_out(truth), strict=True)
        for is_carry, (mine, true) in reversed(list(zip(_IS_CARRY, rows, strict=True))):
            off = (mine - true).flip(1)
            first = off.gather(1, (off != 0).long().argmax(dim=1, keepdim=True)).squeeze(1)
            kinds[first < 0] = index_of(Mistake.CARRY_MISSED if is_carry else Mistake.ADDED)
            kinds[first > 0] = index_of(Mistake.CARRY_INVENTED if is_carry else Mistake.ADDED)
        return by_index(kinds)


def _swapped(problems: Products, answers: Tensor) -> tuple[Products, Tensor]:
    """Commutativity: `b*a` has the same answer."""
    return problems.swapped(), answers


class Multiplication(Task):
    """`a*b`, N digits each."""

    name = "multiplication"
    example = "1234*5678"
    truth = Multiples()
    at_once = 0
    checks = (Check("commutative", "swapped factors", _swapped, Solve.BY_VOTE),)
    # A row has three times the tokens of one of a sum, and a chain has N of them. Rounds at the rates of addition
    # forget more than they learn.
    settings: ClassVar[dict[str, Any]] = {
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
        return replace(drawn, b=drawn.b[:, digits - lesson :], c=c.masked_fill(blank, 0))

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

    def swapped(self, problems: Products) -> Products:
        """`b*a`."""
        return problems.swapped()

    def draft(self, problems: Products, answers: Tensor | None, layout: Layout) -> None:
        """A step begins with what only the model can know."""
        return


def _step(problems: Products) -> Simplifications:
    """c + a*d as on paper, d the multiplier's last digit."""
    products = problems.a * problems.b[:, -1:]
    tens, units = products // 10, products % 10
    carries, multiple = _add(_padded(units), torch.nn.functional.pad(tens, (0, 1)))
    more_carries, sums = _add(_padded(problems.c), multiple)
    work = torch.cat([tens, units, carries, multiple, more_carries], dim=1)
    digit = sums[:, -1]
    rest = Products(problems.a, problems.b[:, :-1], sums[:, :-1], work)
    return Simplifications(rest, digit, torch.ones_like(digit, dtype=torch.bool))


def _add(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers `[B, W+1]` whose sum is no longer -> the carries into the first W columns `[B, W]`, and the sum."""
    carry = torch.zeros_like(one[:, -1])
    carries, sums = [], []
    for column in reversed(range(one.shape[1])):
        total = one[:, column] + other[:, column] + carry
        carry = total // 10
        carries.append(carry)
        sums.append(total % 10)
    return torch.stack(carries[-2::-1], dim=1), torch.stack(sums[::-1], dim=1)


def _widths(width: int) -> tuple[int, ...]:
    """Digits of the rows of work: tens, units, carries, a*d, carries."""
    return width, width, width, width + 1, width


def _worked_out(step: Simplifications) -> tuple[Tensor, ...]:
    """All rows of a step: work, and c with its last digit."""
    return *_rows(step.rest.work), torch.cat([step.rest.c, step.digit.unsqueeze(1)], dim=1)


def _rows(work: Tensor) -> tuple[Tensor, ...]:
    """The rows of work `[B, 5W+1]`."""
    return work.split(_widths(work.shape[1] // 5), dim=1)


def _begun(a: Tensor, b: Tensor) -> Products:
    """Nothing carried along, nothing worked out."""
    return Products(a, b, torch.zeros_like(a), a.new_zeros(len(a), sum(_widths(a.shape[1]))))


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
    widths, wanted = (width, digits, width), _widths(width)
    numbers = [row.groups()[:3] for row in rows]
    works = [row[4].split(",") if row[4] else ["0" * each for each in wanted] for row in rows]
    for number, work in zip(numbers, works, strict=True):
        if tuple(map(len, number)) != widths or tuple(map(len, work)) != wanted:
            raise InputError("products of different sizes do not make a batch")
    a, b, c = (digit_tensor([row[index] for row in numbers], each) for index, each in enumerate(widths))
    return Products(a, b, c, digit_tensor(["".join(work) for work in works], sum(wanted)))


TASK = Multiplication()
