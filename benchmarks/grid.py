"""A grid of runs: which settings are crossed with which, from a TOML file.

title = "Vote x commutativity"
seeds = [0, 1, 2]

[settings]                      # of every cell, as in the TOML file of a run
until = 29

[axes.vote]                     # axes are crossed: a cell for every choice of values
on = { filter.vote = "majority" }
off = { filter.vote = "off" }

[cells.supervised]              # and cells of their own, beside the crossed ones
until = 6
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from sector.engine.config import MAX_DIGITS, Count, Settings, merged, read_config, run_config, validated
from sector.engine.errors import InputError

# Names become directories.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")

Table = dict[str, Any]


class GridConfig(Settings):
    """A grid file."""

    title: str = ""
    """What the grid asks, in a line."""
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)
    """Every cell is run with each of them."""
    samples: Count = 200
    """Problems a length when a finished run is evaluated."""
    longest: Annotated[int, Field(ge=1, le=MAX_DIGITS)] = 29
    """The evaluation asks for 1 digit to so many, whatever a cell was trained on."""
    settings: Table = {}
    """Of every cell."""
    axes: dict[str, dict[str, Table]] = {}
    """Named values of named axes; each is a table of settings."""
    cells: dict[str, Table] = {}
    """Cells of their own, each a table of settings."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination of settings. name: fit for a directory. settings: nested, as in the TOML file of a run."""

    name: str
    settings: Table

    def of_seed(self, seed: int) -> Table:
        """The settings of one run."""
        return {**self.settings, "seed": seed}


@dataclass(frozen=True, slots=True)
class Grid:
    """Cells, every one of which is known to be a run that can be started."""

    title: str
    seeds: list[int]
    cells: list[Cell]
    samples: int
    longest: int

    def runs(self) -> Iterator[tuple[Cell, int]]:
        """A seed of all cells before the next, so that an unfinished grid compares like with like."""
        for seed in self.seeds:
            for cell in self.cells:
                yield cell, seed


def read_grid(path: Path) -> Grid:
    """InputError names the first cell at fault and what is wrong with it, before anything runs."""
    grid = validated(GridConfig, read_config(path), str(path))
    cells = _cells(grid, path)
    if not cells:
        raise InputError(f"{path} has no cells; write [axes.NAME] or [cells.NAME]")
    for cell in cells:
        for seed in grid.seeds:
            _check(cell, seed, path)
    return Grid(grid.title or path.stem, list(dict.fromkeys(grid.seeds)), cells, grid.samples, grid.longest)


def _cells(grid: GridConfig, path: Path) -> list[Cell]:
    """The crossed cells, `AXIS-VALUE_AXIS-VALUE`, then those of their own."""
    for name in [*grid.axes, *(value for axis in grid.axes.values() for value in axis), *grid.cells]:
        if not _NAME.fullmatch(name):
            raise InputError(f"{path}: {name!r} cannot name a directory; use letters, digits, '.' and '-'")
    crossed = product(*([(axis, *value) for value in values.items()] for axis, values in grid.axes.items()))
    named = [] if not grid.axes else [_crossed(choice) for choice in crossed]
    named += [Cell(name, settings) for name, settings in grid.cells.items()]
    return [Cell(cell.name, merged(grid.settings, cell.settings)) for cell in named]


def _crossed(choice: tuple[tuple[str, str, Table], ...]) -> Cell:
    """The cell of one value an axis."""
    name = "_".join(f"{axis}-{value}" for axis, value, _ in choice)
    empty: Table = {}
    return Cell(name, reduce(merged, (settings for _, _, settings in choice), empty))


def _check(cell: Cell, seed: int, path: Path) -> None:
    if "seed" in cell.settings:
        raise InputError(f"{path}: cell {cell.name}: seeds stand in `seeds`, for all cells alike")
    run_config(cell.of_seed(seed), f"{path}: cell {cell.name}")
