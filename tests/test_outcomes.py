"""What became of runs: figures of one, and means with intervals over several."""

import json
from pathlib import Path
from typing import Any

import pytest

from sector.engine.config import run_config
from sector.engine.report.outcomes import Outcome, label_errors_of, mean_of, means_of, outcome_of
from sector.engine.run.directory import RunDir


def line(digits: int, own: float = 1.0, **changes: Any) -> dict[str, Any]:
    """A line of metrics.jsonl with 1.0 everywhere but at the round's own length."""
    return {
        "phase": "round" if digits > 6 else "sft",
        "digits": digits,
        "accepted": 100 if digits > 6 else 0,
        "label_error": 0.01 if digits > 6 else None,
        "accuracy": {**{str(length): 1.0 for length in range(1, digits + 2)}, str(digits): own},
        "next_agreement": 0.9,
        "tokens_generated": 10,
        "tokens_trained": 20,
        "seconds_total": 2.0 * digits,
        **changes,
    }


def run_of(root: Path, *lines: dict[str, Any], **settings: Any) -> RunDir:
    run = RunDir(root)
    run.write_config(run_config({"until": 9, **settings}))
    (root / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    return run


def test_a_finished_run_in_figures(tmp_path: Path) -> None:
    run = run_of(tmp_path, line(6), line(7), line(8, accepted=300, label_error=0.05), line(9, own=0.5), seed=4)
    run.write_json(0, "start", {"seconds": 60.0})
    (run.plots()).mkdir()
    scores = [{"accuracy": 1.0}, {"accuracy": 0.5}]
    (run.plots() / "eval-fast.json").write_text(json.dumps({"lengths": scores}))
    outcome = outcome_of(run)
    assert outcome is not None
    assert (outcome.seed, outcome.stopped_because, outcome.final_digits) == (4, "reached", 9)
    assert (outcome.rounds, outcome.rounds_survived) == (3, 2)
    assert outcome.label_errors == {7: 0.01, 8: 0.05, 9: 0.01}
    assert outcome.mean_label_error == pytest.approx((0.01 * 100 + 0.05 * 300 + 0.01 * 100) / 500)
    assert outcome.final_accuracy == pytest.approx((8 + 0.5) / 9)
    assert (outcome.eval_accuracy, outcome.eval_lowest) == (0.75, 0.5)
    assert (outcome.tokens, outcome.seconds) == (4 * 30, 18.0 + 60.0)


@pytest.mark.parametrize(
    ("last", "generation", "said"),
    [
        ({}, None, None),
        ({"next_agreement": 0.2}, None, "no agreement at 9 digits"),
        ({}, {"accepted": 0}, "nothing accepted at 9 digits"),
        ({}, {"accepted": 5}, None),
    ],
    ids=["under way", "no agreement", "nothing accepted", "between phases"],
)
def test_why_a_run_is_over(tmp_path: Path, last: dict, generation: dict | None, said: str | None) -> None:
    run = run_of(tmp_path, line(6), line(7), line(8, **last))
    if generation:
        run.write_json(9, "generation", generation)
    outcome = outcome_of(run)
    assert outcome is not None and outcome.stopped_because == said


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
        return Outcome(seed, "reached", 9, 3, 3, errors, None, 1.0, accuracy, accuracy, 100, 10.0)

    both = [outcome(0, {7: 0.1, 8: None}, 0.5), outcome(1, {7: 0.3}, None)]
    means = means_of(both)
    assert means["eval_accuracy"].mean == 0.5 and means["eval_accuracy"].count == 1
    assert "mean_label_error" not in means and means["tokens"].count == 2
    errors = label_errors_of(both)
    assert list(errors) == [7] and errors[7].mean == pytest.approx(0.2)
