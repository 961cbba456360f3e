"""Failures of machines, caused on purpose: one clear line, then the same command ends with the same weights."""

import json
import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from forked import forked
from small_run import assert_same

from sector.cli._errors import Interrupted
from sector.cli._follow import follow
from sector.cli._output import Output
from sector.cli._signals import Ended, ended_by_signals
from sector.cli._streams import Unwritable
from sector.engine.config import RoundConfig, RunConfig
from sector.engine.errors import Diverged, InputError
from sector.engine.models.checkpoint import load_checkpoint, save_checkpoint
from sector.engine.report.trackers import log_to_trackers
from sector.engine.run import stop_signals
from sector.engine.run.directory import RunDir
from sector.engine.run.events import Event, FileMended, Generated, GoalMeasured, TrainingStep
from sector.engine.run.open import open_run
from sector.engine.selfplay import self_play
from sector.engine.training import distill, place_rows
from sector.engine.training.data_parallel import Gradient


def go_on(root: Path) -> list[Event]:
    """Continue a run to its end, as `sector run --out ROOT` does."""
    with open_run(root, {}, "test") as (run, config):
        return list(log_to_trackers(self_play(run, config), run, config))


def next_step(root: Path) -> int:
    """The first step of training that the same command would do."""
    with open_run(root, {}, "test") as (run, config):
        return next(event.step for event in self_play(run, config) if isinstance(event, TrainingStep))


# A full disk. A link to /dev/full stands where a file is to be written aside: the kernel's own ENOSPC.

FILES = [
    "rounds/07/.candidates.parquet.partial",
    "rounds/07/.generation.json.partial",
    "rounds/07/.examples.parquet.partial",
    "rounds/07/.examples.preview.jsonl.partial",
    ".training.safetensors.partial",
    "rounds/07/.training.json.partial",
    ".metrics.jsonl.partial",
    "plots/.accuracy.png.partial",
]


def test_a_disk_full_at_any_file_loses_nothing(fresh_run: Path, finished_run: Path) -> None:
    """One run that meets a full disk eight times."""
    for name in FILES:
        (fresh_run / name).parent.mkdir(parents=True, exist_ok=True)
        (fresh_run / name).symlink_to("/dev/full")
        with pytest.raises(InputError, match="No space left on device"):
            go_on(fresh_run)
        assert not (fresh_run / name).is_symlink()
    go_on(fresh_run)
    assert_same(fresh_run, finished_run)


def test_a_disk_too_full_for_a_checkpoint(fresh_run: Path, finished_run: Path) -> None:
    """No file may grow beyond 300 kB: weights are larger, examples are not. One line, exit code 2."""
    with forked("run", "--out", fresh_run, limits={resource.RLIMIT_FSIZE: 300_000}) as process:
        said = process.stderr.read()
    assert process.returncode == 2 and said.count("\n") == 1 and "File too large" in said
    assert not list(fresh_run.rglob("*.partial"))
    go_on(fresh_run)
    assert_same(fresh_run, finished_run)


def test_a_checkpoint_that_does_not_fit_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sector.engine.models.sector import new_model

    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="No space left"):
        save_checkpoint(new_model("tiny", 0), tmp_path / "07")
    assert not list(tmp_path.iterdir())


# Damage


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGED = [
    "rounds/supervised/examples.parquet",
    "rounds/07/candidates.parquet",
    "rounds/07/examples.parquet",
    "rounds/08/generation.json",
    "rounds/08/training.json",
    "checkpoints/07/model.safetensors",
    "metrics.jsonl",
]


@pytest.fixture
def ended_run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "ended", symlinks=True))


def test_truncated_files_are_made_again_as_they_were(ended_run: Path, finished_run: Path) -> None:
    for name in DAMAGED:
        _truncate(ended_run / name)
    mended = [event.file for event in go_on(ended_run) if isinstance(event, FileMended)]
    assert mended == [*sorted(name.removesuffix("/model.safetensors") for name in DAMAGED[:-1]), "metrics.jsonl"]
    assert_same(ended_run, finished_run)
    assert not [event for event in go_on(ended_run) if isinstance(event, FileMended | TrainingStep | Generated)]


