"""A budget of time for a grid: which of its unfinished runs fit, in their order, and which are left out.

A run is expected to take as long as the finished runs of its cell, or of the grid if its cell has none. Nothing is
known before the first run of a grid is over, so that one is started in any case.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from sector.benchmarks.grid import Cell, Grid
from sector.benchmarks.grid_runs import is_over, outcomes, run_root
from sector.engine.errors import InputError
from sector.engine.run.directory import RunDir
from sector.engine.run.records import Damaged

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_UNITS = (3600.0, 60.0, 1.0)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A run that does not fit in the rest of the budget.

    seconds: expected duration of the run, without the part that is done.
    left: seconds of the budget that are left.
    """

    seconds: float
    left: float


@dataclass(frozen=True, slots=True)
class Planned:
    """An unfinished run of a grid.

    cell: cell of the run.
    seed: seed of the run.
    seconds: expected duration, without the part that is done; None before any run of the grid is over.
    fits: whether it fits in the budget after the runs before it that fit.
    """

    cell: Cell
    seed: int
    seconds: float | None
    fits: bool


class Budget:
    """Time for a grid, from now on."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the clock. `clock` returns seconds."""
        self._clock, self._end = clock, clock() + seconds

    def leaves_out(self, grid: Grid, out: Path, cell: Cell, seed: int) -> LeftOut | None:
        """Return the figures of a run that does not fit in the rest of the budget; None if it fits."""
        left = max(0.0, self._end - self._clock())
        seconds = expected_seconds(grid, out, cell, seed)
        if seconds is None:
            return None
        return None if seconds <= left else LeftOut(seconds, left)


def plan_runs(grid: Grid, out: Path, seconds: float) -> Iterator[Planned]:
    """Yield the unfinished runs of a grid in their order, with their part in a budget of `seconds`."""
    left = seconds
    for cell, seed in grid.runs():
        if is_over(RunDir(run_root(out, cell, seed)), grid):
            continue
        expected = expected_seconds(grid, out, cell, seed)
        fits = (expected or 0.0) <= left
        left -= (expected or 0.0) if fits else 0.0
        yield Planned(cell, seed, expected, fits)


def expected_seconds(grid: Grid, out: Path, cell: Cell, seed: int) -> float | None:
    """Return how long a run is expected to take from now on; None before any run of the grid is over."""
    known = _durations(grid, out, [cell]) or _durations(grid, out, grid.cells)
    if not known:
        return None
    return max(0.0, fmean(known) - _spent(RunDir(run_root(out, cell, seed))))


def seconds_of(duration: str) -> float:
    """Return the seconds of a duration such as `2h`, `90m` or `1h30m`. Raise InputError for other texts."""
    match = _DURATION.fullmatch(duration.strip())
    seconds = sum(unit * float(part or 0) for unit, part in zip(_UNITS, match.groups(), strict=True)) if match else 0.0
    if not seconds:
        raise InputError(f"--budget {duration!r} is no duration; write it as 2h, 90m or 1h30m")
    return seconds


def _durations(grid: Grid, out: Path, cells: list[Cell]) -> list[float]:
    """Return the durations of the finished runs of some cells, in seconds."""
    return [outcome.seconds for cell in cells for outcome in outcomes(out, cell, grid.seeds)]


def _spent(run: RunDir) -> float:
    """Return the seconds of the phases that are done; of a damaged run none count, since it may be mended first."""
    try:
        return sum(line.seconds_total for line in run.metrics()[-1:])
    except Damaged:
        return 0.0
