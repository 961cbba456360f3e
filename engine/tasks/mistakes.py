"""How an answer goes wrong: what kind of mistake, as one works from the last column to the first.

Knows no truth: whoever asks brings it, and that is what a task keeps behind the oracle's door. In the shape
descriptions B is the batch and W the digits of an answer.
"""

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor


class Mistake(StrEnum):
    """What is wrong with an output; `RIGHT` is no mistake.

    UNPARSABLE: not what was asked for at all. WRONG_LENGTH: well-formed, but for the count of its digits.
    COPIED: a digit of the remaining problem is not the prompt's (slow policy only). CARRY_MISSED: a column without the
    carry (or borrow) that runs into it. CARRY_INVENTED: one with a carry that does not. ADDED: a column that is wrong
    otherwise.
    """

    RIGHT = "right"
    UNPARSABLE = "unparsable"
    WRONG_LENGTH = "wrong_length"
    COPIED = "copied"
    CARRY_MISSED = "carry_missed"
    CARRY_INVENTED = "carry_invented"
    ADDED = "added"


_ORDER = tuple(Mistake)


def in_columns(answers: Tensor, truth: Tensor, carries: Tensor, sign: int = 1) -> list[Mistake]:
    """The first mistake of each of the answers `[B, W]`, beginning at the last digit.

    truth: `[B, W]` the true ones. carries: `[B, W]` what truly runs into each column; sign: -1 if it is taken away.
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
    """The kinds of rows that parse `[B]`; of the others whether they are of the right shape, but for their length."""
    unread = [Mistake.WRONG_LENGTH if shape else Mistake.UNPARSABLE for shape in well_formed]
    return [kind if ok else other for kind, ok, other in zip(kinds, valid.tolist(), unread, strict=True)]


def tally(kinds: list[Mistake]) -> dict[str, int]:
    """How many of each kind, every kind named."""
    counts = Counter(kinds)
    return {kind.value: counts[kind] for kind in Mistake}


def index_of(kind: Mistake) -> int:
    """A kind as a number, for tensors."""
    return _ORDER.index(kind)


def by_index(kinds: Tensor) -> list[Mistake]:
    """Kinds `[B]` by number, as `index_of` gives them."""
    return [_ORDER[kind] for kind in kinds.tolist()]