# Each file and link of a finished run that is not the record of its own making, and what says that it is made again.
GONE = [
    "checkpoints/07",
    "checkpoints/best",
    "checkpoints/latest",
    "checkpoints/08/chat_template.jinja",
    "checkpoints/08/config.json",
    "checkpoints/08/generation_config.json",
    "checkpoints/08/learned.json",
    "checkpoints/08/model.safetensors",
    "checkpoints/08/tokenizer_config.json",
    "metrics.jsonl",
    "plots",
    "plots/accuracy.png",
    "plots/labels.png",
    "rounds/07",
    "rounds/07/candidates.parquet",
    "rounds/07/examples.parquet",
    "rounds/07/examples.preview.jsonl",
    "rounds/07/generation.json",
    "rounds/07/training.json",
    "rounds/supervised/examples.parquet",
    "rounds/supervised/examples.preview.jsonl",
    "settings.json",
    "tensorboard",
]


def _tree(root: Path) -> set[str]:
    """Names below a run; TensorBoard's hold the time and the process."""
    names = (path.relative_to(root) for path in root.rglob("*") if not path.name.startswith("."))
    return {str(name.parent if name.parts[0] == "tensorboard" and len(name.parts) > 1 else name) for name in names}


@pytest.fixture(scope="module")
def tracked_run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run, opened and told to TensorBoard as the command does."""
    root = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("runs") / "tracked", symlinks=True))
    go_on(root)
    return root


@pytest.mark.parametrize("name", GONE)
def test_what_is_gone_is_made_again(name: str, tracked_run: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tracked_run, tmp_path / "run", symlinks=True))
    path = root / name
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    go_on(root)
    assert _tree(root) == _tree(tracked_run)
    assert_same(root, tracked_run)
    for kept in ("settings.json", "rounds/07/examples.preview.jsonl", "checkpoints/08/learned.json"):
        assert (root / kept).read_bytes() == (tracked_run / kept).read_bytes()


def test_all_of_a_run_is_made_again_or_named_here(tracked_run: Path) -> None:
    """Only the settings are not made again; the command says that they are gone."""
    whole = {"checkpoints/06", "rounds/08", "rounds/supervised/training.json", "config.toml"}
    gone = {*GONE, *whole, "checkpoints", "rounds", "rounds/supervised", "checkpoints/08"}
    for name in _tree(tracked_run):
        like_it = name.replace("checkpoints/07/", "checkpoints/08/").replace("rounds/08/", "rounds/07/")
        assert like_it in gone or like_it.startswith("checkpoints/06/"), name


def test_a_run_without_its_settings_says_so(ended_run: Path) -> None:
    (ended_run / "config.toml").unlink()
    with pytest.raises(InputError, match=r"is not empty and has no config\.toml"), open_run(ended_run, {}, "test"):
        pass


def test_a_record_of_training_that_is_gone_has_its_phase_done_again(ended_run: Path) -> None:
    (ended_run / "rounds" / "supervised" / "training.json").unlink()
    with open_run(ended_run, {}, "test") as (run, config):
        assert next(self_play(run, config)) == FileMended("rounds/supervised/training.json")
        assert not run.supervised(6).is_trained


def test_a_run_copied_without_its_links_goes_on(finished_run: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(finished_run, tmp_path / "copied"))
    assert not (root / "checkpoints" / "best").is_symlink()
    go_on(root)
    assert_same(root, finished_run)


def test_a_truncated_snapshot_is_no_snapshot(fresh_run: Path, finished_run: Path) -> None:
    with open_run(fresh_run, {}, "test") as (run, config):
        next(event for event in self_play(run, config) if isinstance(event, GoalMeasured))
    _truncate(fresh_run / "training.safetensors")
    assert go_on(fresh_run)[0] == FileMended("training.safetensors")
    assert_same(fresh_run, finished_run)


# Numbers that are none


@pytest.mark.parametrize("at", [3, 5, 7], ids=["mid cycle", "last step", "second cycle"])
def test_a_loss_that_is_no_number_is_never_saved(
    fresh_run: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Once, at a step of round 7: the error names it, and the same command goes on as if nothing had been."""
    true_loss, calls, shards = place_rows.Rows.loss, [], RoundConfig().trainer.num_shards

    def poisoned(*args: Any) -> torch.Tensor:
        calls.append(1)
        return true_loss(*args) * (float("nan") if len(calls) > shards * (at - 1) else 1.0)

    monkeypatch.setattr(place_rows.Rows, "loss", poisoned)
    with pytest.raises(Diverged, match=f"nan at step {(at - 1) % 5}"):
        go_on(fresh_run)
    monkeypatch.setattr(place_rows.Rows, "loss", true_loss)
    go_on(fresh_run)
    assert_same(fresh_run, finished_run)


