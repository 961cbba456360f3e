"""Plots of a run (`plots/accuracy.png` and `plots/labels.png`) and of an evaluation.

`report/charts.py` draws the HTML page from the same parts. Plots are drawn after every round, so they must be cheap.
matplotlib is imported when the first one is drawn. pyplot is not used, because of its global state.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, TypeVarTuple

import numpy as np

from sector.engine.config import RunConfig
from sector.engine.files import write_atomically
from sector.engine.run.audit import Score
from sector.engine.run.directory import RunDir
from sector.engine.run.records import RoundMetrics
from sector.engine.tasks import DEFAULT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Data = TypeVarTuple("Data")

DPI = 120
INK, SOFT, FAINT, EDGE = "#22272e", "#626b76", "#d5d9df", "#8b949e"
STYLE: dict[str, object] = {
    "font.size": 10,
    "axes.edgecolor": EDGE,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
COLORS = ("#1f6feb", "#d9480f", "#2f9e44", "#9c36b5", "#0c8599")
_REASON_COLORS = {
    "accepted": "#2f9e44",
    "thought_through": "#94d82d",
    "leaked": "#ffd43b",
    "unparsable": "#495057",
    "outvoted": "#f08c00",
    "not_direct": "#1f6feb",
    "not_complement": "#9c36b5",
    "not_commutative": "#c92a2a",
    "not_through": "#f06595",
}
# Names in a legend; all other fates are reasons of a rejection.
_FATES = {
    "accepted": "accepted at once",
    "thought_through": "accepted, thought through",
    "leaked": "accepted, leaked",
}
# For the reasons of further checks, in turn.
_OTHER_COLORS = ("#0b7285", "#862e9c", "#5c940d", "#a61e4d")

# The accuracy axis is logarithmic in the error down to this one, so that 98 and 99.5 % look different.
_LEAST_ERROR = 0.002
# In inches; narrower axes get short labels.
_NARROW = 4.0
_NAMED_ROUNDS = 15
_CHANCES = {0.9: 10, 0.95: 20, 0.98: 50, 0.99: 100, 0.995: 200}
_ACCURACY_TICKS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
_ERROR_TICKS = (0.0, 0.002, 0.007, 0.02, 0.05, 0.1, 0.28, 0.6, 1.0)
# Label errors in the paper, as cited by others: with its filter, and with the fast policy alone.
_PUBLISHED = (0.007, 0.28)
# Longest length that the paper's model taught itself.
_PUBLISHED_DIGITS = 29


def plot_run(run: RunDir) -> None:
    """Draw accuracy by length before and after the loop, and label error and acceptance by round."""
    metrics = run.metrics()
    if not metrics:
        return
    accuracy, labels = _pictures(run)
    _draw(accuracy, (8.0, 4.6), _accuracy_figure, metrics, run.read_config())
    _draw(labels, (8.0, 6.4), _labels_figure, metrics)


def has_plots(run: RunDir) -> bool:
    """Return whether both plots of the run exist."""
    return all(path.exists() for path in _pictures(run))


def _pictures(run: RunDir) -> tuple[Path, Path]:
    return run.plots() / "accuracy.png", run.plots() / "labels.png"


def plot_eval(scores: Sequence[Score], title: str, path: Path) -> None:
    """Draw accuracy by length, one line per family of problems; the first with its Wilson 95 % intervals."""
    _draw(path, (8.0, 4.6), _eval_figure, scores, title)


@cache
def load_matplotlib() -> None:
    """Import matplotlib for plots in files, without its warnings and without the user's choice of backend.

    Its warning about a missing config folder would disturb the view of a run, and an unknown backend in MPLBACKEND
    would stop the import. Neither matters to a file.
    """
    logger, backend = logging.getLogger("matplotlib"), os.environ.pop("MPLBACKEND", None)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import matplotlib.font_manager
    finally:
        logger.setLevel(level)
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend is not None:
        # Other code in this process may still use the backend.
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


def _draw(path: Path, size: tuple[float, float], fill: Callable[[Figure, *Data], None], *data: *Data) -> None:
    """Create a figure, let `fill` draw `data` on it, and write it atomically."""
    load_matplotlib()
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):  # type: ignore[arg-type]  # its type is a dict of all known keys
        figure = Figure(figsize=size, dpi=DPI)
        FigureCanvasAgg(figure)
        # Fixed margins, since a layout engine would draw everything twice.
        figure.subplots_adjust(left=0.11, right=0.98, bottom=0.9 / 2 / size[1] + 0.02, top=1 - 0.35 / size[1])
        fill(figure, *data)
        write_atomically(path, lambda aside: figure.savefig(aside, format="png"))


def _accuracy_figure(figure: Figure, metrics: list[RoundMetrics], config: RunConfig) -> None:
    axes = figure.add_subplot()
    plot_gain(axes, metrics, config)
    axes.set_title(f"Accuracy by length, {config.audit_samples} problems each")
    axes.legend(loc="lower left", bbox_to_anchor=(0.015, 0.0))


def plot_gain(axes: Axes, metrics: list[RoundMetrics], config: RunConfig) -> None:
    """Plot the gain of the loop: accuracy by length after the supervised phase and after the last round."""
    before, after = metrics[0].accuracy, metrics[-1].accuracy
    taught, longest = metrics[0].digits, max(*before, *after)
    axes.axvspan(
        0, taught + 0.5, fc=FAINT, ec=EDGE, alpha=0.5, lw=0.8, label=f"learned with labels: 1 to {taught} digits"
    )
    axes.plot(list(before), list(before.values()), "o-", color=COLORS[1], ms=3.5, lw=2.0, zorder=4,
              label="before the loop")  # fmt: skip
    if len(metrics) > 1:
        axes.plot(list(after), list(after.values()), "o-", color=COLORS[0], ms=3.5, lw=2.4, zorder=5,
                  label=f"after the round at {metrics[-1].digits} digits, no labels since")  # fmt: skip
        both = [digits for digits in before if digits in after]
        low, high = ([shares[digits] for digits in both] for shares in (before, after))
        axes.fill_between(both, low, high, color=COLORS[0], alpha=0.09, lw=0)
    if config.task == DEFAULT and longest >= _PUBLISHED_DIGITS:
        axes.axvline(_PUBLISHED_DIGITS, color=INK, lw=0.9, ls=(0, (2, 3)))
        axes.annotate(f"the paper: {_PUBLISHED_DIGITS}", (_PUBLISHED_DIGITS, 0.04), xycoords=("data", "axes fraction"),
                      xytext=(-4, 0), textcoords="offset points", ha="right", fontsize=8.5)  # fmt: skip
    scale_accuracy(axes, min(*before.values(), *after.values()))
    _say_chances(axes)
    scale_lengths(axes, 1, longest)
    axes.set(xlabel="digits per operand", ylabel="direct answers that are right")


def _say_chances(axes: Axes) -> None:
    """Label the upper grid lines with the chance of an error, as `1 in 50 wrong`."""
    narrow = axes.get_window_extent().width / axes.figure.dpi < _NARROW
    for accuracy, wrong in _CHANCES.items():
        label = f"1 in {wrong}" if narrow else f"1 in {wrong} wrong"
        axes.annotate(label, (0.008, accuracy), xycoords=("axes fraction", "data"), xytext=(0, 1.5),
                      textcoords="offset points", color=SOFT, fontsize=7, zorder=2)  # fmt: skip


def _labels_figure(figure: Figure, metrics: list[RoundMetrics]) -> None:
    rounds = [line for line in metrics if line.is_round]
    above, below = figure.subplots(2, 1, sharex=True)
    figure.subplots_adjust(hspace=0.16, bottom=0.18)
    plot_errors(above, rounds)
    plot_acceptance(below, rounds)
    lengths = [line.digits for line in rounds] or [metrics[-1].digits + 1]
    for axes in (above, below):
        scale_rounds(axes, lengths)
    below.set_xlabel("digits of the round")


def plot_errors(axes: Axes, rounds: list[RoundMetrics]) -> None:
    """Plot label error of accepted examples and error of the fast policy by round, with Wilson intervals."""
    rounds = [line for line in rounds if line.accepted]
    series = (
        ("fast policy, all candidates", COLORS[1], [(line.wrong_fast, line.tried) for line in rounds]),
        ("accepted answers", COLORS[0], [(line.wrong_accepted, line.accepted) for line in rounds]),
    )
    lengths = [line.digits for line in rounds]
    for label, color, counts in series:
        scores = [Score(label, digits, *wrong_of) for digits, wrong_of in zip(lengths, counts, strict=True)]
        low, high = np.array([score.interval for score in scores]).reshape(-1, 2).T
        axes.fill_between(lengths, low, high, color=color, alpha=0.15, lw=0)
        axes.plot(lengths, [score.accuracy for score in scores], "o-", color=color, ms=4, lw=1.8, label=label)
    scale_errors(axes)
    for published, color in zip(_PUBLISHED, (COLORS[0], COLORS[1]), strict=True):
        axes.axhline(published, color=color, lw=1.0, ls=(0, (2, 3)))
        axes.annotate(f"the paper, 7 digits: {100 * published:g} %", (0.99, published),
                      xycoords=("axes fraction", "data"), xytext=(0, 2), textcoords="offset points", ha="right",
                      color=color, fontsize=8)  # fmt: skip
    axes.set(title="Wrong answers, by the audit", ylabel="share wrong")
    axes.legend(loc="upper right", ncols=2)


def plot_acceptance(axes: Axes, rounds: list[RoundMetrics]) -> None:
    """Draw the verdicts on the candidates of each round, as stacked shares."""
    lengths = [line.digits for line in rounds]
    bottom = np.zeros(len(rounds))
    fates = [_fates(line) for line in rounds]
    others = dict.fromkeys(reason for fate in fates for reason in fate if reason not in _REASON_COLORS)
    for reason, color in [*_REASON_COLORS.items(), *zip(others, cycle(_OTHER_COLORS), strict=False)]:
        counts = [fate.get(reason, 0) for fate in fates]
        shares = np.array(counts) / np.array([line.tried for line in rounds])
        if reason == "accepted" or shares.any():
            label = _FATES.get(reason, f"rejected: {reason.replace('_', ' ')}")
            axes.bar(lengths, shares, bottom=bottom, width=0.8, color=color, label=f"{label}: {sum(counts):,}")
        bottom = bottom + shares
    axes.set_ylim(0, 1)
    axes.set_yticks(np.linspace(0, 1, 6), [f"{20 * step} %" for step in range(6)])
    axes.set_title("Verdicts on the candidates")
    axes.set_ylabel("share of candidates")
    axes.legend(loc="upper left", bbox_to_anchor=(-0.01, -0.16), ncols=3, columnspacing=0.9, handlelength=1.2)


def _fates(line: RoundMetrics) -> dict[str, int]:
    """Count the candidates of a round by verdict; those that were accepted at once come first."""
    through, leaked = line.thought_through, line.leaked
    at_once = line.accepted - through - leaked
    return {"accepted": at_once, "thought_through": through, "leaked": leaked, **line.rejected}


def _eval_figure(figure: Figure, scores: Sequence[Score], title: str) -> None:
    axes = figure.add_subplot()
    for name, color in zip(dict.fromkeys(score.name for score in scores), COLORS, strict=False):
        family = sorted((score for score in scores if score.name == name), key=lambda score: score.digits)
        lengths = [score.digits for score in family]
        # Only the first family has an interval, and it is drawn on top; several bands would hide each other.
        first = name == scores[0].name
        if first:
            low, high = np.array([score.interval for score in family]).T
            axes.fill_between(lengths, low, high, color=color, alpha=0.14, lw=0, label="Wilson 95 %")
        shares = [score.accuracy for score in family]
        axes.plot(
            lengths, shares, "o-", color=color, ms=3.5, lw=2.2 if first else 1.2, zorder=5 if first else 3, label=name
        )
    scale_accuracy(axes, min(score.accuracy for score in scores))
    scale_lengths(axes, min(score.digits for score in scores), max(score.digits for score in scores))
    axes.set(xlabel="digits per operand", ylabel="exact match")
    axes.set_title(drawable(title), parse_math=False)
    axes.legend(loc="lower left", ncols=2)


def drawable(text: str) -> str:
    """Escape characters that the font of the plots lacks, since names may be in any script."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    glyphs = get_font(findfont(FontProperties(family=["sans-serif"]))).get_charmap()
    return "".join(char if ord(char) in glyphs else ascii(char)[1:-1] for char in text)


