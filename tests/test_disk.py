"""Disk of a run: what the settings keep, and that a run goes on from what is left, to the same weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_run import final_weights
from typer.testing import CliRunner

from sector.cli.app import app
from sector.engine.config import run_config
from sector.engine.errors import InputError
from sector.engine.run.directory import RunDir
from sector.engine.run.disk import bound_disk, disk_of, read_removed
from sector.engine.run.events import FrontierMoved
from sector.engine.run.open import open_run
from sector.engine.selfplay import self_play

KEEP_ONE = {"keep_candidates": 1, "keep_checkpoints": 1}


def go_on(root: Path, settings: dict[str, Any], until_digits: int = 99) -> None:
    """Continue a run to its end, or to the first round at `until_digits`."""
    with open_run(root, settings, "test") as (run, config):
        for event in self_play(run, config):
            if isinstance(event, FrontierMoved) and event.digits >= until_digits:
                return


def checkpoints(root: Path) -> set[str]:
    return {path.name for path in (root / "checkpoints").glob("[0-9]*")}


def candidates(root: Path) -> set[str]:
    return {path.parent.name for path in root.glob("rounds/*/candidates.parquet")}


def test_a_run_that_keeps_one_checkpoint_resumes_to_the_bit(fresh_run: Path, finished_run: Path) -> None:
    go_on(fresh_run, KEEP_ONE, until_digits=7)
    assert checkpoints(fresh_run) == {"07"} and candidates(fresh_run) == {"07"}
    go_on(fresh_run, {})
    assert checkpoints(fresh_run) == {"08"} and candidates(fresh_run) == {"08"}
    assert read_removed(fresh_run).checkpoints == [6, 7] and read_removed(fresh_run).candidates == [7]
    assert final_weights(fresh_run) == final_weights(finished_run)
    for path in fresh_run.glob("rounds/*/*.parquet"):
        assert path.read_bytes() == (finished_run / path.relative_to(fresh_run)).read_bytes()
    assert disk_of(fresh_run)["total"] < disk_of(finished_run)["total"]


@pytest.fixture
def ended(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "ended", symlinks=True))


def test_a_finished_run_is_bounded_when_it_is_resumed_with_the_settings(ended: Path) -> None:
    before = disk_of(ended)
    go_on(ended, KEEP_ONE)
    after = disk_of(ended)
    assert checkpoints(ended) == {"08"} and candidates(ended) == {"08"}
    assert after["checkpoints"] < before["checkpoints"] and after["candidates"] < before["candidates"]
    # What is removed does not come back, and is not missed.
    with open_run(ended, {"keep_candidates": 0, "keep_checkpoints": 0}, "test") as (run, config):
        assert run.mended == []
        assert not [event for event in self_play(run, config) if event.kind != "frontier"]
    assert checkpoints(ended) == {"08"} and candidates(ended) == {"08"}


def test_lost_weights_are_trained_again_from_the_last_that_are_left(ended: Path, finished_run: Path) -> None:
    weights = final_weights(finished_run)
    config = run_config({**RunDir(ended).read_config().model_dump(mode="json"), "keep_checkpoints": 1})
    shutil.copytree(ended / "checkpoints" / "06", ended / "kept")
    bound_disk(RunDir(ended), config, RunDir(ended).round(8))
    shutil.move(ended / "kept", ended / "checkpoints" / "06")
    (ended / "checkpoints" / "08" / "model.safetensors").write_bytes(b"damage")
    go_on(ended, {})
    assert final_weights(ended) == weights


def test_a_report_says_the_disk_and_misses_no_removed_candidates(ended: Path) -> None:
    go_on(ended, KEEP_ONE)
    said = CliRunner().invoke(app, ["report", str(ended)], catch_exceptions=False)
    assert said.exit_code == 0 and " MB on disk (" in said.stdout
    written = json.loads(CliRunner().invoke(app, ["report", str(ended), "--json"], catch_exceptions=False).stdout)
    (run,) = written["runs"]
    kinds = run["disk"]
    assert kinds["total"] == sum(size for kind, size in kinds.items() if kind != "total") > kinds["checkpoints"] > 0
    assert "<dt>disk</dt>" in Path(written["page"]).read_text()


def test_the_teacher_that_averages_all_checkpoints_keeps_them() -> None:
    with pytest.raises(InputError, match="leave out keep_checkpoints"):
        run_config({"keep_checkpoints": 2, "round": {"teacher": "slow"}})


def test_the_checkpoint_of_the_supervised_teacher_stays(ended: Path) -> None:
    stored = RunDir(ended).read_config().model_dump(mode="json")
    config = run_config({**stored, **KEEP_ONE, "round": {**stored["round"], "teacher": "supervised"}})
    bound_disk(RunDir(ended), config, RunDir(ended).round(8))
    assert checkpoints(ended) == {"06", "08"}


def test_a_damaged_record_of_what_was_removed_is_forgotten(ended: Path) -> None:
    record = ended / "removed.json"
    record.write_text("{")
    with open_run(ended, {}, "test") as (run, _):
        assert run.mended == [] and not record.exists()
