"""True sums: the one module that knows them, behind the door of rule 1 (mission: label-free).

Only the supervised phase (`supervised.py`) and the audit (`audit.py`) import it. A self-training round runs inside
`sealed()`, where every function here raises, so that no true sum can reach the weights, the filter, the curriculum or
the stopping rule.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sector.engine.problem import Problems

_seals = 0


class OracleSealed(RuntimeError):
    """A true sum was asked for inside a self-training round."""


@contextmanager
def sealed() -> Iterator[None]:
    """Within this context every true sum raises OracleSealed."""
    global _seals
    _seals += 1
    try:
        yield
    finally:
        _seals -= 1


def is_sealed() -> bool:
    """Are true sums out of reach just now?"""
    return _seals > 0


def true_answers(problems: Problems) -> Tensor:
    """The sums, `[B, N+1]` digits, most significant first."""
    digits, _ = _add(problems)
    return digits


def true_carries(problems: Problems) -> Tensor:
    """The carry into each column, `[B, N]`: column i receives carry i; the last column receives the carry-in."""
    _, carries = _add(problems)
    return carries


def _add(problems: Problems) -> tuple[Tensor, Tensor]:
    """School addition, one column a step: digits `[B, N+1]` and carries into the columns `[B, N]`."""
    if _seals:
        raise OracleSealed("true sums are sealed during self-training (rule 1: label-free)")
    carry = problems.carry
    digits, carries = [], []
    for column in reversed(range(problems.digits)):
        carries.append(carry)
        total = problems.a[:, column] + problems.b[:, column] + carry
        digits.append(total % 10)
        carry = total // 10
    digits.append(carry)
    return torch.stack(digits[::-1], dim=1), torch.stack(carries[::-1], dim=1)