def scale_errors(axes: Axes) -> None:
    """Scale the vertical axis for shares of wrong answers, from one in a thousand to all."""
    axes.set_yscale("function", functions=(_squash_error, _stretch_error))
    axes.set_yticks(_ERROR_TICKS, [f"{100 * tick:g} %" for tick in _ERROR_TICKS])
    axes.set_ylim(-0.0003, 1.0)


def scale_accuracy(axes: Axes, lowest: float) -> None:
    """Scale the vertical axis for shares of right answers, so that 98 and 99.5 % look different."""
    axes.set_yscale("function", functions=(_stretch_accuracy, _squash_accuracy))
    floor = max((tick for tick in _ACCURACY_TICKS if tick <= min(lowest, 0.9)), default=0.0)
    ticks = [tick for tick in _ACCURACY_TICKS if tick >= floor]
    axes.set_yticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
    axes.set_ylim(floor, 1.0003)


def scale_lengths(axes: Axes, first: int, last: int) -> None:
    """Scale the horizontal axis for lengths in digits."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(first - 0.6, last + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(15, integer=True, min_n_ticks=1))
    axes.grid(visible=False, axis="x")


def scale_rounds(axes: Axes, lengths: Sequence[int]) -> None:
    """Scale the horizontal axis for rounds; if they are few, label their lengths and no others."""
    scale_lengths(axes, lengths[0], lengths[-1])
    if len(lengths) <= _NAMED_ROUNDS:
        axes.set_xticks(lengths)


def _stretch_accuracy(accuracy: np.ndarray) -> np.ndarray:
    return -np.log10(np.clip(1 - accuracy, -0.9 * _LEAST_ERROR, None) + _LEAST_ERROR)


def _squash_accuracy(height: np.ndarray) -> np.ndarray:
    return 1 + _LEAST_ERROR - 10.0**-height


def _squash_error(error: np.ndarray) -> np.ndarray:
    return np.log10(np.clip(error, -0.9 * _LEAST_ERROR, None) + _LEAST_ERROR)


def _stretch_error(height: np.ndarray) -> np.ndarray:
    return 10.0**height - _LEAST_ERROR
