"""The live view of a run: it fits the terminal, and its time left follows from the last rounds."""

import io
import os
import re
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from recorded import round_metrics

from sector.cli._live import LiveView, frame
from sector.cli._output import PlainConsole
from sector.cli._tally import Tally
from sector.engine.config import RunConfig
from sector.engine.run.events import FrontierMoved, Generated, GoalMeasured, PhaseAudited, TrainingStep
from sector.engine.run.records import RoundMetrics
from sector.engine.run.stop_signals import HINT, stop_on_signals


def _step(digits: int, step: int, of: int) -> TrainingStep:
    return TrainingStep(digits, cycle=1, step=step, of=of, loss=1.0, tokens_per_s=5e4)


def _metrics(digits: int) -> RoundMetrics:
    is_round = digits > 6
    return round_metrics(
        digits,
        tried=600 if is_round else 0,
        accepted=594 if is_round else 0,
        thought_through=12 if is_round else 0,
        label_error=0.001 if is_round else None,
        cycles=2,
        accuracy=dict.fromkeys(range(1, digits + 2), 0.99),
        seconds_generate=10.0,
        seconds_train=10.0,
        seconds_audit=2.0,
        seconds_total=30.0 * digits,
    )


@pytest.mark.parametrize(
    "title", ["runs/tiny-seed0", "x" * 90, "[red]\x1b[31m:smile:"], ids=["usual", "long", "markup"]
)
@pytest.mark.parametrize("reached", [0, 6, 7, 28, 100], ids=str)
def test_a_frame_fits_the_terminal(reached: int, title: str) -> None:
    tally = Tally(RunConfig(until=110), [_metrics(digits) for digits in range(6, reached + 1)])
    tally.take(_step(0, 900, 1000))
    tally.take(GoalMeasured(0, 1, met=False, agreement=0.5, accuracy=0.9, trained=None))
    tally.take(Generated(101, tried=50, of=1000, accepted=40, tokens_per_s=5e4))
    console = PlainConsole(width=80, height=24, file=io.StringIO(), record=True)
    console.print(frame(title, tally, 80, 24))
    text = console.export_text()
    lines = text.splitlines()
    assert (
        re.search(r"\d:\d\d( about .* left)? *$", lines[0].replace("  about", " about"))
        and "\x1b" not in text
        and title.replace("\x1b", "\\x1b")[:40] in lines[0]
    )
    # The note is folded, and no figure is cut.
    assert "tried 50/1000  accepted 80.0 %" in text and text.count("\u2026") == (len(title) > 60)
    assert len(lines) < 24 and max(map(len, lines)) <= 80
    assert ("left" in lines[0]) == (reached > 6)
    if reached > 6:
        row = next(line.split() for line in lines if line.split()[:1] == [str(reached)])
        assert row[1:5] == ["99.0", "%", "2.0", "%"] and row[-2:] == ["2", "22"]


@pytest.mark.parametrize("width", [80, 100, 120], ids=str)
def test_the_supervised_phase_shows_all_lengths_to_come(width: int) -> None:
    accuracy = {length: 0.99 if length < 20 else 0.4 for length in range(1, 31)}
    line = _metrics(6).model_copy(update={"accuracy": accuracy})
    console = PlainConsole(width=width, height=24, file=io.StringIO(), record=True)
    console.print(frame("runs/first", Tally(RunConfig(), [line], 6), width, 24))
    lines = console.export_text().splitlines()
    assert any(each.split() == ["\u2587"] * 19 + ["\u2581"] * 11 for each in lines)
    assert any(each.split() == ["1", "6", "10", "15", "20", "25", "30"] for each in lines)


def test_the_time_left_counts_down_and_never_below_nothing() -> None:
    tally = Tally(RunConfig(until=9), [_metrics(digits) for digits in range(6, 9)])
    tally.take(Generated(9, tried=1000, of=1000, accepted=900, tokens_per_s=5e4))
    left = tally.seconds_left()
    # Rounds at 7 and 8 took 30 seconds each, 60 / (49 + 64) a squared digit.
    assert left == pytest.approx(81 * 60 / 113, abs=1)
    tally.take(PhaseAudited(_metrics(9)))
    assert tally.seconds_left() == 0


def test_a_note_of_two_lines_is_whole() -> None:
    tally = Tally(RunConfig(until=110), [_metrics(digits) for digits in range(6, 29)], 28)
    tally.take(GoalMeasured(29, 1, met=True, agreement=0.971, accuracy=0.993, trained=0.982))
    console = PlainConsole(width=80, height=24, file=io.StringIO(), record=True)
    console.print(frame("runs/first", tally, 80, 24))
    text = console.export_text()
    assert all(figure in text for figure in ("97.1 %", "98.2 %", "99.3 %")) and len(text.splitlines()) < 24


