"""Kinds of mistakes in answers and simplifications, found from the last column to the first.

This module knows no truth: callers pass it in, and only the sealed truth of a task has it. In the shape descriptions B
is the batch and W the digits of an answer.
"""

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor


class Mistake(StrEnum):
    """Kind of the first mistake in an output."""

    RIGHT = "right"
    """No mistake."""
    UNPARSABLE = "unparsable"
    """The output has not the form of a completion."""
    WRONG_LENGTH = "wrong_length"
    """The output is well-formed, but a number has the wrong length."""
    COPIED = "copied"
    """A digit of the remaining problem differs from the prompt's (slow policy only)."""
    CARRY_MISSED = "carry_missed"
    """A column lacks the carry (or borrow) that runs into it."""
    CARRY_INVENTED = "carry_invented"
    """A column has a carry (or borrow) that does not run into it."""
    ADDED = "added"
    """A column is wrong in another way."""


_ORDER = tuple(Mistake)


def in_columns(answers: Tensor, truth: Tensor, carries: Tensor, sign: int = 1) -> list[Mistake]:
    """Return the first mistake of each answer `[B, W]`, from the last digit on.

    truth: `[B, W]` true answers.
    carries: `[B, W]` true carry into each column.
    sign: 1 if carries are added, -1 if they are subtracted (borrows).
    """
    wrong = answers != truth
    column = wrong.shape[1] - 1 - wrong.flip(1).long().argmax(dim=1, keepdim=True)
    off = ((answers - truth) % 10).gather(1, column).squeeze(1)
    carry = carries.gather(1, column).squeeze(1)
    kinds = torch.full_like(off, index_of(Mistake.ADDED))
    kinds[(off == (-sign * carry) % 10) & (carry > 0)] = index_of(Mistake.CARRY_MISSED)
    kinds[(off == sign % 10) & (carry == 0)] = index_of(Mistake.CARRY_INVENTED)
    kinds[~wrong.any(dim=1)] = index_of(Mistake.RIGHT)
    return by_index(kinds)


def where_parsed(kinds: list[Mistake], valid: Tensor, well_formed: Sequence[bool]) -> list[Mistake]:
    """Return the mistakes of outputs; rows that do not parse get one of two kinds of their own.

    kinds: mistakes of the rows, as if all parsed.
    valid: `[B]` bool, which rows parse; the others are UNPARSABLE or of WRONG_LENGTH.
    well_formed: which rows have the right token pattern, ignoring the lengths of numbers.
    """
    unparsed = [Mistake.WRONG_LENGTH if shape else Mistake.UNPARSABLE for shape in well_formed]
    return [kind if parsed else other for kind, parsed, other in zip(kinds, valid.tolist(), unparsed, strict=True)]


def tally(kinds: list[Mistake]) -> dict[str, int]:
    """Count the mistakes of each kind; kinds without any have the count 0."""
    counts = Counter(kinds)
    return {kind.value: counts[kind] for kind in Mistake}


def index_of(kind: Mistake) -> int:
    """Return the number that stands for a kind of mistake in tensors."""
    return _ORDER.index(kind)


def by_index(kinds: Tensor) -> list[Mistake]:
    """Return the kinds of mistakes with these numbers `[B]`; inverse of `index_of`."""
    return [_ORDER[kind] for kind in kinds.tolist()]
