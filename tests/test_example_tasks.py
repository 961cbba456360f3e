"""Tasks in `examples/tasks/`: short files of an outsider that run from the command line as they are."""

import random
import runpy
from collections.abc import Mapping
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


@pytest.mark.parametrize("digits", [1, 2, 7, 12])
def test_the_exchange_leaves_no_column_of_four_operands_its_sum(digits: int) -> None:
    """A sum that the model does not know is wrong in each order of the operands, so the check must change it."""
    module = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "tasks" / "many_operands.py"))
    rng, task = random.Random(digits), module["ManyOperands"]()
    changes = []
    for _ in range(500):
        p = {name: str(value).zfill(1 if name == "k" else digits) for name, value in task.draw(digits, rng).items()}
        other, answer = module["exchanged"](p, str(_total(p)).zfill(digits + 1))
        assert int(answer) == _total(other)
        changes += [
            abs(sum(int(p[name][place]) - int(other[name][place]) for name in module["NUMBERS"]))
            for place in range(digits)
        ]
    # In one of 5,000 or more the column before has nothing to give.
    assert sum(9 <= change <= 11 for change in changes) > 0.99 * len(changes)


def test_the_exchange_finds_an_answer_with_a_wrong_first_digit() -> None:
    module = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "tasks" / "many_operands.py"))
    p = {"a": "9", "b": "9", "c": "9", "d": "9", "k": "0"}
    assert module["exchanged"](p, "36")[1] == "26" and module["exchanged"](p, "06")[1] is None


def _total(numbers: Mapping[str, str | int]) -> int:
    return sum(map(int, numbers.values()))
