"""Opening run directories: runs that are resumed, and runs that are refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from small_text import save_text_model, small_text_model
from typer.testing import CliRunner

from sector.cli.app import app
from sector.engine.config import FILTERS, RECIPE, RunConfig, read_config
from sector.engine.errors import InputError
from sector.engine.run.directory import RunDir
from sector.engine.run.open import open_run
from sector.engine.run.records import StartRecord


def of_an_earlier_release(root: Path) -> RunDir:
    """A run as it was begun before configs named their recipe, and schedules."""
    values = RunConfig().model_dump(mode="json", exclude={"recipe", "schedule"})
    values["filter"] = {"second_look": "shifted", "direct": True, "complement": True, "through": True}
    root.mkdir()
    (root / "config.toml").write_text(tomli_w.dumps(values))
    return RunDir(root)


def test_a_run_of_an_earlier_release_is_read_but_not_gone_on_with(tmp_path: Path) -> None:
    run = of_an_earlier_release(tmp_path / "old")
    before = (run.root / "config.toml").read_bytes()
    config = run.read_config()
    assert config.recipe == 1 and config.filter == FILTERS["strict"]
    with (
        pytest.raises(InputError, match="recipe 1 is of an earlier release") as caught,
        open_run(run.root, {}, "given"),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert (run.root / "config.toml").read_bytes() == before and sorted(run.root.iterdir()) == [
        run.root / "config.toml"
    ]


def test_a_new_run_says_its_recipe(tmp_path: Path) -> None:
    with open_run(tmp_path / "new", {"until": 9}, "given") as (run, config):
        assert config.recipe == RECIPE
    assert read_config(run.root / "config.toml")["recipe"] == RECIPE


def test_the_paper_s_schedule_brings_its_own_defaults_under_those_given(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", {"schedule": "paper", "round": {"candidates": 7}}, "given") as (_, config):
        assert (config.round.max_leap, config.round.candidates, config.filter) == (1, 7, FILTERS["strict"])


REFUSED: dict[str, list[str]] = {
    "no_model": ["run", "--pretrained", "nowhere"],
    "task": ["run", "--pretrained", "llama", "--task", "subtraction"],
    "digits": ["run", "--pretrained", "bad"],
    "workers": ["run", "--workers", "1000"],
    "setting": ["run", "--set", "round.trainer.learning_rate=inf"],
    "tracker": ["run", "--track", "wandb"],
    "sft": ["sft", "--pretrained", "nowhere"],
    "ablate": ["ablate", "grid.toml"],
    "generate": ["generate", "--model", "nowhere", "--digits", "3", "--count", "4"],
    "distill": ["distill", "--model", "nowhere", "--data", "x.parquet"],
    "eval": ["eval", "--model", "nowhere"],
    "report": ["report", "nowhere"],
    "bench": ["bench", "--model", "nowhere"],
    "profile": ["profile", "generate", "--model", "nowhere", "--digits", "3"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models that are refused for some reason, and a grid that asks for one."""
    place = tmp_path_factory.mktemp("refused")
    save_text_model(small_text_model(), place / "llama")
    (place / "bad").mkdir()
    (place / "grid.toml").write_text('seeds = [0]\n[cells.one]\npretrained = "nowhere"\n')
    return place


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_leaves_nothing_behind(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    # As if it were not installed.
    monkeypatch.setitem(sys.modules, "wandb", None)
    before = sorted(place.rglob("*"))
    result = CliRunner().invoke(app, [*REFUSED[name], "--out", "new/folder/out"])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.stderr
    assert sorted(place.rglob("*")) == before


def test_a_refused_run_leaves_the_directory_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".mine").touch()
    result = CliRunner().invoke(app, ["run", "--out", str(tmp_path / "run"), "--pretrained", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name != ".lock"] == [".mine"]


def refused_within(root: Path, given: dict[str, Any], makes: bool) -> None:
    """A command that holds a run, makes something or not, and is refused."""
    with open_run(root, given, "given") as (run, _):
        if makes:
            run.supervised(6).write(StartRecord(snapshot="lent", seconds=1.0))
        raise InputError("refused")


def test_after_a_refusal_the_same_directory_takes_other_settings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="refused"):
        refused_within(tmp_path / "run", {"pretrained": "nowhere"}, makes=False)
    with open_run(tmp_path / "run", {"seed": 5}, "given") as (_, config):
        assert (config.pretrained, config.seed) == ("", 5)


def test_what_is_made_stays_when_a_later_phase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="refused"):
        refused_within(tmp_path / "run", {}, makes=True)
    run = RunDir(tmp_path / "run")
    assert run.exists and run.supervised(6).read(StartRecord) == StartRecord(snapshot="lent", seconds=1.0)


def test_a_run_is_refused_before_torch_is_waited_for(tmp_path: Path) -> None:
    """By the console script; `sector` itself imports torch for the classes of transformers elsewhere."""
    run = of_an_earlier_release(tmp_path / "old")
    program = (
        "import sys\n"
        "from sector.cli.app import app\n"
        "try:\n"
        "    app(sys.argv[1:])\n"
        "finally:\n"
        "    print('torch' in sys.modules)\n"
    )
    (tmp_path / "sector").write_text(program)
    command = [sys.executable, tmp_path / "sector", "run", "--out", run.root]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "recipe 1 is of an earlier release" in done.stderr
    assert done.stdout.strip() == "False"
