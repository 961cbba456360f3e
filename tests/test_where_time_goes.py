"""Where the time of a run went: phases that add up, also of rounds that leap and of runs that noted less."""

from typing import Any

import pytest
from recorded import round_metrics

from sector.benchmarks.where_time_goes import phases
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.run.records import RoundMetrics

MATRICES, RATE, SAMPLES = 1000, 1e6, 10


def line(digits: int, seconds_total: float, **more: Any) -> RoundMetrics:
    """A line of metrics.jsonl, as far as time goes: a round that took 8 of the seconds before it."""
    seconds = {"seconds_generate": 2.0, "seconds_train": 4.0, "seconds_probe": 1.0, "seconds_audit": 1.0}
    tokens = {"tokens_generated": 100, "tokens_trained": 300, "tokens_probed": 50}
    return round_metrics(digits, first=2, seconds_total=seconds_total, **{**seconds, **tokens, **more})


def start() -> RoundMetrics:
    return line(2, 10.0, tokens_generated=0, seconds_generate=0.0)


def test_the_phases_of_a_run_that_leaps_add_up_to_it() -> None:
    lines = [start(), line(3, 20.0, leap=4), line(7, 30.0, leap=1)]
    rows = {row["phase"]: row for row in phases(lines, MATRICES, RATE, PlaceLayout(), SAMPLES)}
    seconds = {name: row["seconds"] for name, row in rows.items()}
    assert seconds == {"supervise": 4, "generate": 4, "distill": 8, "probes": 3, "audits": 3, "files": 8}
    assert rows["generate"]["tokens"] == 200 and rows["generate"]["tokens_per_s"] == 50
    # Twice the parameters a token where it only comes out, six times where it is trained.
    assert rows["generate"]["share_of_rate"] == pytest.approx(2 * MATRICES * 50 / RATE)
    assert rows["distill"]["share_of_rate"] == pytest.approx(6 * MATRICES * 75 / RATE)


def test_an_audit_asks_for_answers_of_all_lengths_and_for_the_frontier() -> None:
    rows = {row["phase"]: row for row in phases([start()], MATRICES, RATE, PlaceLayout(), SAMPLES)}
    # Answers of 1 to 3 digits, of which the end is one; then the frontier's at 3 digits, and simplifications.
    assert rows["audits"]["tokens"] == SAMPLES * ((3 + 4 + 5) + 5 + 10)


def test_an_audit_that_looks_ahead_asks_for_more_answers_and_the_same_frontier() -> None:
    ahead = line(2, 10.0, phase="sft", accuracy=dict.fromkeys(range(1, 6), 1.0))
    rows = {row["phase"]: row for row in phases([ahead], MATRICES, RATE, PlaceLayout(), SAMPLES)}
    assert rows["audits"]["tokens"] == SAMPLES * ((3 + 4 + 5 + 6 + 7) + 5 + 10)


def test_a_phase_that_took_no_time_is_left_out() -> None:
    rows = phases([start()], MATRICES, RATE, PlaceLayout(), SAMPLES)
    assert [row["phase"] for row in rows] == ["supervise", "probes", "audits", "files"]


def test_older_runs_have_their_probes_among_the_files() -> None:
    written = [each.model_dump(exclude={"seconds_probe", "tokens_probed"}) for each in (start(), line(3, 20.0))]
    lines = [RoundMetrics(**values) for values in written]
    rows = phases(lines, MATRICES, RATE, PlaceLayout(), SAMPLES)
    assert rows[-1] == {"phase": "probes and files", "seconds": 20 - 4 - 2 - 4 - 2}