def test_agreement_is_named_once_and_never_more_than_all() -> None:
    tally = Tally(RunConfig(), [], 0)
    tally.take(GoalMeasured(0, 1, met=True, agreement=0.98, accuracy=0.993, trained=1.0))
    assert tally.note == "agreement 98.0 % at 7 digits, lowest at trained lengths 100.0 %; lowest accuracy 99.3 %"


def test_the_time_left_is_not_nothing_in_the_middle_of_a_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round takes longer than the last ones; its remaining steps are estimated by their own pace."""
    now = [1000.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    tally = Tally(RunConfig(until=9), [_metrics(digits) for digits in range(6, 9)], 8)
    for done in range(1, 39):
        now[0] += 10
        tally.take(_step(9, done, 60))
    assert tally.seconds_left() == pytest.approx(22 * 10)


@contextmanager
def _terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Make stderr a terminal, and yield its other end."""
    end, of_process = os.openpty()
    with open(of_process, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        yield end
    os.close(end)


def _written(terminal: int) -> str:
    """Return the text that arrives on a terminal within a moment."""
    return os.read(terminal, 999).decode() if select.select([terminal], [], [], 0.2)[0] else ""


def test_ctrl_c_is_answered_inside_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of its own would be drawn over by the next frame, and would leave a header behind."""
    console = PlainConsole(width=80, height=24, file=io.StringIO(), force_terminal=True)
    tally = Tally(RunConfig(), [], 0)
    with _terminal(monkeypatch) as terminal, stop_on_signals() as stopping:
        with LiveView(console, "runs/first", tally, stopping) as view:
            signal.raise_signal(signal.SIGINT)
            view.show(GoalMeasured(0, 1, met=True, agreement=1.0, accuracy=1.0, trained=1.0))
            assert console.file.getvalue().count(HINT) == 1
        assert console.file.getvalue().count(HINT) == 1, "the last frame stays on screen"
        assert _written(terminal) == ""


def test_ctrl_c_without_a_view_is_answered_by_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with _terminal(monkeypatch) as terminal, stop_on_signals():
        signal.raise_signal(signal.SIGINT)
        assert _written(terminal).strip() == f"sector: {HINT}"


def _resumed(until: int, *lines: RoundMetrics) -> Tally:
    """Return the tally of a resumed run that has passed its finished rounds."""
    tally = Tally(RunConfig(until=until), lines, lines[-1].digits)
    for line in lines[1:]:
        tally.take(FrontierMoved(line.digits))
        assert tally.frontier == lines[-1].digits and tally.seconds_left() is None
    return tally


def test_a_resumed_round_has_only_the_rest_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its problems and half of its steps were done by an earlier command."""
    monkeypatch.setattr("time.perf_counter", lambda: 1000.0)
    # A round takes 20 seconds to generate, 40 to train, and 60 in all.
    seconds = {"seconds_generate": 20.0, "seconds_train": 40.0, "cycles": 1}
    lines = [_metrics(digits).model_copy(update={**seconds, "seconds_total": 60.0 * digits}) for digits in (6, 7, 8)]
    tally = _resumed(9, *lines)
    tally.take(_step(9, 161, 320))
    assert tally.seconds_left() == pytest.approx((60 - 20 - 20) * 81 * 2 / 113)


def test_a_goal_that_was_raised_does_not_shorten_the_leaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last leap of a run that reached its goal was cut off there; the rounds to come are at 21, 25 and 29."""
    monkeypatch.setattr("time.perf_counter", lambda: 1000.0)
    leaps = ((6, 5), (11, 5), (16, 4), (20, 1))
    tally = _resumed(29, *(_metrics(digits).model_copy(update={"leap": leap}) for digits, leap in leaps))
    tally.take(Generated(21, tried=1000, of=1000, accepted=900, tokens_per_s=5e4))
    rate = 30 * (20 - 6) / (11**2 + 16**2 + 20**2)
    assert tally.seconds_left() == pytest.approx(rate * (21**2 + 25**2 + 29**2))


def test_a_phase_is_timed_by_the_steps_of_this_command(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    tally = _resumed(9, *map(_metrics, (6, 7, 8)))
    for step in range(301, 311):
        now[0] += 10
        tally.take(_step(9, step, 320))
    assert tally.seconds_left() == pytest.approx(10 * 10)


def test_what_would_be_done_again_is_said() -> None:
    tally = Tally(RunConfig(until=9), [], 0)
    tally.take(_step(0, 319, 1600))
    assert tally.lost == "; 119 steps of training are done again"
    tally.saved(_step(0, 319, 1600))
    assert tally.lost == ""
    for done in (200, 1600):
        tally.take(_step(0, done, 1600))
        assert tally.lost == ""
    tally.take(Generated(7, tried=250, of=600, accepted=240, tokens_per_s=5e4))
    assert tally.lost == "; 250 problems of 7 digits are tried again"
