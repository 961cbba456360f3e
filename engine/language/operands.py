"""Problems `a+b` and `a+b+1` as batches of digit tensors, and how to draw, swap, read and write them.

In the shape descriptions B is the batch of problems and N the digits per operand. Digits are stored most significant
first whatever order the model reads them in; the order is the business of `policy.py`. Nothing here knows a sum.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self, TypeVar

import torch
from torch import Tensor

from sector.engine.errors import InputError

if TYPE_CHECKING:
    from sector.engine.language.layout import Batch

AnyBatch = TypeVar("AnyBatch", bound="Batch")

# Share of the hard problems that are carry chains; what no look of a filter catches is a carry missed in a long one.
CHAINS = 2 / 3

PROBLEM_PATTERN = re.compile(r"\s*(\d+)\s*\+\s*(\d+)\s*(\+\s*[01]\s*)?=?\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Problems:
    """A batch of problems of one length; sums here, and what derived classes make of two operands and a carry.

    task, sign: what is asked, by name and as people write it.
    a: `[B, N]` int64 digits of the first operand, most significant first.
    b: `[B, N]` int64 digits of the second operand.
    carry: `[B]` int64 carry-in, 0 or 1.
    """

    task: ClassVar[str] = "addition"
    sign: ClassVar[str] = "+"

    a: Tensor
    b: Tensor
    carry: Tensor

    def __post_init__(self) -> None:
        if self.a.ndim != 2 or self.a.shape != self.b.shape or self.carry.shape != self.a.shape[:1]:
            raise ValueError(
                f"operands must be [B, N] and the carry [B]; got {tuple(self.a.shape)}, {tuple(self.b.shape)}, "
                f"{tuple(self.carry.shape)}"
            )

    def __len__(self) -> int:
        return self.a.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Self:
        return type(self)(self.a[rows], self.b[rows], self.carry[rows])

    def to(self, device: torch.device) -> Self:
        """The same problems where an engine wants them."""
        return type(self)(self.a.to(device), self.b.to(device), self.carry.to(device))

    @property
    def device(self) -> torch.device:
        return self.a.device

    @property
    def digits(self) -> int:
        """N, the digits per operand."""
        return self.a.shape[1]

    @property
    def size(self) -> int:
        """N: all that a layout must know to read an answer back."""
        return self.digits

    @property
    def answer_width(self) -> int:
        """N+1, the digits of an answer."""
        return self.digits + 1

    @property
    def is_nothing(self) -> bool:
        """Is there no problem at all, because nothing was simplified?"""
        return self.digits == 0

    def without_digits(self) -> Self:
        """As many problems of no digits: what is left where nothing was simplified."""
        empty = self.a[:, :0]
        return type(self)(empty, empty, torch.zeros_like(self.carry))

    def swapped(self) -> Self:
        """The same problems in the other operand order, `b+a`: the other side of the commutativity check."""
        return type(self)(self.b, self.a, self.carry)

    def complement(self) -> Self:
        """The nines' complements, 9 - digit everywhere and the carry-in flipped: where a carry ran, none does now.

        The sum of all four operands and both carry-ins is 2 * 10^N - 1 whatever the digits are, so that the answers are
        complements of each other too (`complement_answers`).
        """
        return type(self)(9 - self.a, 9 - self.b, 1 - self.carry)

    def texts(self) -> list[str]:
        """`123+456`, or `123+456+1` with a carry-in; leading zeros are kept, so every operand shows N digits."""
        return [
            f"{first}{self.sign}{second}{self.sign + '1' if carry else ''}"
            for first, second, carry in zip(
                digit_strings(self.a), digit_strings(self.b), self.carry.tolist(), strict=True
            )
        ]

    @classmethod
    def cat(cls, parts: "Iterable[Self]") -> Self:
        parts = list(parts)
        return cls(
            torch.cat([part.a for part in parts]),
            torch.cat([part.b for part in parts]),
            torch.cat([part.carry for part in parts]),
        )

    @staticmethod
    def parse(texts: list[str], digits: int | None = None) -> "Problems":
        """Read problems as people type them; operands are padded with leading zeros to one length.

        digits: that length; by default the longest operand's. Raises InputError naming the first text that is not
        `a+b` or `a+b+1` in non-negative decimal integers, or is longer than `digits`.
        """
        operands = [_operands(text) for text in texts]
        longest = max((len(operand) for row in operands for operand in row[:2]), default=1)
        digits = longest if digits is None else digits
        if longest > digits:
            raise InputError(f"an operand has {longest} digits, more than {digits}")
        return Problems(
            digit_tensor([row[0] for row in operands], digits),
            digit_tensor([row[1] for row in operands], digits),
            torch.tensor([row[2] for row in operands], dtype=torch.int64),
        )


def complement_answers(answers: Tensor) -> Tensor:
    """Answers `[B, N+1]` -> what answers to the complements of the same problems must be; its own inverse.

    9 - digit, and 1 - digit in front, where only 0 and 1 occur; other digits there give no digit.
    """
    return torch.cat([1 - answers[:, :1], 9 - answers[:, 1:]], dim=1)


def problem_digits(text: str) -> int:
    """N of a problem as typed: the longer operand without its leading zeros, at least 1. InputError as in `parse`."""
    first, second, _ = _operands(text)
    return max(len(first), len(second))


def digit_strings(digits: Tensor) -> list[str]:
    """`[B, N]` digits -> B strings of N characters."""
    rows = (digits.to(torch.uint8).cpu() + ord("0")).numpy()
    return [row.tobytes().decode("ascii") for row in rows]


def draw_problems(digits: int, count: int, generator: torch.Generator, hard_share: float = 0.0) -> Problems:
    """Draw `count` problems of `digits` digits.

    Uniform digits almost never carry far, and people type more than uniform digits, so a share `hard_share` of the rows
    is drawn from two other families (no labels are needed for either), `CHAINS` of it from the first:

    - carry chains, through which a carry runs as far as there is one: in half of them columns add up to nine with a
      probability that is uniform per row, in the other half one run of columns does, of any length and anywhere, since
      long runs are nearly never drawn column by column, and what is never drawn is never learned. Half of these runs
      repeat one pair of digits, as people's do: 9999+1, 4444+5556. A quarter of the runs leave only the last column,
      and a quarter of the pairs are 9 and 0: of 9...9+1, which people like best, there would be none in a whole round;
    - short operands: one operand starts with a uniform number of zeros, as `12345+00067`.

    The carry-in is 0 or 1 with equal probability everywhere.
    """
    shape = (count, digits)
    a = torch.randint(0, 10, shape, generator=generator)
    b = torch.randint(0, 10, shape, generator=generator)
    carry = torch.randint(0, 2, (count,), generator=generator)
    family = torch.rand(count, generator=generator)
    chain_rate = torch.rand(count, 1, generator=generator)
    chained = torch.rand(shape, generator=generator) < chain_rate
    zeros = torch.randint(0, digits, (count, 1), generator=generator)
    first_is_short = torch.rand(count, 1, generator=generator) < 0.5
    run = run_of_columns(digits, count, generator)
    is_one_run = torch.rand(count, 1, generator=generator) < 0.5
    repeated = torch.randint(0, 20, (count, 1), generator=generator)
    # Not drawn for uniform digits, so that those of an evaluation stay the same.
    if hard_share > 0:
        run = torch.where(_some(count, generator), torch.arange(digits) < digits - 1, run)
        repeated = torch.where((repeated < 10) & _some(count, generator), 9, repeated)
    chained = torch.where(is_one_run, run, chained)

    chain_share = hard_share * CHAINS
    is_chain = (family < chain_share).unsqueeze(1)
    a = torch.where(is_chain & is_one_run & run & (repeated < 10), repeated, a)
    b = torch.where(is_chain & chained, 9 - a, b)
    is_short = ((family >= chain_share) & (family < hard_share)).unsqueeze(1)
    blank = is_short & (torch.arange(digits) < zeros)
    a = a.masked_fill(blank & first_is_short, 0)
    b = b.masked_fill(blank & ~first_is_short, 0)
    return Problems(a, b, carry)


def _some(count: int, generator: torch.Generator) -> Tensor:
    """`[B, 1]` bool: a quarter of the rows."""
    return torch.rand(count, 1, generator=generator) < 0.25


def run_of_columns(digits: int, count: int, generator: torch.Generator) -> Tensor:
    """`[B, N]` bool: one run of columns a row, of any length from 1 to N and anywhere."""
    length = torch.randint(1, digits + 1, (count, 1), generator=generator)
    start = (torch.rand(count, 1, generator=generator) * (digits - length + 1)).long()
    columns = torch.arange(digits)
    return (start <= columns) & (columns < start + length)


def batches(problems: AnyBatch, size: int) -> Iterator[AnyBatch]:
    """Consecutive slices of at most `size` problems."""
    for start in range(0, len(problems), size):
        yield problems[start : start + size]


def _operands(text: str) -> tuple[str, str, int]:
    match = PROBLEM_PATTERN.fullmatch(text)
    if match is None:
        raise InputError(f"{text.strip()!r} is not a problem; write two non-negative integers as 123+456 or 123+456+1")
    carry = match[3] is not None and "1" in match[3]
    return match[1].lstrip("0") or "0", match[2].lstrip("0") or "0", int(carry)


def digit_tensor(numbers: list[str], digits: int) -> Tensor:
    """Decimal strings of at most N = `digits` characters -> `[B, N]` digits, with leading zeros."""
    text = "".join(number.zfill(digits) for number in numbers).encode("ascii")
    flat = torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)
    return flat.to(torch.int64).sub_(ord("0")).view(len(numbers), digits)


def plain_decimals(answers: Tensor) -> list[str]:
    """`[B, N+1]` digits as people write them, without leading zeros."""
    return [text.lstrip("0") or "0" for text in digit_strings(answers)]
