"""Examples of a data set in parts, as sets for training; a set too large for memory passes by in windows.

Windows are consecutive parts of at most `WINDOW_ROWS` rows together, one after another, again and again. In a window
the rows come in random order, each once. A set that fits in one window is in memory, and is drawn from as one file is.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import torch

from sector.engine.config import WINDOW_ROWS
from sector.engine.language.examples import Examples
from sector.engine.seeding import generator
from sector.engine.training.dataset import read_sets
from sector.engine.training.locations import Location


class ExampleStream:
    """Examples of one size that are on disk, but for one window of them.

    digits: N of the problems.
    task: name of their task.
    """

    def __init__(self, task: str, size: tuple[int, Any], windows: Sequence[dict[Location, int]]) -> None:
        """Describe a stream; no rows are read.

        size: length and size of the problems, as in `read_sets`.
        windows: count of rows by part, for each window.
        """
        self._size, self._windows = size, windows
        self._rows = [sum(window.values()) for window in windows]
        self._held: tuple[tuple[int, int], Examples] | None = None
        self.digits, self.task = size[0], task

    def __len__(self) -> int:
        return sum(self._rows)

    def shard(self, turn: int, rows: int, seed: int) -> Examples:
        """Return the rows of a turn, which depend on the arguments alone; the last turn of a window repeats some.

        turn: number of the turn, from 0 on. Turns in order read each part once a pass.
        rows: rows of a turn, the same in all turns.
        seed: seed of the order of the rows.
        """
        ends = list(accumulate(-(-count // rows) for count in self._rows))
        passes, turn = divmod(turn, ends[-1])
        window = next(index for index, end in enumerate(ends) if turn < end)
        place = torch.arange(rows) + rows * (turn - (ends[window - 1] if window else 0))
        return self._shuffled(window, passes, seed)[place % self._rows[window]]

    def _shuffled(self, window: int, passes: int, seed: int) -> Examples:
        """Return the rows of a window in the order of a pass."""
        if self._held is None or self._held[0] != (window, passes):
            # Two windows at a time would take twice the memory.
            self._held = None
            order = torch.randperm(self._rows[window], generator=generator(seed, "window", passes, window))
            self._held = (window, passes), self.read(window)[order]
        return self._held[1]

    def read(self, window: int) -> Examples:
        """Read the rows of a window. Raise InputError if a file is damaged."""
        return Examples.cat(read_sets(path)[self._size] for path in self._windows[window])


def read_parts(paths: Iterable[Location], window_rows: int | None = None) -> list[Examples | ExampleStream]:
    """Read the examples of all parts, as one set for each size, smallest first.

    A set with more rows than a window becomes a stream. All rows are read once, to check them. Raise InputError if a
    file is not readable or a row does not fit.

    window_rows: most rows of a window; None for WINDOW_ROWS.
    """
    window_rows = window_rows or WINDOW_ROWS
    counts: dict[tuple[int, Any], dict[Location, int]] = {}
    task = ""
    for path in paths:
        for size, examples in read_sets(path).items():
            counts.setdefault(size, {})[path] = len(examples)
            task = examples.task
    streams = [ExampleStream(task, size, _windows(counts[size], window_rows)) for size in sorted(counts)]
    return [stream if len(stream) > window_rows else stream.read(0) for stream in streams]


def _windows(counts: dict[Location, int], window_rows: int) -> list[dict[Location, int]]:
    """Return consecutive parts together, as many as have at most `window_rows` rows; a larger part is alone."""
    windows: list[dict[Location, int]] = [{}]
    for path, count in counts.items():
        if windows[-1] and sum(windows[-1].values()) + count > window_rows:
            windows.append({})
        windows[-1][path] = count
    return windows
