"""A grid of runs: settings that are crossed, read from a TOML file.

title = "Vote x commutativity"
seeds = [0, 1, 2]

[settings]                      # settings of every cell, as in the TOML file of a run
until = 29

[axes.vote]                     # axes are crossed: one cell for each combination of values
on = { filter.vote = "majority" }
off = { filter.vote = "off" }

[cells.supervised]              # single cells, in addition to the crossed ones
until = 6
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Annotated

from pydantic import Field

from sector.engine.api.settings import with_loaded_code
from sector.engine.config import MAX_DIGITS, Count, Settings, merged, read_config, run_config, validated
from sector.engine.errors import InputError

# Names become directories.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")

Table = dict[str, object]


class GridConfig(Settings):
    """A grid file."""

    title: str = ""
    """The question that the grid answers, in one line."""
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)
    """Seeds; every cell is run with each."""
    samples: Count = 200
    """Problems per length in the evaluation of a finished run."""
    longest: Annotated[int, Field(ge=1, le=MAX_DIGITS)] = 29
    """Longest operands of the evaluation, for every cell alike."""
    settings: Table = {}
    """Settings of every cell."""
    axes: dict[str, dict[str, Table]] = {}
    """Axes by name, with their values by name; a value is a table of settings."""
    cells: dict[str, Table] = {}
    """Single cells by name, each a table of settings."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination of settings.

    name: name of its directory.
    settings: nested settings, as in the TOML file of a run.
    """

    name: str
    settings: Table

    def of_seed(self, seed: int) -> Table:
        """Return the settings of the run with a seed."""
        return {**self.settings, "seed": seed}


@dataclass(frozen=True, slots=True)
class Grid:
    """A grid whose cells have been checked: each is a run that can start.

    title: the question that the grid answers.
    seeds: seeds; every cell is run with each.
    cells: the combinations of settings.
    samples: problems per length in the evaluation.
    longest: longest operands of the evaluation.
    """

    title: str
    seeds: list[int]
    cells: list[Cell]
    samples: int
    longest: int

    def runs(self) -> Iterator[tuple[Cell, int]]:
        """Yield the runs. All cells of a seed come before the next seed, so that an unfinished grid is comparable."""
        for seed in self.seeds:
            for cell in self.cells:
                yield cell, seed


def read_grid(path: Path) -> Grid:
    """Read a grid and check all its cells. Raise InputError that names the first invalid cell and its mistake."""
    grid = validated(GridConfig, read_config(path), str(path))
    cells = _cells(grid, path)
    if not cells:
        raise InputError(f"{path} has no cells; write [axes.NAME] or [cells.NAME]")
    for cell in cells:
        for seed in grid.seeds:
            _check(cell, seed, path)
    return Grid(grid.title or path.stem, list(dict.fromkeys(grid.seeds)), cells, grid.samples, grid.longest)


def _cells(grid: GridConfig, path: Path) -> list[Cell]:
    """Return the crossed cells, named `AXIS-VALUE_AXIS-VALUE`, then the single ones."""
    for name in [*grid.axes, *(value for axis in grid.axes.values() for value in axis), *grid.cells]:
        if not _NAME.fullmatch(name):
            raise InputError(f"{path}: {name!r} cannot name a directory; use letters, digits, '.' and '-'")
    choices = [[(axis, *value) for value in values.items()] for axis, values in grid.axes.items()]
    cells = [_crossed(choice) for choice in product(*choices)] if choices else []
    cells += [Cell(name, settings) for name, settings in grid.cells.items()]
    return [Cell(cell.name, with_loaded_code(merged(grid.settings, cell.settings))) for cell in cells]


def _crossed(choice: tuple[tuple[str, str, Table], ...]) -> Cell:
    """Return the cell for a choice of (axis, value, settings), one per axis."""
    name = "_".join(f"{axis}-{value}" for axis, value, _ in choice)
    empty: Table = {}
    return Cell(name, reduce(merged, (settings for _, _, settings in choice), empty))


def _check(cell: Cell, seed: int, path: Path) -> None:
    """Raise InputError if a cell is not a run that can start."""
    if "seed" in cell.settings:
        raise InputError(f"{path}: cell {cell.name}: remove its seed; `seeds` holds the seeds of all cells")
    run_config(cell.of_seed(seed), f"{path}: cell {cell.name}")
