"""Rows of a batch: cutting it into jobs."""

from collections.abc import Sequence

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


def rows_of(branches: Sequence[Branch], rows: slice | Tensor) -> list[Branch]:
    """Return the branches of some rows of a batch: a slice, numbers of rows, or `[B]` bool."""
    return [
        Branch(branch.mark[rows], branch.length, None if branch.draft is None else branch.draft[rows])
        for branch in branches
    ]
