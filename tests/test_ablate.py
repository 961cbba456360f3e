"""A grid of runs: resumable run by run, and shared files change no result."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from rich.console import Console
from typer.testing import CliRunner, Result

from sector.benchmarks import ablate
from sector.benchmarks.ablate import GridStep, run_grid
from sector.benchmarks.grid import Cell, Grid
from sector.cli.ablate import _view
from sector.cli.app import app
from sector.engine.config import run_config
from sector.engine.errors import NoAgreement
from sector.engine.models.checkpoint import load_checkpoint, weights_sha256
from sector.engine.run.directory import RunDir
from sector.engine.run.events import TrainingStep
from sector.engine.selfplay import self_play

# Hardly trained at all: two supervised cycles, and a first round that accepts nothing.
SMALL: dict[str, Any] = {
    "until": 3,
    "audit_samples": 4,
    "supervised": {"max_digits": 2, "cycle_steps": 4, "more_steps": 3, "max_cycles": 2, "examples": 8},
    "round": {"candidates": 8, "cycle_steps": 2, "max_cycles": 1, "probe": 4, "min_agreement": 0.0},
}
ALONE = Cell("alone", {**SMALL, "until": 2})
GRID = Grid("small", [0, 1], [ALONE, Cell("looser", {**SMALL, "filter": {"vote": "off"}})], samples=5, longest=3)


def steps(grid: Grid, out: Path) -> list[GridStep]:
    return list(run_grid(grid, out, lambda done, of, note: None))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("grids") / "done"
    steps(GRID, out)
    return out


def weights(root: Path) -> str:
    return weights_sha256(load_checkpoint(root / "checkpoints" / "02"))


def test_every_run_is_a_run_directory_with_its_evaluation(done: Path) -> None:
    for name in ("alone", "looser"):
        for seed in (0, 1):
            root = done / "cells" / name / f"seed{seed}"
            assert RunDir(root).read_config().seed == seed
            evaluation = json.loads((root / "plots" / "eval-fast.json").read_text())
            assert [(each["digits"], each["samples"]) for each in evaluation["lengths"]] == [(1, 5), (2, 5), (3, 5)]


def test_results_have_a_row_a_cell(done: Path) -> None:
    results = json.loads((done / "results.json").read_text())
    assert results == json.loads(json.dumps(ablate.results(GRID, done)))
    rows = {row["cell"]: row for row in results["cells"]}
    assert list(rows) == ["alone", "looser"]
    assert [run["stopped_because"] for run in rows["alone"]["runs"]] == ["reached"] * 2
    assert [run["stopped_because"] for run in rows["looser"]["runs"]] == ["nothing accepted at 3 digits"] * 2
    assert [run["fate"] for name in rows for run in rows[name]["runs"]] == ["alive"] * 2 + ["stopped"] * 2
    assert all(row[name] == {} for row in rows.values() for name in ("label_errors", "accuracies", "agreements"))
    assert rows["alone"]["means"]["final_digits"] == {"mean": 2.0, "low": 2.0, "high": 2.0, "count": 2}


def test_a_borrowed_start_changes_no_bit(done: Path, tmp_path: Path) -> None:
    """The second cell takes the first cycle over and trains the second itself; a run of its own trains both."""
    borrowed = done / "cells" / "looser" / "seed0"
    start = json.loads((borrowed / "rounds" / "supervised" / "start.json").read_text())
    assert (done / "supervised" / start["snapshot"]).is_dir() and start["seconds"] > 0
    assert not (done / "cells" / "alone" / "seed0" / "rounds" / "supervised" / "start.json").exists()
    run, config = RunDir(tmp_path / "fresh"), run_config(GRID.cells[1].of_seed(0))
    run.write_config(config)
    with pytest.raises(NoAgreement, match="no candidate of 3 digits was accepted"):
        list(self_play(run, config))
    assert weights(run.root) == weights(borrowed) != weights(done / "cells" / "looser" / "seed1")
    alike = ("rounds/supervised/examples.parquet", "rounds/03/candidates.parquet", "config.toml")
    for name in alike:
        assert (run.root / name).read_bytes() == (borrowed / name).read_bytes(), name


def test_runs_that_begin_differently_share_nothing(done: Path, tmp_path: Path) -> None:
    other = {**SMALL, "hard_share": 0.1}
    cells = [ALONE, Cell("other", other), Cell("order", {**SMALL, "digit_order": "lsd"})]
    shared = {ablate._shared(tmp_path, run_config(cell.of_seed(0))) for cell in cells}
    assert len(shared) == 3
    assert len(list((done / "supervised").iterdir())) == 2


def test_done_runs_are_skipped_and_half_done_ones_go_on(tmp_path: Path) -> None:
    grid = Grid("one", [0], GRID.cells, samples=5, longest=3)
    events = run_grid(grid, tmp_path, lambda done, of, note: None)
    before = [next(events) for _ in range(3)]
    assert [(step.cell.name, type(step.event)) for step in before] == [("alone", TrainingStep)] * 3
    # Closed in the middle of the first cycle, as by a kill: no snapshot yet, so the run starts over.
    events.close()
    rest = steps(grid, tmp_path)
    over = [(step.index, step.cell.name) for step in rest if step.event is None]
    assert over == [(0, "alone"), (1, "looser")]
    assert rest[-1].outcome is not None and rest[-1].outcome.final_digits == 2
    content = (tmp_path / "results.json").read_bytes()
    (tmp_path / "results.json").unlink()
    assert steps(grid, tmp_path) == [] and (tmp_path / "results.json").read_bytes() == content
    wider = Grid("two", [0, 1], GRID.cells, samples=5, longest=3)
    assert {step.seed for step in steps(wider, tmp_path) if step.event} == {1}


def test_a_run_that_someone_evaluated_otherwise_is_evaluated_again(done: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(done, tmp_path / "out", symlinks=True))
    evaluation = out / "cells" / "alone" / "seed1" / "plots" / "eval-fast.json"
    whole = json.loads(evaluation.read_text())
    evaluation.write_text(json.dumps({**whole, "lengths": whole["lengths"][:1]}))
    again = steps(GRID, out)
    assert [(step.cell.name, step.seed) for step in again if step.event is None] == [("alone", 1)]
    assert not any(isinstance(step.event, TrainingStep) for step in again)
    assert json.loads(evaluation.read_text())["lengths"] == whole["lengths"]
    more = Grid(GRID.title, GRID.seeds, GRID.cells, samples=6, longest=3)
    assert sum(step.event is None for step in steps(more, out)) == 4


@pytest.fixture
def grid_file(tmp_path: Path) -> Path:
    path = tmp_path / "grid.toml"
    looser = {"until": 3, "filter": {"vote": "off"}}
    grid = {"title": "small", "seeds": [0, 1], "samples": 5, "longest": 3, "settings": {**SMALL, "until": 2}}
    path.write_text(tomli_w.dumps({**grid, "cells": {"alone": {}, "looser": looser}}))
    return path


def sector(*args: object) -> Result:
    arguments = ["ablate", *map(str, args)]
    return CliRunner(env={"COLUMNS": "140"}).invoke(app, arguments, prog_name="sector", catch_exceptions=False)


def test_the_command_resumes_and_speaks_to_machines(done: Path, grid_file: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(done, tmp_path / "out", symlinks=True))
    shutil.rmtree(out / "cells" / "looser" / "seed1")
    result = sector(grid_file, "--out", out, "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(line["event"], line.get("cell"), line.get("seed")) for line in lines] == [
        ("run", "looser", 1),
        ("done", None, None),
    ]
    assert [len(row["runs"]) for row in lines[-1]["cells"]] == [2, 2]


def test_a_plan_runs_nothing(grid_file: Path, tmp_path: Path) -> None:
    result = sector(grid_file, "--out", tmp_path / "new", "--plan")
    assert result.exit_code == 0 and not (tmp_path / "new").exists()
    lines = [line.split() for line in result.stdout.splitlines()]
    assert "4 runs, 0 done: 2 cells, seeds 0, 1" in result.stdout and "survived" not in result.stdout
    assert [line[:4] for line in lines if line[:1] in (["alone"], ["looser"])] == [
        ["alone", "0", "of", "2"],
        ["looser", "0", "of", "2"],
    ]


def test_a_plan_shows_common_settings_once(grid_file: Path, tmp_path: Path) -> None:
    shown = sector(grid_file, "--out", tmp_path / "new", "--plan").stdout
    common, alone, looser = (shown[shown.index(name) :] for name in ("all cells", "alone", "looser"))
    assert shown.count("candidates") == 1 and "candidates" in common.removesuffix(alone)
    assert alone.removesuffix(looser).split("2", 1)[1].split() == ["until", "=", "2"]
    assert "until = 3" in looser and 'filter.vote = "off"' in looser


def test_a_plan_of_finished_runs_shows_their_results(done: Path, grid_file: Path) -> None:
    result = sector(grid_file, "--out", done, "--plan")
    assert "4 runs, 4 done: 2 cells, seeds 0, 1" in result.stdout and "survived" in result.stdout


def test_people_get_a_table(done: Path, grid_file: Path) -> None:
    result = sector(grid_file, "--out", done)
    assert result.exit_code == 0 and result.stderr == ""
    assert "small" in result.stdout and "survived" in result.stdout
    assert [line.split()[:2] for line in result.stdout.splitlines() if line.startswith(("alone", "looser"))] == [
        ["alone", "2"],
        ["looser", "2"],
    ]


def test_the_table_fits_into_80_characters() -> None:
    mean = {"mean": 0.0123, "low": 0.0021, "high": 0.0225}
    figures = ("final_digits", "rounds_survived", "eval_accuracy", "eval_lowest", "mean_label_error", "seconds")
    row = {
        "cell": "vote-off_commutativity-off",
        "runs": [{}] * 3,
        "means": dict.fromkeys(figures, mean) | {"tokens": {"mean": 17.1e6, "low": 16.5e6, "high": 17.7e6}},
        "label_errors": dict.fromkeys(map(str, range(7, 30)), mean),
    }
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(_view({"title": "small", "longest": 29, "cells": [row]}))
    lines = console.export_text().splitlines()
    text = " ".join(lines)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text and max(map(len, lines)) <= 80
    assert text.split().count("commutativity-off") == 2
    assert {"survived", "accuracy", "\N{PLUS-MINUS SIGN}1.02"} <= set(text.split())


def test_an_unknown_key_is_refused_before_anything_runs(grid_file: Path, tmp_path: Path) -> None:
    grid_file.write_text(grid_file.read_text() + "\n[cells.typo]\nround.candidate = 3\n")
    result = sector(grid_file, "--out", tmp_path / "new")
    assert result.exit_code == 2 and result.stdout == ""
    assert "cell typo: round.candidate: unknown key" in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_cell_that_was_started_otherwise_is_refused(done: Path, grid_file: Path) -> None:
    grid_file.write_text(grid_file.read_text().replace('vote = "off"', 'vote = "majority"'))
    result = sector(grid_file, "--out", done)
    assert result.exit_code == 2 and "filter.vote" in result.stderr and "looser" in result.stderr


def test_tasks_do_not_lend_to_each_other(tmp_path: Path) -> None:
    """Where all else is alike, the first cycle is still another one."""
    configs = [run_config({"schedule": "paper", "task": task}) for task in ("addition", "subtraction")]
    assert len({ablate._shared(tmp_path, config) for config in configs}) == 2
