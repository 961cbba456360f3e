"""How an answer goes wrong: what kind of mistake, as one adds from the last column to the first.

Knows no sum: whoever asks brings the true answers and carries, and that is the audit. In the shape descriptions B is
the batch and N the digits per operand.
"""

import re
from collections import Counter
from enum import StrEnum

import torch
from torch import Tensor

from sector.engine import policy, tokens
from sector.engine.policy import Layout, Simplifications
from sector.engine.problem import Problems


class Mistake(StrEnum):
    """What is wrong with an output; `RIGHT` is no mistake.

    UNPARSABLE: not what was asked for at all. WRONG_LENGTH: well-formed, but for the count of its digits.
    COPIED: a digit of the remaining problem is not the prompt's (slow policy only). CARRY_MISSED: a column without the
    carry that runs into it. CARRY_INVENTED: one with a carry that does not. ADDED: a column that is wrong otherwise.
    """

    RIGHT = "right"
    UNPARSABLE = "unparsable"
    WRONG_LENGTH = "wrong_length"
    COPIED = "copied"
    CARRY_MISSED = "carry_missed"
    CARRY_INVENTED = "carry_invented"
    ADDED = "added"


# Classes of ids as letters, so that shapes of outputs are patterns.
_LETTERS = "d" * tokens.NUM_DIGITS + ")cc" + "E"
_ANSWER = re.compile(r"d+(E_*)?")
_SIMPLIFICATION = re.compile(r"d+\)&d+\)cd?E?_*")


def in_answers(answers: Tensor, truth: Tensor, carries: Tensor) -> list[Mistake]:
    """The first mistake of each of the answers `[B, N+1]`, beginning at the last digit.

    truth: `[B, N+1]` the sums. carries: `[B, N]` the true carry into each column.
    """
    # The leading digit is the carry out of the first column, and nothing else.
    carries = torch.cat([truth[:, :1], carries], dim=1)
    wrong = answers != truth
    column = wrong.shape[1] - 1 - wrong.flip(1).long().argmax(dim=1, keepdim=True)
    off = ((answers - truth) % 10).gather(1, column).squeeze(1)
    carry = carries.gather(1, column).squeeze(1)
    kinds = torch.full_like(off, _index(Mistake.ADDED))
    kinds[(off == 9) & (carry == 1)] = _index(Mistake.CARRY_MISSED)
    kinds[(off == 1) & (carry == 0)] = _index(Mistake.CARRY_INVENTED)
    kinds[~wrong.any(dim=1)] = _index(Mistake.RIGHT)
    return _mistakes(kinds)


def in_answer_ids(ids: Tensor, truth: Tensor, carries: Tensor, layout: Layout) -> list[Mistake]:
    """The same of what the fast policy wrote, ids `[B, N+2]`."""
    answers, valid = policy.parse_answers(ids, truth.shape[1] - 1, layout)
    kinds = in_answers(answers, truth, carries)
    return [kind if ok else _shape(row, _ANSWER) for kind, ok, row in zip(kinds, valid.tolist(), ids, strict=True)]


def in_simplification_ids(
    ids: Tensor, problems: Problems, truth: Tensor, carries: Tensor, layout: Layout
) -> list[Mistake]:
    """The first mistake of each simplification, ids `[B, 2N+4]`, in the order in which it is written."""
    said = policy.parse_simplifications(ids, problems.digits, layout)
    kinds = _in_simplifications(said, problems, truth, carries)
    return [
        kind if ok else _shape(row, _SIMPLIFICATION)
        for kind, ok, row in zip(kinds, said.valid.tolist(), ids, strict=True)
    ]


def tally(kinds: list[Mistake]) -> dict[str, int]:
    """How many of each kind, every kind named."""
    counts = Counter(kinds)
    return {kind.value: counts[kind] for kind in Mistake}


def _in_simplifications(said: Simplifications, problems: Problems, truth: Tensor, carries: Tensor) -> list[Mistake]:
    copied = (said.rest.a == problems.a[:, :-1]) & (said.rest.b == problems.b[:, :-1])
    # The remaining problem receives the carry into its last column.
    carry = carries[:, -2]
    kinds = torch.full_like(said.digit, _index(Mistake.RIGHT))
    kinds[said.digit != truth[:, -1]] = _index(Mistake.ADDED)
    kinds[said.rest.carry < carry] = _index(Mistake.CARRY_MISSED)
    kinds[said.rest.carry > carry] = _index(Mistake.CARRY_INVENTED)
    kinds[~copied.all(dim=1)] = _index(Mistake.COPIED)
    return _mistakes(kinds)


def _shape(ids: Tensor, pattern: re.Pattern[str]) -> Mistake:
    """Of an output that does not parse: is it of the right shape, but for its length?"""
    letters = "".join(_letter(each) for each in tokens.class_of(ids).tolist())
    return Mistake.WRONG_LENGTH if pattern.fullmatch(letters) else Mistake.UNPARSABLE


def _letter(token_class: int) -> str:
    if token_class < len(_LETTERS):
        return _LETTERS[token_class]
    return "&" if tokens.JOIN <= token_class < tokens.JOIN + tokens.NUM_SHIFTS else "_"


_ORDER = tuple(Mistake)


def _index(kind: Mistake) -> int:
    return _ORDER.index(kind)


def _mistakes(kinds: Tensor) -> list[Mistake]:
    return [_ORDER[kind] for kind in kinds.tolist()]
