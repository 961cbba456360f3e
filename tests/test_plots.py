"""The pictures: drawn at any stage of a run, whole, and without pyplot's global state."""

import sys
from pathlib import Path
from typing import Any

import pytest
from recorded import round_metrics, write_metrics

from sector.engine.run.audit import Score
from sector.engine.run.directory import RunDir
from sector.engine.run.plots import plot_eval, plot_run
from sector.engine.run.records import RoundMetrics

PNG = b"\x89PNG"


def line(digits: int, **changes: Any) -> RoundMetrics:
    """A line of metrics.jsonl."""
    accuracy = {length: 1 - 0.01 * length for length in range(1, digits + 2)}
    return round_metrics(digits, **{"accuracy": accuracy, **changes})


def nothing_accepted(digits: int) -> RoundMetrics:
    return line(digits, accepted=0, rejected={"unparsable": 100, "outvoted": 0, "not_direct": 0})


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([line(6)], id="sft only"),
        pytest.param([line(6), line(7)], id="one round"),
        pytest.param([line(digits) for digits in range(6, 30)], id="all"),
        pytest.param([line(6), nothing_accepted(7)], id="nothing accepted"),
        pytest.param([line(6), line(7, label_error=1.0, fast_label_error=1.0)], id="all wrong"),
        pytest.param([line(6, accuracy=dict.fromkeys(range(1, 8), 0.0))], id="nothing right"),
    ],
)
def test_a_run_has_its_two_pictures_at_any_stage(tmp_path: Path, lines: list[RoundMetrics]) -> None:
    write_metrics(tmp_path, *lines)
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
