"""The pictures: drawn at any stage of a run, whole, and without pyplot's global state."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from recorded import round_metrics, write_metrics

from sector.engine.config import RunConfig
from sector.engine.run.audit import Score
from sector.engine.run.directory import RunDir
from sector.engine.run.plots import _accuracy_figure, plot_acceptance, plot_eval, plot_gain, plot_run, scale_rounds
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
    RunDir(tmp_path).write_config(RunConfig())
    write_metrics(tmp_path, *lines)
    plot_run(RunDir(tmp_path))
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["accuracy.png", "labels.png"]
    for path in (tmp_path / "plots").iterdir():
        assert path.read_bytes().startswith(PNG) and path.stat().st_size > 5000


AHEAD = dict.fromkeys(range(1, 31), 0.9)


@pytest.mark.parametrize(
    ("lines", "ends"),
    [
        pytest.param([line(6, accuracy=AHEAD), line(29)], [30, 30], id="the supervised phase looked ahead"),
        pytest.param([line(6), line(29)], [7, 30], id="as runs did before"),
        pytest.param([line(6, accuracy=AHEAD), line(40)], [30, 41], id="until was raised since"),
        pytest.param([line(6, accuracy=AHEAD), line(7)], [30, 8], id="under way"),
        pytest.param([line(6, accuracy=AHEAD)], [30], id="no round yet"),
    ],
)
def test_what_the_loop_added_is_shown_over_all_lengths(lines: list[RoundMetrics], ends: list[int]) -> None:
    axes = Figure().add_subplot()
    plot_gain(axes, lines, RunConfig())
    curves = [curve for curve in axes.lines if curve.get_marker() == "o"]
    assert [list(curve.get_xdata()) for curve in curves] == [list(range(1, end + 1)) for end in ends]
    assert "learned with labels: 1 to 6 digits" in axes.get_legend_handles_labels()[1]
    assert [text.get_text() for text in axes.texts].count("the paper: 29") == (max(ends) >= 29)
    plain = Figure().add_subplot()
    plot_gain(plain, lines, RunConfig(task="subtraction"))
    assert "the paper: 29" not in [text.get_text() for text in plain.texts]


def test_the_legend_names_only_curves_that_can_be_seen() -> None:
    """Rounds between the last and the first lay under the curve of the last."""
    figure = Figure()
    _accuracy_figure(figure, [line(digits) for digits in (6, 11, 16)], RunConfig())
    (axes,) = figure.axes
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == [
        "learned with labels: 1 to 6 digits",
        "before the loop",
        "after the round at 16 digits, no labels since",
    ]


def test_rounds_that_leap_are_named_at_their_own_lengths() -> None:
    axes = Figure().add_subplot()
    scale_rounds(axes, [11, 16, 21, 26, 29])
    assert list(axes.get_xticks()) == [11, 16, 21, 26, 29]


def test_pictures_need_no_display_and_leave_no_warning(tmp_path: Path) -> None:
    """Nor a home, a backend that there is, or a folder of matplotlib's own; names are of any script."""
    blocked = tmp_path / "a file"
    blocked.write_text("")
    draw = (
        "import sys; from pathlib import Path; from sector.engine.run.audit import Score; "
        "from sector.engine.run.plots import drawable, plot_eval; "
        "plot_eval([Score('uniform', 3, 9, 10)], sys.argv[1], Path(sys.argv[2])); print(drawable(sys.argv[1]))"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    environment |= {"MPLBACKEND": "nonsense", "MPLCONFIGDIR": str(blocked / "inside"), "PYTHONUTF8": "1"}
    picture = tmp_path / "eval.png"
    # The list of the system's fonts is made anew: nothing may be said of that, either.
    command = [sys.executable, "-P", "-W", "error", "-c", draw, "run \u6570\u5b57 \U0001f980 $x^2$", str(picture)]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == "run \\u6570\\u5b57 \\U0001f980 $x^2$\n" and picture.read_bytes().startswith(PNG)


def test_without_metrics_there_is_nothing_to_draw(tmp_path: Path) -> None:
    plot_run(RunDir(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_has_a_picture(tmp_path: Path) -> None:
    # Another library in this process may have imported it.
    before = set(sys.modules)
    scores = [Score(name, digits, 95, 100) for name in ("uniform", "carry chains") for digits in (3, 1, 2)]
    plot_eval(scores, "title", tmp_path / "new" / "eval.png")
    assert (tmp_path / "new" / "eval.png").read_bytes().startswith(PNG)
    plot_eval(scores[:1], "title", tmp_path / "eval.png")
    assert "matplotlib.pyplot" not in set(sys.modules) - before


def test_a_check_that_is_new_is_drawn_by_its_name() -> None:
    axes = Figure().add_subplot()
    plot_acceptance(axes, [line(7, rejected={"unparsable": 0, "not_inverse": 20})])
    assert "rejected: not inverse: 20" in axes.get_legend_handles_labels()[1]
