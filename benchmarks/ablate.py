"""Run the cells of a grid one after another, each run in its own run directory; finished runs are skipped.

    results.json                   outcomes of the runs, and means over seeds
    cells/CELL/seed0/              an ordinary run directory; the evaluation is among its plots
    supervised/KEY/                snapshot after the first supervised cycle, for all runs that begin alike

Runs with the same seed and supervised phase begin alike to the bit. One of them trains the first cycle; the others
start from its snapshot, as if they had been interrupted there. Each run judges by its own settings whether that cycle
suffices.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from sector.benchmarks.budget import Budget, LeftOut
from sector.benchmarks.grid import Cell, Grid
from sector.benchmarks.grid_runs import is_over, lengths_of, outcomes, run_root
from sector.engine.config import RunConfig
from sector.engine.errors import Diverged, NoAgreement
from sector.engine.files import write_atomically, write_text
from sector.engine.report.evaluate import evaluate_model
from sector.engine.report.outcomes import ByRound, Outcome, means_by_round, means_of, outcome_of
from sector.engine.report.trackers import log_to_trackers
from sector.engine.run.directory import RunDir, read_snapshot
from sector.engine.run.events import Event, GoalMeasured
from sector.engine.run.made_with import digest
from sector.engine.run.open import open_run
from sector.engine.run.records import Damaged, StartRecord
from sector.engine.run.steps import OnProgress
from sector.engine.run.stop_signals import Stopping
from sector.engine.selfplay import self_play

RESULTS = "results.json"


@dataclass(frozen=True, slots=True)
class Stopped:
    """A run that stopped early, and is not evaluated yet.

    because: message of the error.
    """

    because: str


@dataclass(frozen=True, slots=True)
class GridStep:
    """Progress of a grid: an event of one of its runs, or the end of a run.

    index: number of the run in the grid, from 0.
    cell: cell of the run.
    seed: seed of the run.
    event: event of the run, or why it is left out; None when it is over and evaluated.
    outcome: outcome of a run that is over; None if it diverged before its first metrics.
    """

    index: int
    cell: Cell
    seed: int
    event: Event | Stopped | LeftOut | None
    outcome: Outcome | None = None


def run_grid(
    grid: Grid,
    out: Path,
    on_evaluation: OnProgress,
    stopping: Stopping | None = None,
    budget: Budget | None = None,
) -> Iterator[GridStep]:
    """Run all unfinished runs of a grid, and write the results so far after each of them.

    The grid goes on after a run that diverges or no longer agrees with itself: that is a result. Raise InputError as
    `open_run` does.

    stopping: as in `self_play`.
    budget: time for the grid; runs that do not fit in it are left out. A run that was started is not cut short.
    """
    for index, (cell, seed) in enumerate(grid.runs()):
        root = run_root(out, cell, seed)
        # Asked before the run is opened, which would leave a directory behind.
        if budget and not is_over(RunDir(root), grid) and (left_out := budget.leaves_out(grid, out, cell, seed)):
            yield GridStep(index, cell, seed, left_out)
            continue
        with open_run(root, cell.of_seed(seed), f"cell {cell.name}") as (run, config):
            if is_over(run, grid):
                continue
            _borrow(out, run, config)
            for event in _play(run, config, stopping):
                if isinstance(event, GoalMeasured) and not event.digits and event.cycle == 1:
                    _lend(out, run, config)
                yield GridStep(index, cell, seed, event)
            if (run.root / "checkpoints" / "latest").exists():
                _evaluate(run, config, grid, on_evaluation)
        _write_results(grid, out)
        yield GridStep(index, cell, seed, None, outcome_of(run))
    # A finished grid may have lost the file.
    if not (out / RESULTS).exists():
        _write_results(grid, out)


def _write_results(grid: Grid, out: Path) -> None:
    """Write the results so far to `results.json`."""
    write_text(out / RESULTS, json.dumps(results(grid, out), indent=2) + "\n")


def _play(run: RunDir, config: RunConfig, stopping: Stopping | None) -> Iterator[Event | Stopped]:
    """Yield the events of a run; the last one is `Stopped` if it diverges or no longer agrees with itself."""
    try:
        yield from log_to_trackers(self_play(run, config, stopping=stopping), run, config)
    except (NoAgreement, Diverged) as error:
        yield Stopped(str(error))


def results(grid: Grid, out: Path) -> dict[str, object]:
    """Return the results so far: settings, outcomes, and means over seeds with intervals for each cell."""
    rows = []
    for cell in grid.cells:
        finished = outcomes(out, cell, grid.seeds)
        rows.append(
            {
                "cell": cell.name,
                "settings": cell.settings,
                "runs": [outcome.as_json() for outcome in finished],
                "means": {name: mean.as_json() for name, mean in means_of(finished).items()},
                **{name: _by_round(finished, name) for name in get_args(ByRound)},
            }
        )
    return {"title": grid.title, "seeds": grid.seeds, "samples": grid.samples, "longest": grid.longest, "cells": rows}


def _by_round(finished: list[Outcome], name: ByRound) -> dict[str, object]:
    return {str(digits): mean.as_json() for digits, mean in means_by_round(finished, name).items()}


def _evaluate(run: RunDir, config: RunConfig, grid: Grid, on_progress: OnProgress) -> None:
    """Evaluate a run at every length up to the grid's longest, so that all cells compare."""
    evaluate_model(
        run.root / "checkpoints" / "latest",
        lengths_of(grid),
        grid.samples,
        policy="fast",
        suite=False,
        out=run.plots(),
        engine=config.engine,
        settings=config.filter,
        seed=config.seed,
        on_progress=on_progress,
    )


def _shared(out: Path, config: RunConfig) -> Path:
    """Return the path of the snapshot after the first supervised cycle of runs with these settings."""
    names = {
        "pretrained",
        "preset",
        "network",
        "text_layout",
        "task",
        "digit_order",
        "seed",
        "hard_share",
        "supervised",
    }
    values = config.model_dump(include=names)
    # Goals are judged after the cycle and do not change it.
    goals = ("target_accuracy", "target_agreement", "max_cycles", "more_steps", "examples")
    values["supervised"] = {key: value for key, value in values["supervised"].items() if key not in goals}
    return out / "supervised" / digest(values)[:16] / "training.safetensors"


def _lend(out: Path, run: RunDir, config: RunConfig) -> None:
    """Keep a run's snapshot after its first supervised cycle for the runs that begin alike."""
    shared = _shared(out, config)
    if not shared.exists():
        write_atomically(shared, lambda aside: shutil.copyfile(run.snapshot, aside))


def _borrow(out: Path, run: RunDir, config: RunConfig) -> None:
    """Start a new run from the snapshot of another one, and record the seconds that its training took."""
    shared = _shared(out, config)
    has_started = run.snapshot.exists() or run.supervised(config.supervised.max_digits).is_trained
    if has_started or not shared.exists():
        return
    try:
        seconds = read_snapshot(shared).seconds
    except Damaged:
        # The run trains the cycle itself, and its snapshot replaces the damaged one.
        shared.unlink()
        return
    write_atomically(run.snapshot, lambda aside: shutil.copyfile(shared, aside))
    phase = run.supervised(config.supervised.max_digits)
    phase.write(StartRecord(snapshot=shared.parent.name, seconds=seconds))
