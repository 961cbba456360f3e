"""The runs of a grid on disk: where they are, which are over, and what they came to."""

from pathlib import Path

from sector.benchmarks.grid import Cell, Grid
from sector.engine.report.outcomes import Outcome, outcome_of
from sector.engine.run.directory import RunDir
from sector.engine.run.records import Damaged


def run_root(out: Path, cell: Cell, seed: int) -> Path:
    """Return the run directory of a cell's run."""
    return out / "cells" / cell.name / f"seed{seed}"


def lengths_of(grid: Grid) -> list[int]:
    """Return the lengths at which every run of a grid is evaluated."""
    return list(range(1, grid.longest + 1))


def outcomes(out: Path, cell: Cell, seeds: list[int]) -> list[Outcome]:
    """Return the outcomes of the runs of a cell that are over."""
    of_seeds = (outcome_of(RunDir(run_root(out, cell, seed))) for seed in seeds)
    return [outcome for outcome in of_seeds if outcome is not None and outcome.stopped_because]


def is_over(run: RunDir, grid: Grid) -> bool:
    """Return whether a run has stopped and has the evaluation of this grid; a user may have replaced it by another."""
    try:
        outcome, evaluation = outcome_of(run), run.read_evaluation()
    except Damaged:
        # `open_run` repairs the records, so the evaluation is damaged; it is made again.
        return False
    if outcome is None or not outcome.stopped_because or evaluation is None:
        return False
    lengths = [score.digits for score in evaluation.lengths]
    return evaluation.samples == grid.samples and lengths == lengths_of(grid)
