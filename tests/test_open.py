"""Opening run directories: what is gone on with, and what is refused."""

from pathlib import Path

import pytest
import tomli_w

from sector.engine.config import RECIPE, RunConfig, read_config
from sector.engine.errors import InputError
from sector.engine.run.directory import RunDir
from sector.engine.run.open import open_run


def of_an_earlier_release(root: Path) -> RunDir:
    """A run as it was begun before configs named their recipe, and schedules."""
    values = RunConfig().model_dump(exclude={"recipe", "schedule"})
    values["filter"]["through"] = True
    root.mkdir()
    (root / "config.toml").write_text(tomli_w.dumps(values))
    return RunDir(root)


def test_a_run_of_an_earlier_release_is_read_but_not_gone_on_with(tmp_path: Path) -> None:
    run = of_an_earlier_release(tmp_path / "old")
    before = (run.root / "config.toml").read_bytes()
    config = run.read_config()
    assert config.recipe == 1 and config.filter.through == "rejected"
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
        assert (config.round.max_leap, config.round.candidates, config.filter.through) == (1, 7, "rejected")
