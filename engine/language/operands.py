"""Problems `a+b` and `a+b+1` as batches of digit tensors: draw, swap, read and write them.

In the shape descriptions B is the batch of problems and N the digits per operand. Digits are stored most significant
first; a layout puts them in the model's order (`place_layout.py`). No function here computes a sum.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sector.engine.errors import InputError
from sector.engine.language.rows import RowRecord

if TYPE_CHECKING:
    from sector.engine.language.layout import Batch

AnyBatch = TypeVar("AnyBatch", bound="Batch")

# Share of the hard problems that are carry chains. A carry missed in a long chain is the error that passes all checks.
CHAINS = 2 / 3


@dataclass(frozen=True, slots=True)
class Problems(RowRecord):
    """A batch of sums of one length; derived classes are other tasks with two operands and a carry.

    task: name of the task.
    sign: sign between the operands in text.
    example: a problem as typed, for messages.
    a: `[B, N]` int64 digits of the first operand, most significant first.
    b: `[B, N]` int64 digits of the second operand.
    carry: `[B]` int64 carry-in, 0 or 1.
    """

    task: ClassVar[str] = "addition"
    sign: ClassVar[str] = "+"
    example: ClassVar[str] = "123+456"

    a: Tensor
    b: Tensor
    carry: Tensor

    def __post_init__(self) -> None:
        if self.a.ndim != 2 or self.a.shape != self.b.shape or self.carry.shape != self.a.shape[:1]:
            raise ValueError(
                f"operands must be [B, N] and the carry [B]; got {tuple(self.a.shape)}, {tuple(self.b.shape)}, "
                f"{tuple(self.carry.shape)}"
            )

    def where(self, valid: Tensor) -> Self:
        """Return the problems with zeros in rows that are not valid `[B]`."""
        return type(self)(self.a * valid.unsqueeze(1), self.b * valid.unsqueeze(1), self.carry * valid)

    def __len__(self) -> int:
        return self.a.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.a.device

    @property
    def digits(self) -> int:
        """N, the digits per operand."""
        return self.a.shape[1]

    @property
    def size(self) -> int:
        """N, by which a layout reads completions."""
        return self.digits

    @property
    def answer_width(self) -> int:
        """N+1, the digits of an answer."""
        return self.digits + 1

    @property
    def is_nothing(self) -> bool:
        """Whether the batch stands for no problems, because nothing was simplified."""
        return self.digits == 0

    def without_digits(self) -> Self:
        """Return as many problems of no digits: the rest where nothing was simplified."""
        empty = self.a[:, :0]
        return type(self)(empty, empty, torch.zeros_like(self.carry))

    def with_zeros(self, count: int) -> Self:
        """Return the same problems with `count` zeros in front of each operand: problems of N + `count` digits."""
        return type(self)(F.pad(self.a, (count, 0)), F.pad(self.b, (count, 0)), self.carry)

    def swapped(self) -> Self:
        """Return the problems with swapped operands, `b+a`, for the commutativity check."""
        return type(self)(self.b, self.a, self.carry)

    def complement(self) -> Self:
        """Return the nines' complements: 9 - digit everywhere, and the carry-in flipped. Every carry is flipped too.

        All four operands and both carry-ins add up to 2 * 10^N - 1 for any digits, so the answers are complements of
        each other too (`complement_answers`).
        """
        return type(self)(9 - self.a, 9 - self.b, 1 - self.carry)

    def texts(self) -> list[str]:
        """Return the problems as `123+456`, or `123+456+1` with a carry-in; each operand shows all N digits."""
        return [
            f"{first}{self.sign}{second}{self.sign + '1' if carry else ''}"
            for first, second, carry in zip(
                digit_strings(self.a), digit_strings(self.b), self.carry.tolist(), strict=True
            )
        ]

    @classmethod
    def parse(cls, texts: list[str], digits: int | None = None) -> Self:
        """Parse problems as typed, and pad their operands with leading zeros to one length.

        digits: length of the operands; by default the longest operand's.

        Raise InputError, naming the first such text, unless all texts are problems in non-negative decimal integers.
        Raise InputError if an operand is longer than `digits`.
        """
        rows = [cls.operands_of(text) for text in texts]
        longest = max((len(operand) for a, b, _ in rows for operand in (a, b)), default=1)
        digits = longest if digits is None else digits
        if longest > digits:
            raise InputError(f"an operand has {longest} digits, more than {digits}")
        return cls(
            digit_tensor([a for a, _, _ in rows], digits),
            digit_tensor([b for _, b, _ in rows], digits),
            torch.tensor([carry for _, _, carry in rows], dtype=torch.int64),
        )

    @classmethod
    def operands_of(cls, text: str) -> tuple[str, str, int]:
        """Return the operands of a typed problem, without leading zeros, and its carry-in.

        Raise InputError if it is malformed.
        """
        match = _typed_pattern(cls.sign).fullmatch(text)
        if match is None:
            raise InputError(
                f"{text.strip()!r} is not a problem; write two non-negative integers as {cls.example} or "
                f"{cls.example}{cls.sign}1"
            )
        carry = match[3] is not None and "1" in match[3]
        return match[1].lstrip("0") or "0", match[2].lstrip("0") or "0", int(carry)


@cache
def _typed_pattern(sign: str) -> re.Pattern[str]:
    """Return the pattern of a typed problem: its operands, and its carry-in with the sign."""
    sign = re.escape(sign)
    return re.compile(rf"\s*(\d+)\s*{sign}\s*(\d+)\s*({sign}\s*[01]\s*)?=?\s*", re.ASCII)


def complement_answers(answers: Tensor) -> Tensor:
    """Return the answers that the complements of the problems of `answers [B, N+1]` must have; its own inverse.

    Digits become 9 - digit. The first, which is 0 or 1 in a sum, becomes 1 - digit; other values there give no digit.
    """
    return torch.cat([1 - answers[:, :1], 9 - answers[:, 1:]], dim=1)


def problem_digits(text: str) -> int:
    """Return N of a problem as typed: the length of the longer operand without leading zeros, at least 1.

    Raise InputError as `Problems.parse` does.
    """
    first, second, _ = Problems.operands_of(text)
    return max(len(first), len(second))


def digit_strings(digits: Tensor) -> list[str]:
    """Return `[B, N]` digits as B strings of N characters."""
    rows = (digits.to(torch.uint8).cpu() + ord("0")).numpy()
    return [row.tobytes().decode("ascii") for row in rows]


def draw_problems(digits: int, count: int, generator: torch.Generator, hard_share: float = 0.0) -> Problems:
    """Draw `count` problems of `digits` digits.

    Uniform digits almost never carry far, and users type problems that uniform digits hardly cover. A share
    `hard_share` of the rows is therefore drawn from two other families, `CHAINS` of it from the first. Neither needs
    labels.

    - Carry chains: runs of columns that add up to nine, through which any carry goes on. In half of these rows each
      column adds up to nine with a probability that is uniform per row. In the other half one run of columns does, of
      any length at any place, because column by column long runs are almost never drawn, and never learned. Half of
      the runs repeat one pair of digits, as typed problems do: 9999+1, 4444+5556. A quarter of the runs cover all
      columns but the last, and a quarter of the pairs are 9 and 0. Without these quarters a whole round would hold no
      9...9+1, which users type most.
    - Short operands: one operand starts with a uniform number of zeros, as in `12345+00067`.

    The carry-in is 0 or 1 with equal probability in all rows.
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
    # Drawn only if there are hard rows, so that the uniform problems of an evaluation stay the same.
    if hard_share > 0:
        run = torch.where(_quarter(count, generator), torch.arange(digits) < digits - 1, run)
        repeated = torch.where((repeated < 10) & _quarter(count, generator), 9, repeated)
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


