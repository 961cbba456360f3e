"""The live view of a run: it fits the terminal, and its time left is what the last rounds say."""

import io
from typing import Any

import pytest
from rich.console import Console

from sector.cli._follow import Tally
from sector.cli._live import frame
from sector.engine.config import RunConfig


def _metrics(digits: int) -> dict[str, Any]:
    return {
        "phase": "round" if digits > 6 else "sft",
        "digits": digits,
        "tried": 600 if digits > 6 else 0,
        "accepted": 594 if digits > 6 else 0,
        "thought_through": 12 if digits > 6 else 0,
        "agreement": 0.97,
        "label_error": 0.001,
        "fast_label_error": 0.3,
        "next_agreement": 0.95,
        "cycles": 2,
        "accuracy": {str(length): 0.99 for length in range(1, digits + 2)},
        "seconds_generate": 10.0,
        "seconds_train": 10.0,
        "seconds_audit": 2.0,
        "seconds_total": 30.0 * digits,
    }


@pytest.mark.parametrize("reached", [0, 6, 7, 28, 100], ids=str)
def test_a_frame_fits_the_terminal(reached: int) -> None:
    tally = Tally(RunConfig(until=110), [_metrics(digits) for digits in range(6, reached + 1)])
    tally.take({"event": "train", "digits": 0, "cycle": 1, "step": 900, "of": 1000, "loss": 1.0, "tokens_per_s": 5e4})
    tally.take({"event": "goal", "digits": 0, "cycle": 1, "met": False, "agreement": 0.5, "accuracy": 0.9})
    tally.take({"event": "generate", "digits": 101, "tried": 50, "of": 1000, "accepted": 40, "tokens_per_s": 5e4})
    console = Console(width=80, height=24, file=io.StringIO(), record=True)
    console.print(frame("runs/tiny-seed0", tally, 80, 24))
    lines = console.export_text().splitlines()
    assert len(lines) < 24 and max(map(len, lines)) <= 80
    assert ("left" in lines[0]) == (reached > 6)
    if reached > 6:
        row = next(line.split() for line in lines if line.split()[:1] == [str(reached)])
        assert row[1:5] == ["99.0", "%", "2.0", "%"] and row[-2:] == ["2", "22"]


def test_the_time_left_counts_down_and_never_below_nothing() -> None:
    tally = Tally(RunConfig(until=9), [_metrics(digits) for digits in range(6, 9)])
    left = tally.seconds_left()
    # Rounds at 7 and 8 took 30 seconds each, 60 / (49 + 64) a squared digit.
    assert left == pytest.approx(81 * 60 / 113, abs=1)
    tally.take({"event": "round", **_metrics(9)})
    assert tally.seconds_left() == 0
