"""Trackers: the figures that they receive, their steps, and that a resumed run continues in the same place."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from recorded import round_metrics, write_metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from sector.cli.app import app
from sector.engine.config import run_config
from sector.engine.errors import InputError
from sector.engine.report.trackers import log_to_trackers
from sector.engine.run.directory import RunDir
from sector.engine.run.events import FrontierMoved, Generated, GoalMeasured, PhaseAudited, TrainingStep

CONFIG = run_config({"until": 8, "supervised": {"cycle_steps": 100, "more_steps": 40}, "round": {"cycle_steps": 20}})


def train(digits: int, cycle: int, step: int, of: int, loss: float = 1.0) -> TrainingStep:
    return TrainingStep(digits, cycle, step, of, loss, tokens_per_s=1e4)


def goal(digits: int, cycle: int, agreement: float, trained: float | None = None) -> GoalMeasured:
    return GoalMeasured(digits, cycle, met=False, agreement=agreement, accuracy=None, trained=trained)


def round_event(digits: int, cycles: int) -> PhaseAudited:
    tried = 10 if digits > 6 else 0
    accuracy = {length: 1 - length / 100 for length in range(1, digits + 2)}
    values = {"tried": tried, "accepted": tried * 8 // 10, "label_error": 0.125 if tried else None}
    return PhaseAudited(round_metrics(digits, cycles=cycles, accuracy=accuracy, **values))


EVENTS = [
    train(0, 1, 20, 100),
    train(0, 1, 100, 100, loss=0.5),
    goal(0, 1, 0.5),
    train(0, 2, 20, 40),
    goal(0, 2, 0.95),
    round_event(6, 2),
    Generated(7, tried=10, of=10, accepted=8, tokens_per_s=1.0),
    train(7, 1, 20, 20),
    goal(7, 1, 0.9, trained=0.8),
    round_event(7, 1),
    FrontierMoved(7),
]


def scalars(root: Path) -> dict[str, list[tuple[int, float]]]:
    found = EventAccumulator(str(root / "tensorboard"))
    found.Reload()
    return {tag: [(each.step, each.value) for each in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_events_pass_through_and_tensorboard_has_the_figures(tmp_path: Path) -> None:
    assert list(log_to_trackers(iter(EVENTS), RunDir(tmp_path), CONFIG)) == EVENTS
    found = scalars(tmp_path)
    assert found["train/loss"] == [(20, 1.0), (100, 0.5), (120, 1.0), (160, 1.0)]
    assert found["goal/agreement"] == [(100, 0.5), (140, pytest.approx(0.95)), (160, pytest.approx(0.9))]
    assert found["goal/trained"] == [(160, pytest.approx(0.8))]
    assert found["round/digits"] == [(140, 6.0), (160, 7.0)]
    assert found["round/label_error"] == [(160, 0.125)] and found["rejected/outvoted"] == [(160, pytest.approx(0.2))]
    assert found["accuracy/own length"] == [(140, pytest.approx(0.94)), (160, pytest.approx(0.93))]
    assert found["accuracy/one digit more"] == [(140, pytest.approx(0.93)), (160, pytest.approx(0.92))]


def test_a_resumed_run_goes_on_at_its_step_and_takes_back_what_was_lost(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    # Killed in the round at 7, after its training and before its audit.
    list(log_to_trackers(iter([*EVENTS[:6], train(7, 1, 20, 20, loss=9.0)]), run, CONFIG))
    write_metrics(tmp_path, EVENTS[5].metrics)
    list(log_to_trackers(iter(EVENTS[6:]), run, CONFIG))
    found = scalars(tmp_path)
    assert found["train/loss"][-1] == (160, 1.0) and (160, 9.0) not in found["train/loss"]
    assert found["round/digits"] == [(140, 6.0), (160, 7.0)]


def test_a_run_with_nothing_to_do_leaves_no_events(tmp_path: Path) -> None:
    assert list(log_to_trackers([], RunDir(tmp_path), CONFIG)) == []
    assert not (tmp_path / "tensorboard").exists()


class Service(SimpleNamespace):
    """Stand-in for the part that Weights & Biases and trackio have in common."""

    def __init__(self) -> None:
        super().__init__(started=[], logged=[], finished=0)

    def init(self, **settings: Any) -> None:
        self.started.append(settings)

    def log(self, figures: dict[str, float], step: int) -> None:
        self.logged.append((step, figures))

    def finish(self) -> None:
        self.finished += 1


@pytest.mark.parametrize("name", ["wandb", "trackio"], ids=str)
def test_services_are_told_the_same(tmp_path: Path, name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    monkeypatch.setitem(sys.modules, name, service)
    list(log_to_trackers(iter(EVENTS), RunDir(tmp_path / "run"), CONFIG, [name]))
    (settings,) = service.started
    assert settings["project"] == "sector" and settings["config"] == CONFIG.model_dump()
    assert settings["resume"] == "allow" and settings["name"].startswith("run-")
    steps = [step for step, _ in service.logged]
    assert steps == sorted(steps) and service.finished == 1
    assert {name for _, figures in service.logged for name in figures} == set(scalars(tmp_path / "run"))
    list(log_to_trackers(iter(EVENTS), RunDir(tmp_path / "run"), CONFIG, [name]))
    assert service.started[0] == service.started[1]


def test_services_are_closed_when_a_run_ends_badly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service)

    def events() -> Any:
        yield EVENTS[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        list(log_to_trackers(events(), RunDir(tmp_path), CONFIG, ["wandb"]))
    assert service.finished == 1 and scalars(tmp_path)["train/loss"] == [(20, 1.0)]


def test_what_keeps_a_service_from_starting_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(InputError, match=r"pip install 'sector-lm\[trackio\]'"):
        list(log_to_trackers(iter(EVENTS), RunDir(tmp_path), CONFIG, ["trackio"]))

    def no_account(**_: Any) -> None:
        raise OSError("no account\nand more")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=no_account))
    with pytest.raises(InputError, match=r"--track wandb does not start: no account$"):
        list(log_to_trackers(iter(EVENTS), RunDir(tmp_path), CONFIG, ["wandb"]))


def test_the_real_weights_and_biases_takes_a_run_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "run").mkdir()
    list(log_to_trackers(iter(EVENTS), RunDir(tmp_path / "run"), CONFIG, ["wandb"]))
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_the_real_trackio_takes_a_run_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    list(log_to_trackers(iter(EVENTS), RunDir(tmp_path / "run"), CONFIG, ["trackio"]))
    assert list((tmp_path / "trackio").glob("*.db"))


def test_the_command_hands_trackers_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service)
    (tmp_path / "small.toml").write_text(
        "until = 3\naudit_samples = 4\nround.probe = 4\n"
        "supervised = { max_digits = 2, cycle_steps = 20, max_cycles = 1, examples = 8 }"
    )
    args = ["sft", "--out", str(tmp_path / "run"), "--config", str(tmp_path / "small.toml"), "--track", "wandb"]
    result = CliRunner().invoke(app, args, prog_name="sector", catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert [step for step, _ in service.logged] == [20, 20, 20] and service.finished == 1
    assert scalars(tmp_path / "run")["round/digits"] == [(20, 2.0)]
