"""Products: problems `a*b+c`, where a has W digits, b has M, and the carried-along c has W; and their steps as numbers.

In the shape descriptions B is the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from sector.engine.errors import InputError
from sector.engine.language.number_layout import NumberLayout
from sector.engine.language.operands import digit_strings
from sector.engine.language.rows import RowRecord
from sector.engine.language.writing import Writing, Written


class Size(NamedTuple):
    """Size of a product.

    width: W, the digits of the multiplicand.
    digits: M, the digits of the multiplier.
    """

    width: int
    digits: int


@dataclass(frozen=True, slots=True)
class Products(RowRecord):
    """Problems `a*b+c`; all digits are stored most significant first.

    a: `[B, W]` digits of the multiplicand.
    b: `[B, M]` digits of the multiplier.
    c: `[B, W]` digits of the carried-along number.
    work: `[B, 5W+1]` numbers that the previous step wrote before c: tens `[B, W]`, units `[B, W]`, carries `[B, W]`,
        a*d `[B, W+1]` and carries `[B, W]`. Zeros before the first step.
    """

    task: ClassVar[str] = "multiplication"

    a: Tensor
    b: Tensor
    c: Tensor
    work: Tensor

    def __len__(self) -> int:
        return len(self.a)

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.a.device

    @property
    def size(self) -> Size:
        """W and M, by which a layout reads completions."""
        return Size(self.a.shape[1], self.b.shape[1])

    @property
    def digits(self) -> int:
        """M, the number of simplifications to the end."""
        return self.b.shape[1]

    @property
    def answer_width(self) -> int:
        """W+M, the digits of an answer."""
        return sum(self.size)

    @property
    def is_nothing(self) -> bool:
        """Whether the batch stands for no problems, because nothing was simplified."""
        return self.a.shape[1] == 0

    def swapped(self) -> Self:
        """Return `b*a`. Both factors must have the same length, as in all drawn problems."""
        return type(self)(self.b, self.a, self.c, self.work)

    def without_digits(self) -> "Products":
        """Return as many problems of no digits: the rest where nothing was simplified."""
        return first_step(self.a[:, :0], self.b[:, :0])

    def texts(self) -> list[str]:
        """Return the problems as `12*34+00`, followed by `~00,48,00,048,00` if there is work of a previous step."""
        numbers = (self.a, self.b, self.c, *split_work(self.work))
        texts = []
        for a, b, c, *work in zip(*(digit_strings(number) for number in numbers), strict=True):
            has_work = any(number.strip("0") for number in work)
            texts.append(f"{a}*{b}+{c}~{','.join(work)}" if has_work else f"{a}*{b}+{c}")
        return texts


class ProductWriting(Writing[Products, Size]):
    """Form of products and their steps.

    The multiplier has a zero in front, and its most significant digit first in either order: the digit that a step
    takes off is then the last, and the other digits keep their places.
    """

    problem = (Written(""), Written("*", in_order=False), Written("+"))
    step = (
        Written(""),
        *(Written(mark) for mark in (",", ",", ",", ",", ":")),
        Written("|", in_order=False),
        Written("*"),
    )

    def problem_numbers(self, problems: Products) -> tuple[Tensor, ...]:
        """Return the digits of a, 0b and c."""
        return problems.a, with_leading_zero(problems.b), problems.c

    def step_numbers(self, rest: Products, digit: Tensor) -> tuple[Tensor, ...]:
        """Return the digits of five numbers of work, of c + a*d, of 0b' and of a."""
        total = torch.cat([rest.c, digit.unsqueeze(1)], dim=1)
        return *split_work(rest.work), total, with_leading_zero(rest.b), rest.a

    def step_widths(self, size: Size) -> list[int]:
        """Return the digits of each number of a step."""
        return [*work_widths(size.width), size.width + 1, size.digits, size.width]

    def answer_width(self, size: Size) -> int:
        """Return W+M."""
        return sum(size)

    def read_problem(self, numbers: Sequence[Tensor]) -> Products:
        """Return the problems with these numbers.

        Raise InputError if their widths do not fit, or 0b has no zero in front.
        """
        a, padded, c = numbers
        if a.shape != c.shape or padded[:, :1].any():
            raise InputError("a product of a chain is a*0b+c, where c has the digits of a; write 12*034+56")
        return replace(first_step(a, padded[:, 1:]), c=c)

    def read_step(self, numbers: Sequence[Tensor], size: Size) -> tuple[Products, Tensor]:
        """Return remaining problems and digits `[B]` from the numbers of steps."""
        *work, total, padded, a = numbers
        return Products(a, padded[:, 1:], total[:, :-1], torch.cat(work, dim=1)), total[:, -1]


@dataclass(frozen=True, slots=True)
class ProductLayout(NumberLayout[Products, Size]):
    """Layout of products as place-coupled ids, as `tasks/multiplication.py` shows."""

    def beginning_length(self, size: Size, /) -> int:
        """Return the length of `< a ) +`, which no simplification changes."""
        return size.width + 3


def work_widths(width: int) -> tuple[int, ...]:
    """Return the digits of the numbers of work: tens, units, carries, a*d, carries."""
    return width, width, width, width + 1, width


def split_work(work: Tensor) -> tuple[Tensor, ...]:
    """Split work `[B, 5W+1]` into its five numbers."""
    return work.split(work_widths(work.shape[1] // 5), dim=1)


def first_step(a: Tensor, b: Tensor) -> Products:
    """Return problems at the beginning of a chain: c and the work are 0."""
    return Products(a, b, torch.zeros_like(a), a.new_zeros(len(a), sum(work_widths(a.shape[1]))))


def with_leading_zero(digits: Tensor) -> Tensor:
    """Return numbers with a zero in front; so a used-up multiplier is still a number."""
    return torch.nn.functional.pad(digits, (1, 0))
