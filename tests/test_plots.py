"""The pictures: drawn at any stage of a run, whole, and without pyplot's global state."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sector.engine.run.audit import Score
from sector.engine.run.directory import RunDir
from sector.engine.run.plots import plot_eval, plot_run

PNG = b"\x89PNG"


def line(digits: int, **changes: Any) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    is_round = digits > 6
    rejected = {"unparsable": 1, "outvoted": 9, "not_direct": 0, "not_commutative": 10} if is_round else {}
    return {
        "phase": "round" if is_round else "sft",
        "digits": digits,
        "tried": 100 if is_round else 0,
        "accepted": 80 if is_round else 0,
        "rejected": rejected,
        "label_error": 0.0 if is_round else None,
        "fast_label_error": 0.2 if is_round else None,
        "accuracy": {str(length): 1 - 0.01 * length for length in range(1, digits + 2)},
        **changes,
    }


def nothing_accepted(digits: int) -> dict[str, Any]:
    rejected = {"unparsable": 100, "outvoted": 0, "not_direct": 0, "not_commutative": 0}
    return line(digits, accepted=0, rejected=rejected, label_error=None)


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([line(6)], id="sft only"),
        pytest.param([line(6), line(7)], id="one round"),
        pytest.param([line(digits) for digits in range(6, 30)], id="all"),
        pytest.param([line(6), nothing_accepted(7)], id="nothing accepted"),
        pytest.param([line(6), line(7, label_error=1.0, fast_label_error=1.0)], id="all wrong"),
        pytest.param([line(6, accuracy={str(length): 0.0 for length in range(1, 8)})], id="nothing right"),
    ],
)
def test_a_run_has_its_two_pictures_at_any_stage(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    plot_run(RunDir(tmp_path))
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["accuracy.png", "labels.png"]
    for path in (tmp_path / "plots").iterdir():
        assert path.read_bytes().startswith(PNG) and path.stat().st_size > 5000


def test_without_metrics_there_is_nothing_to_draw(tmp_path: Path) -> None:
    plot_run(RunDir(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_has_a_picture(tmp_path: Path) -> None:
    scores = [Score(name, digits, 95, 100) for name in ("uniform", "carry chains") for digits in (3, 1, 2)]
    plot_eval(scores, "title", tmp_path / "new" / "eval.png")
    assert (tmp_path / "new" / "eval.png").read_bytes().startswith(PNG)
    plot_eval(scores[:1], "title", tmp_path / "eval.png")
    assert "matplotlib.pyplot" not in sys.modules
