"""Rows of a batch: cutting it into jobs, and its branches."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from sector.engine.samplers.protocol import Branch


def cut(count: int, limit: int, multiple: int = 1) -> list[slice]:
    """Cut `count` rows into slices of about equal size, at most `limit`.

    The number of slices is a multiple of `multiple` if there are enough rows.
    """
    number = -(-count // max(1, limit))
    number += -number % multiple
    size = -(-count // number)
    return [slice(start, start + size) for start in range(0, count, size)]


def no_rows(prefix: Tensor, branches: Sequence[Branch]) -> list[Tensor]:
    """Return the outputs `[0, length]` of a batch without rows."""
    return [prefix.new_empty(0, branch.length) for branch in branches]


def without_drafts(branches: Sequence[Branch]) -> list[Branch]:
    """Return the branches, of which each token is to be generated."""
    return [replace(branch, draft=None) for branch in branches]


def rows_of(branches: Sequence[Branch], rows: slice | Tensor) -> list[Branch]:
    """Return the branches of some rows of a batch: a slice, numbers of rows, or `[B]` bool."""
    return [
        Branch(branch.mark[rows], branch.length, None if branch.draft is None else branch.draft[rows])
        for branch in branches
    ]
