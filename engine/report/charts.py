"""Charts of a report: inline SVG in a wide and a narrow version, in the colours of the page, and PNG.

The narrow version is for phones, where a wide chart would shrink until it is unreadable.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from sector.engine.files import write_atomically
from sector.engine.report.facts import RunFacts, gate_answer, round_seconds
from sector.engine.report.line_names import margin_of, name_lines, named_lines
from sector.engine.report.outcomes import Mean, mean_of, means_by_round
from sector.engine.run.plots import (
    COLORS,
    DPI,
    EDGE,
    FAINT,
    INK,
    SOFT,
    STYLE,
    drawable,
    load_matplotlib,
    plot_acceptance,
    plot_errors,
    plot_gain,
    scale_accuracy,
    scale_errors,
    scale_lengths,
    scale_rounds,
)
from sector.engine.run.records import RoundMetrics
from sector.engine.tasks.mistakes import Mistake

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Width and height in inches, without the legend.
_WIDE, _NARROW = (7.6, 3.3), (3.7, 3.0)
_LEGEND_ROW = 0.24
# Colours that become variables of the page's style, so that charts follow its dark mode.
_PAGE_COLORS = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    EDGE: "var(--soft)",
    SOFT: "var(--soft)",
    "#ffffff": "var(--paper)",
}
CELL_COLORS = (*COLORS, "#e8590c", "#1098ad", "#846358", "#868e96")
_TIME_COLORS = {"generate": COLORS[0], "distill": COLORS[1], "audit": COLORS[2], "probes and files": "#868e96"}
_MISTAKE_COLORS: dict[str, str] = {
    Mistake.CARRY_MISSED: COLORS[1],
    Mistake.CARRY_INVENTED: "#f08c00",
    Mistake.ADDED: COLORS[3],
    Mistake.COPIED: COLORS[0],
    Mistake.WRONG_LENGTH: COLORS[2],
    Mistake.UNPARSABLE: "#868e96",
}

Fill = Callable[["Axes"], None]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart in all its forms.

    name: file name of the PNG, without its suffix.
    title: plain text; the page escapes it.
    caption: plain text, may be empty; the page escapes it.
    wide: SVG element for screens.
    narrow: SVG element for phones.
    png: content of the PNG file.
    """

    name: str
    title: str
    caption: str
    wide: Markup
    narrow: Markup
    png: bytes

    def save(self, folder: Path) -> Path:
        """Write the PNG into a folder, and return its path."""
        path = folder / f"{self.name}.png"
        write_atomically(path, lambda aside: aside.write_bytes(self.png))
        return path


def run_charts(run: RunFacts) -> list[Chart]:
    """Draw the charts of one run; those of rounds only if it has any."""
    gain = partial(plot_gain, metrics=run.metrics, config=run.config)
    caption = _ACCURACY.format(run.config.audit_samples)
    charts = [draw_chart("accuracy", "Accuracy before and after the loop", caption, gain)]
    rounds = run.rounds
    if not rounds:
        return charts
    charts += [
        draw_chart(
            "labels", "Wrong answers, by the audit", _LABELS, partial(_by_round, plot=plot_errors, rounds=rounds)
        ),
        draw_chart(
            "candidates", "Verdicts on the candidates", "", partial(_by_round, plot=plot_acceptance, rounds=rounds)
        ),
        _gate_chart("gate", {run.cell: [run]}),
        draw_chart("time", "Time of each round", "", lambda axes: _time(axes, run)),
    ]
    for policy in ("fast", "slow"):
        if all(line.frontier for line in run.metrics):
            title = f"Mistakes of the {policy} policy one digit past the frontier"
            charts.append(draw_chart(f"mistakes-{policy}", title, "", partial(_mistakes, run=run, policy=policy)))
    return charts


def comparison_charts(cells: dict[str, list[RunFacts]]) -> list[Chart]:
    """Draw the charts that compare cells: means over their runs, with Student's 95 % intervals if there are several."""
    return [
        draw_chart("compared-accuracy", "Accuracy at the end", _COMPARED, lambda axes: _compare_accuracy(axes, cells)),
        draw_chart("compared-labels", "Label error by round", _COMPARED, lambda axes: _compare_labels(axes, cells)),
        _gate_chart("compared-gate", cells),
    ]


