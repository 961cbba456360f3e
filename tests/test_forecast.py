"""The forecast of a run: measured at the call, told as least and most, and nothing is written."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sector.benchmarks.small_run import small
from sector.cli.app import app
from sector.engine.config import run_config
from sector.engine.errors import InputError
from sector.engine.run import forecast as module
from sector.engine.run.forecast import Forecast, forecast

SETTINGS = small(until=10, audit_samples=5, round={"candidates": 20, "pool": 1, "probe": 5, "probe_trained": 2})


@pytest.fixture(scope="module")
def told() -> Iterator[Forecast]:
    """The forecast, whose measurements stand for those of later forecasts."""
    with pytest.MonkeyPatch.context() as patch:
        made: list[Any] = []

        def once(*arguments: Any) -> Any:
            made.append(made[0] if made else measured(*arguments))
            return made[0]

        measured = module._Measured
        patch.setattr(module, "_Measured", once)
        yield forecast(run_config(SETTINGS))


def test_least_and_most_are_the_paths_that_the_settings_allow(told: Forecast) -> None:
    config = run_config(SETTINGS)
    assert [phase.digits for phase in told.least] == [6, 10]
    assert [phase.digits for phase in told.most] == [6, 7, 8, 9, 10]
    assert [phase.cycles for phase in told.most] == [1, *[config.round.max_cycles] * 4]
    assert told.total["least"]["seconds"] < told.total["most"]["seconds"]
    assert told.weights == "shipped" and list(told.rates) == [7, 8, 10]
    for phase in told.least:
        parts = (phase.seconds_generate, phase.seconds_train, phase.seconds_probe, phase.seconds_audit)
        assert phase.seconds == pytest.approx(sum(parts)) and phase.bytes > 0 and phase.tokens_trained > 0


def test_bytes_are_those_of_a_run(told: Forecast, finished_run: Path) -> None:
    checkpoint = sum(path.stat().st_size for path in (finished_run / "checkpoints" / "08").iterdir())
    rounds = [phase.bytes for phase in told.least if phase.phase == "round"]
    assert checkpoint < rounds[0] < 1.2 * checkpoint


def test_checkpoints_that_are_not_kept_do_not_count(told: Forecast) -> None:
    bounded = forecast(run_config({**SETTINGS, "keep_checkpoints": 1}))
    assert bounded.kept_bytes < bounded.total["least"]["bytes"] == told.kept_bytes


def test_candidates_that_are_not_kept_do_not_count(told: Forecast) -> None:
    settings = {**SETTINGS, "round": {**SETTINGS["round"], "max_leap": 1}}
    every = forecast(run_config(settings))
    last = forecast(run_config({**settings, "keep_candidates": 1}))
    removed = sum(20 * told.rates[digits]["candidates_bytes"] for digits in (7, 8))
    # Of nine digits the size is interpolated.
    assert removed < every.kept_bytes - last.kept_bytes < 2 * removed
    assert every.kept_bytes == every.total["least"]["bytes"]


def test_the_command_tells_which_of_its_options_it_does_not_measure(
    told: Forecast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "forecast", lambda config: told)
    result = CliRunner().invoke(app, ["run", "--dry-run", "--json", "--out", str(tmp_path), "--workers", "2"])
    assert result.exit_code == 0 and json.loads(result.stdout)["least"]
    assert f"{tmp_path} exists; the forecast is of a new run" in result.stderr
    assert "measured in this process alone" in result.stderr
    assert CliRunner().invoke(app, ["run", "--dry-run", "--json"]).stderr == ""


def test_the_command_writes_nothing(told: Forecast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["run", "--until", "10", "--dry-run", "--set", "round.candidates=20", "--set", "audit_samples=5"]
    result = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    assert result.exit_code == 0 and not list(tmp_path.iterdir())
    values = json.loads(result.stdout)
    assert values["forecast"] == "an estimate, measured now" and set(values["total"]) == {"least", "most"}
    said = CliRunner().invoke(app, words, catch_exceptions=False).stdout
    # Each sentence begins a line, however narrow the terminal.
    assert {"At least", "At most"} <= {line[:8].strip() for line in said.splitlines()}
    assert "An estimate" in said and "shipped weights" in said


def test_a_model_of_text_is_refused() -> None:
    with pytest.raises(InputError, match="leave out pretrained"):
        forecast(run_config({"preset": "text-tiny"}))
