"""Runs the cells of a grid, one after another, each in a run directory of its own; what is done is not done again.

    results.json                   what became of every run, and means over seeds
    cells/CELL/seed0/              an ordinary run directory, its evaluation among its plots
    supervised/KEY/                the first cycle of a supervised phase, for all runs that begin with the same

Runs of one seed and one supervised phase begin alike, to the bit, so one of them trains that cycle and the others take
it over as if they had been interrupted right after it; whether it suffices each judges by its own settings.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sector.benchmarks.grid import Cell, Grid
from sector.engine.config import RunConfig
from sector.engine.errors import Diverged, NoAgreement
from sector.engine.files import write_atomically, write_text
from sector.engine.report.evaluate import evaluate_model
from sector.engine.report.outcomes import Outcome, label_errors_of, means_of, outcome_of
from sector.engine.report.trackers import log_to_trackers
from sector.engine.run.directory import RunDir, read_snapshot
from sector.engine.run.events import Event, GoalMeasured
from sector.engine.run.made_with import digest
from sector.engine.run.open import open_run
from sector.engine.run.records import Damaged, StartRecord
from sector.engine.run.steps import OnProgress
from sector.engine.run.stopping import Stopping
from sector.engine.selfplay import self_play

RESULTS = "results.json"


@dataclass(frozen=True, slots=True)
class Stopped:
    """A run that stopped early, and is not evaluated yet.

    because: message of the error.
    """

    because: str


@dataclass(frozen=True, slots=True)
class Step:
    """Where a grid stands.

    index: of the run among all of them. event: of that run; None when it is over and evaluated. outcome: what became
    of it then, None if it diverged before there was anything to tell.
    """

    index: int
    cell: Cell
    seed: int
    event: Event | Stopped | None
    outcome: Outcome | None = None


def run_grid(grid: Grid, out: Path, on_evaluation: OnProgress, stopping: Stopping | None = None) -> Iterator[Step]:
    """Run what is not finished yet, and write the results so far after every run. Raises InputError as `open_run`.

    A run that stops because it no longer agrees with itself, or diverges, is a result; the grid goes on.
    stopping: as in `self_play`.
    """
    for index, (cell, seed) in enumerate(grid.runs()):
        root = run_root(out, cell, seed)
        with open_run(root, cell.of_seed(seed), f"cell {cell.name}") as (run, config):
            if _is_over(run, grid):
                continue
            _borrow(out, run, config)
            try:
                for event in log_to_trackers(self_play(run, config, stopping=stopping), run, config):
                    if isinstance(event, GoalMeasured) and not event.digits and event.cycle == 1:
                        _lend(out, run, config)
                    yield Step(index, cell, seed, event)
            except (NoAgreement, Diverged) as error:
                yield Step(index, cell, seed, Stopped(str(error)))
            if (run.root / "checkpoints" / "latest").exists():
                _evaluate(run, config, grid, on_evaluation)
        write_text(out / RESULTS, json.dumps(results(grid, out), indent=2) + "\n")
        yield Step(index, cell, seed, None, outcome_of(run))


def results(grid: Grid, out: Path) -> dict[str, Any]:
    """What is known so far, a row a cell: its settings, its runs, and means with intervals over their seeds."""
    rows = []
    for cell in grid.cells:
        found = outcomes(out, cell, grid.seeds)
        rows.append(
            {
                "cell": cell.name,
                "settings": cell.settings,
                "runs": [each.as_json() for each in found],
                "means": {name: mean.as_json() for name, mean in means_of(found).items()},
                "label_errors": {str(digits): mean.as_json() for digits, mean in label_errors_of(found).items()},
            }
        )
    return {"title": grid.title, "seeds": grid.seeds, "samples": grid.samples, "longest": grid.longest, "cells": rows}


def outcomes(out: Path, cell: Cell, seeds: list[int]) -> list[Outcome]:
    """What became of the runs of a cell that are over."""
    found = (outcome_of(RunDir(run_root(out, cell, seed))) for seed in seeds)
    return [each for each in found if each is not None and each.stopped_because]


def run_root(out: Path, cell: Cell, seed: int) -> Path:
    return out / "cells" / cell.name / f"seed{seed}"


def _is_over(run: RunDir, grid: Grid) -> bool:
    """Has it stopped, and been evaluated as this grid asks for? Someone may have looked at fewer lengths since."""
    try:
        outcome, evaluation = outcome_of(run), run.read_evaluation()
    except Damaged:
        # Records were mended when the run was opened, and an evaluation is made again.
        return False
    if outcome is None or not outcome.stopped_because or evaluation is None:
        return False
    lengths = [score.digits for score in evaluation.lengths]
    return evaluation.samples == grid.samples and lengths == _lengths(grid)


def _lengths(grid: Grid) -> list[int]:
    return list(range(1, grid.longest + 1))


def _evaluate(run: RunDir, config: RunConfig, grid: Grid, on_progress: OnProgress) -> None:
    """Accuracy at every length up to the grid's longest: what cells of all kinds are compared by."""
    evaluate_model(
        run.root / "checkpoints" / "latest",
        _lengths(grid),
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
    """Where the first supervised cycle lies that a run of these settings begins with."""
    names = {"pretrained", "preset", "task", "digit_order", "seed", "hard_share", "supervised"}
    values = config.model_dump(include=names)
    # Goals are judged after the cycle, and say nothing of it.
    goals = ("target_accuracy", "target_agreement", "max_cycles", "more_steps", "examples")
    values["supervised"] = {key: value for key, value in values["supervised"].items() if key not in goals}
    return out / "supervised" / digest(values)[:16] / "training.safetensors"


def _lend(out: Path, run: RunDir, config: RunConfig) -> None:
    """Keep the snapshot at the end of the first supervised cycle for the runs that begin alike."""
    shared = _shared(out, config)
    if not shared.exists():
        write_atomically(shared, lambda aside: shutil.copyfile(run.snapshot, aside))


def _borrow(out: Path, run: RunDir, config: RunConfig) -> None:
    """Begin a new run with what another has trained, and note how long that took."""
    shared = _shared(out, config)
    begun = run.snapshot.exists() or run.supervised(config.supervised.max_digits).is_trained
    if begun or not shared.exists():
        return
    try:
        seconds = read_snapshot(shared).seconds
    except Damaged:
        # The run trains the cycle itself, and lends it anew.
        shared.unlink()
        return
    write_atomically(run.snapshot, lambda aside: shutil.copyfile(shared, aside))
    phase = run.supervised(config.supervised.max_digits)
    phase.write(StartRecord(snapshot=shared.parent.name, seconds=seconds))
