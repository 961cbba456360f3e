"""Training in several processes: the loss curve and the weights of one, to the bit."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_run import assert_same, start
from two_ranks import command_of_two, curve, curves_of_two, labelled
from typer.testing import CliRunner

from sector.benchmarks.small_run import SECTOR
from sector.cli.app import app
from sector.engine.errors import InputError
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.models.checkpoint import save_checkpoint
from sector.engine.models.sector import new_model
from sector.engine.selfplay import self_play
from sector.engine.training.data_parallel import check_useful
from sector.engine.training.dataset import Provenance, labelled_table, write_examples

TORCHRUN = Path(sys.executable).with_name("torchrun")


def test_two_processes_have_the_loss_curve_of_one() -> None:
    """Tolerance: none. With three shards one process has two of them and the other one."""
    assert curves_of_two([2, 3]) == [[curve(2), curve(3)]] * 2


def test_distill_in_two_processes_writes_the_same_checkpoint_once(tmp_path: Path) -> None:
    save_checkpoint(new_model("tiny", 0), tmp_path / "model")
    for digits in (3, 5):
        table = labelled_table(labelled(digits), PlaceLayout(), Provenance(digits, 0, "oracle", ""))
        write_examples(tmp_path / f"{digits}.parquet", table)
    command = ["distill", "--model", str(tmp_path / "model"), "--steps", "3", "--json"]
    command += ["--data", str(tmp_path / "5.parquet"), "--replay", str(tmp_path / "3.parquet"), "--out"]
    alone = json.loads(CliRunner().invoke(app, [*command, str(tmp_path / "one")], catch_exceptions=False).stdout)
    with command_of_two(*command, tmp_path / "two") as (first, second):
        together, silent = json.loads(first.stdout.read()), second.stdout.read()
    assert (first.returncode, second.returncode, silent) == (0, 0, "")
    for key in ("loss", "tokens", "weights_sha256"):
        assert together[key] == alone[key]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]


def test_more_processes_than_shards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(InputError, match="4 shards"):
        check_useful(4)


# A whole run


def strike(root: Path, at: str, digits: int, victim: int) -> tuple[dict[str, Any], list[int | None]]:
    """Run in two processes and kill -9 one at the first event of a kind; the last event, and how the two ended."""
    struck, last = False, {}
    with command_of_two("run", "--out", root, "--json") as both:
        for line in both[0].stdout:
            last = json.loads(line)
            if not struck and last["event"] == at and last["digits"] == digits:
                both[victim].kill()
                struck = True
    assert struck
    return last, [each.returncode for each in both]


def test_a_supervised_phase_in_two_processes_is_that_of_one_asked_to_end_or_not(tmp_path: Path) -> None:
    """From an empty start under torchrun, which passes SIGTERM on; the step at hand is saved, and the rest the same."""
    phase = {"cycle_steps": 100, "max_cycles": 1, "examples": 4, "max_digits": 2, "trainer": {"shard_rows": 2}}
    (alone, config), (run, _) = (start(tmp_path / name, until=2, supervised=phase) for name in ("alone", "run"))
    for _ in self_play(alone, config):
        pass
    command = [TORCHRUN, "--standalone", "--nproc-per-node", "2", "--no-python", SECTOR, "run", "--out", run.root]
    last: dict[str, Any] = {}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--json"], **pipes) as process:
        for line in process.stdout:
            if not last:
                process.send_signal(signal.SIGTERM)
            last = json.loads(line)
        said = process.stderr.read()
    assert last["event"] == "done" and last["stopped_because"] == "terminated"
    assert process.returncode != 0 and "SIGTERM" in said and run.snapshot.exists()
    with command_of_two("run", "--out", run.root):
        pass
    assert_same(run.root, alone.root)


def test_a_run_in_two_processes_is_the_run_of_one_however_it_is_struck(fresh_run: Path, finished_run: Path) -> None:
    """The second process killed, the first one killed in either phase; then to the end, with two workers."""
    last, codes = strike(fresh_run, "train", 7, victim=1)
    assert codes == [1, -signal.SIGKILL]
    assert last["event"] == "done" and last["stopped_because"] != "reached"
    for at in ("generate", "train"):
        _, codes = strike(fresh_run, at, 8, victim=0)
        assert codes == [-signal.SIGKILL, 1]
    with command_of_two("run", "--out", fresh_run, "--workers", 2) as both:
        pass
    assert [each.returncode for each in both] == [0, 0]
    assert_same(fresh_run, finished_run)


def test_what_ends_the_first_process_ends_the_other_quietly(fresh_run: Path) -> None:
    """A disk that is full in the middle of a cycle: one line, of the first process alone."""
    (fresh_run / ".training.safetensors.partial").symlink_to("/dev/full")
    with command_of_two("run", "--out", fresh_run) as (first, second):
        said = [each.stderr.read().splitlines() for each in (first, second)]
    (line,) = said[0]
    assert line.startswith("sector (process 1 of 2)") and "No space left on device" in line and not said[1]
    assert (first.returncode, second.returncode) == (2, 0)


@pytest.mark.parametrize("command", [["eval", "--model", "x"], ["generate", "--digits", "3"], ["report", "x"]], ids=str)
def test_commands_for_one_process_say_so(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert f"{command[0]} runs in one; start it without torchrun" in result.stderr