def _quarter(count: int, generator: torch.Generator) -> Tensor:
    """Draw a quarter of the rows, as `[B, 1]` bool."""
    return torch.rand(count, 1, generator=generator) < 0.25


def run_of_columns(digits: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw one run of columns for each row, of any length from 1 to N at any place, as `[B, N]` bool."""
    length = torch.randint(1, digits + 1, (count, 1), generator=generator)
    start = (torch.rand(count, 1, generator=generator) * (digits - length + 1)).long()
    columns = torch.arange(digits)
    return (start <= columns) & (columns < start + length)


def batches(problems: AnyBatch, size: int) -> Iterator[AnyBatch]:
    """Yield consecutive slices of at most `size` problems."""
    for start in range(0, len(problems), size):
        yield problems[start : start + size]


def digit_tensor(numbers: list[str], digits: int) -> Tensor:
    """Return decimal strings of at most N = `digits` characters as `[B, N]` digits, with leading zeros."""
    text = "".join(number.zfill(digits) for number in numbers).encode("ascii")
    flat = torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)
    return flat.to(torch.int64).sub_(ord("0")).view(len(numbers), digits)


def plain_decimals(answers: Tensor) -> list[str]:
    """Return `[B, N+1]` digits as decimal strings without leading zeros."""
    return [text.lstrip("0") or "0" for text in digit_strings(answers)]