def _gate_chart(name: str, cells: dict[str, list[RunFacts]]) -> Chart:
    """Draw agreement against accuracy; the caption begins with the answer to the question in the title."""
    gates = [gate for runs in cells.values() for run in runs for gate in run.gates.values()]
    caption = f"{gate_answer(gates)} {_GATE}"
    return draw_chart(name, "Does agreement predict accuracy?", caption, lambda axes: _gates(axes, cells))


_ACCURACY = (
    "Direct answers, greedy, by the audit: {} problems of each length. The scale is logarithmic in the chance of an "
    "error."
)
_LABELS = "Bands are Wilson 95 % intervals. The loop never sees these figures."
_GATE = (
    "A dot is a round: the share of candidates that were accepted, which needs no label, against the share whose voted "
    "answer is right. On the line they are equal; below it, wrong answers pass."
)
_COMPARED = "Lines are means over seeds, bands, where lines are few, Student's 95 % intervals."


def draw_chart(name: str, title: str, caption: str, fill: Fill) -> Chart:
    """Draw a chart in all its forms; `fill` draws the content into empty axes."""
    load_matplotlib()
    from matplotlib import rc_context

    style = {**STYLE, "svg.fonttype": "none", "svg.hashsalt": name, "axes.titlesize": 0, "font.size": 9}
    # Names of directories may hold a dollar sign, which matplotlib would read as mathematics.
    style["text.parse_math"] = False
    with rc_context(style):  # type: ignore[arg-type]  # its type lists every key by name
        wide, narrow = _figure(_WIDE, 110, fill), _figure(_NARROW, 46, fill)
        png = io.BytesIO()
        wide.savefig(png, format="png", dpi=DPI)
        return Chart(name, title, caption, _svg(wide), _svg(narrow), png.getvalue())


def _figure(size: tuple[float, float], letters: int, fill: Fill) -> Figure:
    """Draw a figure with its legend below the axes; of more lines than there are colours, with names at their ends.

    size: width and height in inches, without the legend.
    letters: length of a line of the legend; it has as many columns as fit.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    fill(axes)
    axes.set_title("")
    handles, labels = axes.get_legend_handles_labels()
    is_named = len(named_lines(axes)) > len(CELL_COLORS)
    if is_named:
        handles, labels = [], []
    columns = max(1, letters // (8 + max(map(len, labels), default=1)))
    rows = -(-len(handles) // columns)
    height = size[1] + rows * _LEGEND_ROW
    figure.set_size_inches(size[0], height)
    if (legend := axes.get_legend()) is not None:
        legend.remove()
    if handles:
        figure.legend(handles, labels, loc="lower left", ncols=columns, columnspacing=1.2, handlelength=1.4)
    bottom = (0.5 + rows * _LEGEND_ROW) / height
    right = margin_of(axes) if is_named else 0.1
    figure.subplots_adjust(left=0.8 / size[0], right=1 - right / size[0], top=1 - 0.1 / height, bottom=bottom)
    if is_named:
        box = axes.get_position()
        name_lines(axes, box.width * size[0], box.height * height)
    return figure


def _svg(figure: Figure) -> Markup:
    """Return the figure as an SVG element that takes the width of its container, and the page's colours and font."""
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", text)
    for color, name in _PAGE_COLORS.items():
        text = text.replace(f": {color}", f": {name}")
    # Text for which matplotlib writes no colour would stay black.
    return Markup(text.replace('<text style="', '<text style="fill: var(--ink); '))


def _by_round(axes: Axes, plot: Callable[[Axes, list[RoundMetrics]], None], rounds: list[RoundMetrics]) -> None:
    plot(axes, rounds)
    scale_rounds(axes, [line.digits for line in rounds])
    axes.set_xlabel("digits of the round")


def _time(axes: Axes, run: RunFacts) -> None:
    rows = round_seconds(run.metrics)
    _stack(axes, [line.digits for line in run.rounds], rows, _TIME_COLORS)
    axes.set(xlabel="digits of the round", ylabel="seconds")


def _mistakes(axes: Axes, run: RunFacts, policy: str) -> None:
    tallies = [getattr(line.frontier, policy) for line in run.metrics]
    rows = [
        {kind: 100 * count / sum(counts.values()) for kind, count in counts.items() if kind != Mistake.RIGHT}
        for counts in tallies
    ]
    _stack(axes, [line.digits + 1 for line in run.metrics], rows, _MISTAKE_COLORS)
    axes.set(xlabel="digits of the problem, one more than trained", ylabel="% of the problems")
    if not any(map(any, (row.values() for row in rows))):
        axes.annotate("none", (0.5, 0.5), xycoords="axes fraction", ha="center", color=SOFT, fontsize=11)


