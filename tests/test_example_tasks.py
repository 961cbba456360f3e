"""Tasks in `examples/tasks/`: short files of an outsider that run from the command line as they are."""

from pathlib import Path

import pytest
from declared_tasks import FILES, declared_in
from empty_doors import empty_doors
from typer.testing import CliRunner

from sector.cli.app import app

README = Path(__file__).parents[1] / "examples" / "README.md"
TASK_FILES = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
# Of four operands a check of its own needs as much again.
LONGEST = {"many_operands": 75}
LITTLE = ("supervised.cycle_steps=3", "supervised.max_cycles=1", "supervised.examples=8", "audit_samples=4")


@pytest.fixture(autouse=True)
def _nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    empty_doors(monkeypatch)


def test_there_are_four() -> None:
    assert len(FILES) >= 4


@TASK_FILES
def test_a_file_is_short_and_named_in_the_ladder(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST.get(path.stem, 45)
    assert f"(tasks/{path.name})" in README.read_text()


@TASK_FILES
def test_a_task_runs_from_the_command_line(path: Path, tmp_path: Path) -> None:
    """Only the supervised phase, since whole rounds of these tasks are in `test_tasks.py`."""
    reference = f"{path}:{declared_in(path).__name__}"
    options = [part for setting in LITTLE for part in ("--set", setting)]
    result = CliRunner().invoke(app, ["sft", "--task", reference, "--out", str(tmp_path / "run"), *options])
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count('"sft"') == 1
