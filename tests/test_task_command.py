"""`sector task`: from a new file to a run, in an empty folder."""

import json
from pathlib import Path
from typing import Any

import pytest
from empty_doors import empty_doors
from typer.testing import CliRunner, Result

import sector.testing
from sector.benchmarks.small_run import small
from sector.cli.app import app
from sector.engine.tasks import built_in
from sector.engine.testing.task import PROMISES


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty_doors(monkeypatch)
    monkeypatch.chdir(tmp_path)


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="sector")


def refused(*words: object) -> str:
    """Run a command that must fail with one line; return the line."""
    result = invoke(*words)
    assert result.exit_code == 2 and not result.stdout and result.stderr.count("\n") == 1
    return result.stderr


def test_a_new_task_is_checked_shown_and_learned_as_it_is(tmp_path: Path) -> None:
    shown = invoke("task", "new", "my_parity").stdout
    assert "sector run --task my_parity.py:MyParity" in shown
    checked = invoke("task", "check", "my_parity.py:MyParity")
    assert checked.exit_code == 0 and checked.stdout.count("kept  ") == len(PROMISES)
    page = json.loads(invoke("task", "show", "my_parity.py:MyParity", "407+1", "--json").stdout)
    assert page["solution"]["answer"] == "815"
    assert page["texts"] == ["407+1=0815", "407+1>40+1|5"]
    short = json.loads(invoke("task", "show", "my_parity.py:MyParity", "4+1", "--json").stdout)
    assert short["texts"] == ["4+1=09"] and not short["simplification"], "one digit is answered at once"
    assert [step["rest"] for step in page["solution"]["thought"]["steps"]] == ["40+1", "4+0"]
    config = tmp_path / "small.toml"
    settings = small(until=3, audit_samples=4, round={"candidates": 8, "min_agreement": 0.0})
    config.write_text(_as_toml(settings))
    ran = invoke("run", "--task", "my_parity.py:MyParity", "--config", config, "--out", "run", "--until", 7, "--json")
    assert ran.exit_code in (0, 3), ran.stderr
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["digits"] == 6


def _as_toml(values: dict[str, Any], prefix: str = "") -> str:
    lines = [f"{prefix}{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, dict)]
    tables = [_as_toml(value, f"{prefix}{key}.") for key, value in values.items() if isinstance(value, dict)]
    return "\n".join([*lines, *tables])


def test_the_tutorial_s_tasks_are_short() -> None:
    invoke("task", "new", "mine")
    lines = [line for line in Path("mine.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= 45 and max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("addition", "there is a task 'addition' already"),
        ("My-Task", "is no name of a task"),
        ("none", "is no name of a task"),
        ("../up", "is no name of a task"),
        ("9lives", "is no name of a task"),
    ],
)
def test_a_name_that_cannot_be_taken_is_refused(name: str, named: str) -> None:
    assert named in refused("task", "new", name)
    assert not list(Path().iterdir())


def test_no_file_is_replaced(tmp_path: Path) -> None:
    Path("mine.py").write_text("precious")
    assert "mine.py exists; name another file with --out" in refused("task", "new", "mine")
    assert Path("mine.py").read_text() == "precious"
    assert "is no Python file" in refused("task", "new", "mine", "--out", "mine.txt")
    (tmp_path / "blocked").write_text("")
    assert "cannot write blocked/mine.py" in refused("task", "new", "mine", "--out", "blocked/mine.py")


def test_a_broken_promise_is_one_line_and_exit_code_2() -> None:
    invoke("task", "new", "mine")
    Path("mine.py").write_text(Path("mine.py").read_text().replace("1 - int(answer[0])", "int(answer[0])"))
    result = invoke("task", "check", "mine.py:Mine")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "the check complement fails for the right answer" in result.stderr and "it poses" in result.stderr
    assert "unknown task 'yours'" in refused("task", "check", "yours")
    assert "cannot read no.py" in refused("task", "show", "no.py:Mine")
    assert "'12' is not a problem" in refused("task", "show", "addition", "12")


def test_tasks_are_listed_with_their_examples() -> None:
    listed = json.loads(invoke("task", "list", "--json").stdout)["tasks"]
    assert [row["name"] for row in listed] == sorted(built_in())
    assert {row["source"] for row in listed} == {"sector"}
    assert "1234*5678" in invoke("task", "list").stdout


def test_a_user_s_own_test_suite_can_check_a_task() -> None:
    invoke("task", "new", "mine")
    assert sector.testing.check_task("mine.py:Mine", lambda text: 2 * int(text[:-2]) + int(text[-1]))
    with pytest.raises(sector.testing.BrokenPromise, match="by value"):
        sector.testing.check_task("mine.py:Mine", lambda text: 0)