def _stack(axes: Axes, lengths: list[int], rows: Sequence[Mapping[str, float]], colors: Mapping[str, str]) -> None:
    """Draw stacked bars, one bar per length. Parts that never occur are left out of the legend.

    rows: heights of the parts of each bar, by name.
    colors: by name of a part, from the bottom up; parts without a colour follow, and take those of `colors_of`.
    """
    bottom = np.zeros(len(rows))
    others = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in colors]
    for name, color in [*colors.items(), *zip(others, colors_of(len(others)), strict=True)]:
        heights = np.array([row.get(name, 0.0) for row in rows])
        if heights.any():
            axes.bar(lengths, heights, bottom=bottom, width=0.8, color=color, label=name.replace("_", " "))
        bottom = bottom + heights
    axes.set_ylim(0, max(1.0, 1.05 * bottom.max()))
    scale_rounds(axes, lengths)


def _gates(axes: Axes, cells: dict[str, list[RunFacts]]) -> None:
    lowest = 0.9
    for (name, runs), color in zip(cells.items(), colors_of(len(cells)), strict=True):
        gates = [gate for run in runs for gate in run.gates.values()]
        agreements, accuracies = [gate.agreement for gate in gates], [gate.accuracy for gate in gates]
        axes.plot(agreements, accuracies, "o", color=color, ms=4, alpha=0.7, mew=0, label=label_of(name))
        lowest = min([lowest, *agreements, *accuracies])
    axes.plot([0, 1], [0, 1], color=INK, lw=0.8, ls=":")
    margin = 0.03 * (1 - lowest)
    axes.set(xlim=(lowest - margin, 1 + margin), ylim=(lowest - margin, 1 + margin))
    axes.set(xlabel="accepted, without labels", ylabel="right, with labels")


def _compare_accuracy(axes: Axes, cells: dict[str, list[RunFacts]]) -> None:
    lowest, longest = 1.0, 1
    for (name, runs), color in zip(cells.items(), colors_of(len(cells)), strict=True):
        lengths = sorted({digits for run in runs for digits in run.evaluation})
        means = [mean_of([run.evaluation[digits] for run in runs if digits in run.evaluation]) for digits in lengths]
        draw_band(axes, lengths, means, color, name, has_band=_have_bands(cells))
        lowest, longest = min(lowest, *(mean.mean for mean in means)), max(longest, *lengths)
    scale_accuracy(axes, lowest)
    scale_lengths(axes, 1, longest)
    axes.set(xlabel="digits per operand", ylabel="right")


def _compare_labels(axes: Axes, cells: dict[str, list[RunFacts]]) -> None:
    scale_errors(axes)
    lengths: set[int] = set()
    for (name, runs), color in zip(cells.items(), colors_of(len(cells)), strict=True):
        errors = means_by_round([run.outcome for run in runs], "label_errors")
        draw_band(axes, list(errors), list(errors.values()), color, name, has_band=_have_bands(cells))
        lengths |= set(errors)
    scale_lengths(axes, min(lengths, default=1), max(lengths, default=2))
    axes.set(xlabel="digits of the round", ylabel="share wrong")


def _have_bands(cells: dict[str, list[RunFacts]]) -> bool:
    """Return whether lines have bands: those of more cells than there are colours would hide each other."""
    return len(cells) <= len(CELL_COLORS)


def draw_band(
    axes: Axes, lengths: list[int], means: Sequence[Mean], color: str, name: str, has_band: bool = True
) -> None:
    """Draw the means of shares as a line, and their intervals as a band unless `has_band` is false."""
    axes.plot(lengths, [mean.mean for mean in means], "o-", color=color, ms=2.5, lw=1.6, label=label_of(name))
    bounds = [
        (digits, max(0.0, mean.low), min(1.0, mean.high))
        for digits, mean in zip(lengths, means, strict=True)
        if mean.low is not None and mean.high is not None
    ]
    if bounds and has_band:
        axes.fill_between(*np.array(bounds).T, color=color, alpha=0.13, lw=0)


def label_of(name: str) -> str:
    """Return a name as matplotlib draws it: it drops labels that start with `_`, and characters its font lacks."""
    return drawable(name if not name.startswith("_") else f" {name}")


def colors_of(count: int) -> list[str]:
    """Return that number of colours; they repeat where there are more names than colours."""
    return [CELL_COLORS[index % len(CELL_COLORS)] for index in range(count)]
