"""A budget of time for a grid: what fits by the runs that are over, in order, and what is left out."""

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from recorded import SHA, round_metrics, write_metrics
from typer.testing import CliRunner, Result

from sector.benchmarks.ablate import run_grid
from sector.benchmarks.budget import Budget, LeftOut, expected_seconds, plan_runs, seconds_of
from sector.benchmarks.grid import Cell, Grid
from sector.benchmarks.grid_runs import run_root
from sector.cli.app import app
from sector.engine.config import run_config
from sector.engine.errors import InputError
from sector.engine.run.directory import RunDir
from sector.engine.run.records import EvaluationRecord, LengthScore, dump_file

SLOW, QUICK = Cell("slow", {"until": 8}), Cell("quick", {"until": 8, "hard_share": 0.1})
NEW = Cell("new", {"until": 8, "hard_share": 0.2})
GRID = Grid("a grid", [0, 1], [SLOW, QUICK, NEW], samples=5, longest=1)


def over(out: Path, cell: Cell, seed: int, seconds: float, last: int = 8) -> None:
    """Write a run that took some seconds; it is over if its last round is at 8 digits."""
    run = RunDir(run_root(out, cell, seed))
    run.plots().mkdir(parents=True)
    run.write_config(run_config(cell.of_seed(seed)))
    write_metrics(run.root, *(round_metrics(digits, seconds_total=seconds) for digits in range(6, last + 1)))
    score = LengthScore(digits=1, correct=5, samples=5, accuracy=1.0, low=0.5, high=1.0)
    figures = {"policy": "fast", "samples": 5, "lengths": [score], "suite": [], "seed": 0, "engine": "native"}
    record = EvaluationRecord(**figures, weights_sha256=SHA, seconds=1.0)
    (run.plots() / "eval-fast.json").write_text(dump_file(record))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Seed 0 of two cells is over, and seed 1 of the slow one has begun."""
    over(tmp_path, SLOW, 0, 1000.0)
    over(tmp_path, QUICK, 0, 100.0)
    over(tmp_path, SLOW, 1, 300.0, last=7)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("1.5h", 5400), (" 1h2m3s ", 3723)],
    ids=str,
)
def test_durations_as_people_write_them(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "2 hours", "-1h", "0h", "30m1h", "h", "nan"], ids=repr)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is no duration; write it as 2h, 90m or 1h30m"):
        seconds_of(text)


def test_a_run_takes_as_long_as_its_cell_or_else_the_grid(out: Path) -> None:
    expected = {cell.name: expected_seconds(GRID, out, cell, 1) for cell in GRID.cells}
    # What is done of a run that has begun is not done again.
    assert expected == {"slow": 700.0, "quick": 100.0, "new": 550.0}
    assert expected_seconds(GRID, out / "elsewhere", SLOW, 0) is None


@pytest.mark.parametrize(
    ("seconds", "fit"),
    [
        (1400.0, ["new 0", "slow 1", "quick 1"]),
        (700.0, ["new 0", "quick 1"]),
        (560.0, ["new 0"]),
        (120.0, ["quick 1"]),
        (9.0, []),
    ],
    ids=str,
)
def test_later_runs_fill_what_earlier_ones_leave(out: Path, seconds: float, fit: list[str]) -> None:
    planned = list(plan_runs(GRID, out, seconds))
    assert [f"{run.cell.name} {run.seed}" for run in planned] == ["new 0", "slow 1", "quick 1", "new 1"]
    assert [f"{run.cell.name} {run.seed}" for run in planned if run.fits] == fit


def test_a_grid_leaves_out_what_does_not_fit_and_says_so(out: Path) -> None:
    budget = Budget(99.0, clock=lambda: 0.0)
    steps = list(run_grid(GRID, out, lambda done, of, note: None, budget=budget))
    assert [(step.cell.name, step.seed, step.event) for step in steps] == [
        ("new", 0, LeftOut(550.0, 99.0)),
        ("slow", 1, LeftOut(700.0, 99.0)),
        ("quick", 1, LeftOut(100.0, 99.0)),
        ("new", 1, LeftOut(550.0, 99.0)),
    ]
    # Nothing was begun.
    assert not run_root(out, NEW, 0).exists()


def test_the_first_run_of_a_grid_starts_in_any_case(tmp_path: Path) -> None:
    times = iter([0.0, 1000.0])
    budget = Budget(10.0, clock=lambda: next(times))
    assert budget.leaves_out(GRID, tmp_path, SLOW, 0) is None


def sector(grid: Grid, out: Path, *options: str) -> Result:
    path = out / "grid.toml"
    values: dict[str, Any] = {"title": grid.title, "seeds": grid.seeds, "samples": grid.samples, "longest": 1}
    path.write_text(tomli_w.dumps({**values, "cells": {cell.name: cell.settings for cell in grid.cells}}))
    arguments = ["ablate", str(path), "--out", str(out), *options]
    return CliRunner(env={"COLUMNS": "140"}).invoke(app, arguments, prog_name="sector", catch_exceptions=False)


def test_the_command_plans_and_leaves_out(out: Path) -> None:
    plan = sector(GRID, out, "--plan", "--budget", "700s")
    assert "2 of 4 unfinished runs fit, in about 10:50" in plan.stdout
    assert "left out: slow seed 1, about 11:40" in plan.stdout
    told = json.loads(sector(GRID, out, "--plan", "--budget", "700s", "--json").stdout)["planned"]
    assert told[0] == {"cell": "new", "seed": 0, "seconds": 550.0, "fits": True}
    ran = sector(GRID, out, "--budget", "9s")
    assert ran.exit_code == 0
    assert "left out: quick seed 1, which takes about 1:40; 0:0" in ran.stderr and ran.stderr.count("left out") == 4
    lines = [json.loads(line) for line in sector(GRID, out, "--budget", "9s", "--json").stdout.splitlines()]
    assert [line["event"] for line in lines] == ["left out"] * 4 + ["done"]
    refused = sector(GRID, out, "--budget", "soon")
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1
