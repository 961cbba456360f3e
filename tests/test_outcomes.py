"""Outcomes of runs: figures of one, and means with intervals over several."""

from pathlib import Path
from typing import Any

import pytest
from recorded import SHA, generation, round_metrics, write_metrics

from sector.engine.config import run_config
from sector.engine.report.outcomes import Outcome, mean_of, means_by_round, means_of, outcome_of
from sector.engine.run.directory import RunDir
from sector.engine.run.records import (
    EvaluationRecord,
    GenerationRecord,
    LengthScore,
    RoundMetrics,
    StartRecord,
    dump_file,
)


def line(digits: int, own: float = 1.0, **changes: Any) -> RoundMetrics:
    """A line of metrics.jsonl with 1.0 everywhere but at the round's own length."""
    accuracy = {**dict.fromkeys(range(1, digits + 2), 1.0), digits: own}
    accepted = 100 if digits > 6 else 0
    values = {"tried": 4 * accepted, "accepted": accepted, "label_error": 0.01 if accepted else None}
    figures = {"tokens_generated": 10, "tokens_trained": 20, "seconds_total": 2.0 * digits}
    return round_metrics(digits, **{"accuracy": accuracy, **values, **figures, **changes})


def run_of(root: Path, *lines: RoundMetrics, **settings: Any) -> RunDir:
    run = RunDir(root)
    run.write_config(run_config({"until": 9, **settings}))
    write_metrics(root, *lines)
    return run


def score(accuracy: float) -> LengthScore:
    return LengthScore(digits=1, correct=0, samples=1, accuracy=accuracy, low=0.0, high=1.0)


def test_a_finished_run_in_figures(tmp_path: Path) -> None:
    run = run_of(tmp_path, line(6), line(7), line(8, accepted=300, label_error=0.05), line(9, own=0.4), seed=4)
    run.supervised(6).write(StartRecord(snapshot="other", seconds=60.0))
    (run.plots()).mkdir()
    evaluation = EvaluationRecord(
        policy="fast",
        samples=1,
        lengths=[score(1.0), score(0.5)],
        suite=[],
        seed=0,
        engine="native",
        weights_sha256=SHA,
        seconds=1.0,
    )
    (run.plots() / "eval-fast.json").write_text(dump_file(evaluation))
    outcome = outcome_of(run)
    assert outcome is not None
    assert (outcome.seed, outcome.stopped_because, outcome.final_digits) == (4, "reached", 9)
    assert (outcome.rounds, outcome.rounds_survived) == (3, 2)
    assert outcome.collapsed_at == 9
    assert outcome.label_errors == {7: 0.01, 8: 0.05, 9: 0.01}
    assert outcome.accuracies == {7: 1.0, 8: 1.0, 9: 0.4} and outcome.agreements == {7: 0.9, 8: 0.9, 9: 0.9}
    assert outcome.mean_label_error == pytest.approx((0.01 * 100 + 0.05 * 300 + 0.01 * 100) / 500)
    assert outcome.final_accuracy == pytest.approx((8 + 0.4) / 9)
    assert (outcome.eval_accuracy, outcome.eval_lowest) == (0.75, 0.5)
    assert (outcome.tokens, outcome.seconds) == (4 * 30, 18.0 + 60.0)


@pytest.mark.parametrize(
    ("last", "generation", "said"),
    [
        ({}, None, None),
        ({"next_agreement": 0.2}, None, "no agreement at 9 digits"),
        ({}, generation(accepted=0), "nothing accepted at 9 digits"),
        ({}, generation(accepted=5), None),
    ],
    ids=["under way", "no agreement", "nothing accepted", "between phases"],
)
def test_why_a_run_is_over(tmp_path: Path, last: dict, generation: GenerationRecord | None, said: str | None) -> None:
    run = run_of(tmp_path, line(6), line(7), line(8, **last))
    if generation:
        run.round(9).write(generation)
    outcome = outcome_of(run)
    assert outcome is not None and outcome.stopped_because == said


@pytest.mark.parametrize(
    ("own", "last", "fate", "survived", "at"),
    [
        (1.0, {}, "alive", 2, None),
        (0.49, {}, "collapsed", 1, 8),
        (0.5, {"next_agreement": 0.2}, "stopped", 2, None),
        (0.4, {"next_agreement": 0.2}, "collapsed", 1, 8),
    ],
    ids=["alive", "collapsed", "stopped", "collapsed, then stopped"],
)
def test_a_run_that_stops_before_it_collapses_has_starved(
    tmp_path: Path, own: float, last: dict[str, Any], fate: str, survived: int, at: int | None
) -> None:
    outcome = outcome_of(run_of(tmp_path, line(6), line(7), line(8, own=own, **last)))
    assert outcome is not None
    assert (outcome.fate, outcome.rounds_survived, outcome.collapsed_at) == (fate, survived, at)
    assert outcome.as_json()["fate"] == fate


@pytest.mark.parametrize(
    ("own", "fate", "survived", "at"),
    [((0.4, 1.0, 1.0), "alive", 3, None), ((0.4, 0.5, 0.4), "collapsed", 2, 9), ((0.4, 0.4, 0.4), "collapsed", 0, 7)],
    ids=["recovers", "falls again", "never recovers"],
)
def test_a_run_that_recovers_has_not_collapsed(
    tmp_path: Path, own: tuple[float, ...], fate: str, survived: int, at: int | None
) -> None:
    rounds = [line(digits, own=accuracy) for digits, accuracy in zip((7, 8, 9), own, strict=True)]
    outcome = outcome_of(run_of(tmp_path, line(6), *rounds))
    assert outcome is not None and (outcome.fate, outcome.rounds_survived, outcome.collapsed_at) == (fate, survived, at)


def test_before_the_supervised_phase_is_done_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert outcome_of(run_of(tmp_path)) is None


def test_intervals_are_student_s() -> None:
    # Of 1, 2, 3: standard error 1/sqrt(3), and 4.302653 of them at two degrees of freedom.
    mean = mean_of([1.0, 2.0, 3.0])
    assert (mean.mean, mean.count) == (2.0, 3)
    assert mean.low == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-5)
    assert mean.high == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-5)
    assert (mean_of([5.0]).low, mean_of([5.0]).high) == (None, None)
    assert (mean_of([5.0, 5.0]).low, mean_of([5.0, 5.0]).high) == (5.0, 5.0)


def test_runs_that_lack_a_figure_do_not_count_in_its_mean() -> None:
    def outcome(seed: int, errors: dict[int, float | None], accuracy: float | None) -> Outcome:
        return Outcome(seed, "reached", 9, 3, 3, None, errors, {}, {}, None, 1.0, accuracy, accuracy, 100, 10.0)

    both = [outcome(0, {7: 0.1, 8: None}, 0.5), outcome(1, {7: 0.3}, None)]
    means = means_of(both)
    assert means["eval_accuracy"].mean == 0.5 and means["eval_accuracy"].count == 1
    assert "mean_label_error" not in means and means["tokens"].count == 2
    errors = means_by_round(both, "label_errors")
    assert list(errors) == [7] and errors[7].mean == pytest.approx(0.2)