def test_a_gradient_that_is_no_number_stops_before_the_weights_change(
    fresh_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_gradient = distill._gradient_of

    def infinite(*args: Any) -> Gradient:
        gradient = true_gradient(*args)
        gradient.flat[0] = float("inf")
        return gradient

    monkeypatch.setattr(distill, "_gradient_of", infinite)
    with pytest.raises(Diverged, match="gradient"):
        go_on(fresh_run)
    assert not (fresh_run / "checkpoints" / "07").exists() and not (fresh_run / "training.safetensors").exists()


def test_weights_that_are_no_numbers_are_not_saved(fresh_run: Path, tmp_path: Path) -> None:
    model = load_checkpoint(fresh_run)
    with torch.no_grad():
        model.head.weight[1, 1] = float("inf")
    with pytest.raises(Diverged, match=r"head\.weight"):
        save_checkpoint(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# SIGTERM


def terminate_when(root: Path, reached: Callable[[dict[str, Any]], bool]) -> tuple[int | None, list[dict[str, Any]]]:
    """Run `sector run`, send SIGTERM at the first event that matches; exit code and events."""
    events = []
    with forked("run", "--out", root, "--json") as process:
        for line in process.stdout:
            events.append(json.loads(line))
            if reached(events[-1]):
                process.terminate()
                sent, reached = time.perf_counter(), lambda event: False
    assert time.perf_counter() - sent < 30
    return process.returncode, events


def test_sigterm_saves_the_step_and_ends_well(fresh_run: Path, finished_run: Path) -> None:
    for kind in ("generate", "train", "round"):
        code, events = terminate_when(fresh_run, lambda event, kind=kind: event["event"] == kind)
        assert code == 0 and events[-1]["stopped_because"] == "terminated", kind
    go_on(fresh_run)
    assert_same(fresh_run, finished_run)


def test_asked_to_stop_a_step_of_training_is_saved(fresh_run: Path) -> None:
    asked = stop_signals.Stopping()
    with open_run(fresh_run, {}, "test") as (run, config):
        for event in self_play(run, config, stopping=asked):
            if isinstance(event, TrainingStep) and event.step == 2:
                asked.asked = True
            if isinstance(event, TrainingStep) and event.step == 3:
                break
    assert next_step(fresh_run) == 4


def test_asked_between_the_end_of_a_step_and_its_event_the_next_step_is_saved(fresh_run: Path) -> None:
    asked = stop_signals.Stopping()

    def events(run: RunDir, config: RunConfig) -> Iterator[Event]:
        for event in self_play(run, config, stopping=asked):
            asked.asked |= isinstance(event, TrainingStep) and event.step == 2
            yield event

    with open_run(fresh_run, {}, "test") as (run, config), pytest.raises(typer.Exit):
        follow(events(run, config), run, config, Output(as_json=True), asked)
    assert run.snapshot.exists()
    assert next_step(fresh_run) == 4


def test_ctrl_c_saves_the_step_too_and_a_second_one_does_not_wait(fresh_run: Path) -> None:
    with open_run(fresh_run, {}, "test") as (run, config), stop_signals.stop_on_signals() as asked:

        def events() -> Iterator[Event]:
            for event in self_play(run, config, stopping=asked):
                if isinstance(event, TrainingStep) and event.step == 2:
                    signal.raise_signal(signal.SIGINT)
                yield event

        # Closed, since a round under way has the oracle sealed.
        with closing(events()) as told, pytest.raises(Interrupted, match=r"interrupted; the same command resumes \S+$"):
            follow(told, run, config, Output(as_json=True), asked)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    again = next(event for event in go_on(fresh_run) if isinstance(event, TrainingStep))
    assert again.step == 4


def test_a_stdout_that_fills_saves_the_step(fresh_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, told = stop_signals.Stopping(), []

    def line(output: Output, values: dict[str, Any]) -> None:
        told.append(values)
        if values["event"] == "train":
            raise Unwritable("full")

    monkeypatch.setattr(Output, "line", line)
    with (
        open_run(fresh_run, {}, "test") as (run, config),
        closing(self_play(run, config, stopping=asked)) as events,
        pytest.raises(Unwritable),
    ):
        follow(events, run, config, Output(as_json=True), asked)
    saved = next(event.step for event in go_on(fresh_run) if isinstance(event, TrainingStep))
    assert saved == 3 and told[-1]["event"] == "done"


def test_signals_that_were_ignored_stay_ignored_and_others_ask() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals.stop_on_signals() as asked:
            signal.raise_signal(signal.SIGHUP)
            assert not asked.asked
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with stop_signals.stop_on_signals() as asked:
            signal.raise_signal(signal.SIGHUP)
            assert asked.asked and not asked.interrupted
        with pytest.raises(Ended, match="SIGHUP"), ended_by_signals():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("number", "raised"),
    [(signal.SIGTERM, Ended), (signal.SIGHUP, Ended), (signal.SIGINT, KeyboardInterrupt)],
    ids=["SIGTERM", "SIGHUP", "SIGINT"],
)
def test_a_signal_that_meets_a_deletion_is_not_lost(number: signal.Signals, raised: type[BaseException]) -> None:
    """Python drops an exception that is raised while an object is deleted, as happens when a library is imported."""

    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(number)

    handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, handler)
    try:
        with ended_by_signals():
            # Nothing holds it.
            Dying()
            with pytest.raises(raised):
                time.sleep(10)
    finally:
        signal.signal(number, before)


def test_what_is_waited_for_after_being_asked() -> None:
    train = TrainingStep(7, 1, step=1, of=2, loss=1.0, tokens_per_s=1.0)
    other = Generated(7, tried=1, of=2, accepted=1, tokens_per_s=1.0)
    asked = stop_signals.Stopping()
    assert not asked.ends_after(train) and not asked.ends_after(other)
    asked.asked = True
    # Asked between its saving and here, a step may not be saved.
    assert not asked.ends_after(train) and asked.ends_after(train)
    asked = stop_signals.Stopping()
    asked.asked = True
    assert asked.ends_after(other)


def test_what_takes_too_long_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_signals, "PATIENCE_SECONDS", 0.2)
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals.stop_on_signals() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.asked
        with pytest.raises(stop_signals.Terminated):
            signal.pause()
    assert signal.getsignal(signal.SIGTERM) is before


# Two at once


def test_a_second_run_is_refused_and_names_the_holder(fresh_run: Path) -> None:
    with open_run(fresh_run, {}, "test"), forked("run", "--out", fresh_run) as process:
        said = process.stderr.read()
    assert process.returncode == 2 and said.count("\n") == 1
    for what in ("in use", f"process {os.getpid()}", socket.gethostname(), "since 20"):
        assert what in said
    with open_run(fresh_run, {}, "test"):
        pass
