"""Charts of a laboratory of collapse: rise and fall of each cell, and the phase diagram of leak and rounds survived."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from sector.engine.report.charts import Chart, colors_of, draw_band, draw_chart, label_of
from sector.engine.report.facts import RunFacts
from sector.engine.report.outcomes import ByRound, Fate, mean_of, means_by_round
from sector.engine.run.plots import COLORS, FAINT, INK, scale_lengths

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Figures of a panel: their names in the legend and their colours.
_LINES: dict[ByRound, tuple[str, str]] = {
    "accuracies": ("accuracy at the round's length", COLORS[2]),
    "agreements": ("agreement", COLORS[0]),
    "label_errors": ("label error", COLORS[1]),
}
_PHASES = (
    "Rounds survived against the share of rejected candidates that the gate accepts anyway. A dot is a run that "
    "collapsed, a cross one that stopped before that, a triangle one that has not collapsed and might have gone on; "
    "lines are means."
)
_MARKERS: dict[Fate, str] = {"collapsed": "o", "stopped": "x", "alive": "^"}

# Runs of one gate by its leak.
Phases = dict[str, dict[float, list[RunFacts]]]


def phases_of(cells: dict[str, list[RunFacts]]) -> Phases:
    """Group cells whose settings differ in `filter.leak` and the seed alone, and name each group after its first cell.

    Groups of a single leak are left out.
    """
    groups: dict[str, tuple[str, dict[float, list[RunFacts]]]] = {}
    for name, runs in cells.items():
        config = runs[0].config
        tight = config.filter.model_copy(update={"leak": 0.0})
        key = config.model_copy(update={"seed": 0, "filter": tight}).model_dump_json()
        groups.setdefault(key, (name, {}))[1][config.filter.leak] = runs
    return {name: dict(sorted(leaks.items())) for name, leaks in groups.values() if len(leaks) > 1}


def rise_charts(cells: dict[str, list[RunFacts]]) -> list[Chart]:
    """Draw a panel for each cell with rounds: means over its runs by round, and the rounds of their collapses."""
    with_rounds = [(name, runs) for name, runs in cells.items() if any(run.rounds for run in runs)]
    return [
        draw_chart(f"rise-{number:02d}", name, "", partial(_rise, runs=runs))
        for number, (name, runs) in enumerate(with_rounds, start=1)
    ]


def phase_charts(cells: dict[str, list[RunFacts]]) -> list[Chart]:
    """Draw the phase diagram; nothing without cells that differ in their leak."""
    phases = phases_of(cells)
    return (
        [draw_chart("phases", "Leak and rounds survived", _PHASES, partial(_phases, phases=phases))] if phases else []
    )


def _rise(axes: Axes, runs: list[RunFacts]) -> None:
    outcomes = [run.outcome for run in runs]
    lengths: set[int] = set()
    for name, (label, color) in _LINES.items():
        means = means_by_round(outcomes, name)
        draw_band(axes, list(means), list(means.values()), color, label)
        lengths |= set(means)
    for outcome in outcomes:
        if outcome.collapsed_at is not None:
            axes.axvline(outcome.collapsed_at, color=INK, lw=0.8, ls=":")
    scale_lengths(axes, min(lengths, default=1), max(lengths, default=2))
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks(np.linspace(0, 1, 6), [f"{20 * step} %" for step in range(6)])
    axes.set_xlabel("digits of the round")


def _phases(axes: Axes, phases: Phases) -> None:
    leaks = sorted({leak for of_gate in phases.values() for leak in of_gate})
    for index, ((name, of_gate), color) in enumerate(zip(phases.items(), colors_of(len(phases)), strict=True)):
        # Gates beside each other, so that no dot hides another.
        at = {leak: leaks.index(leak) + 0.12 * (index - (len(phases) - 1) / 2) for leak in of_gate}
        means = [mean_of([run.outcome.rounds_survived for run in runs]).mean for runs in of_gate.values()]
        axes.plot(list(at.values()), means, "-", color=color, lw=1.6, label=label_of(name))
        for leak, runs in of_gate.items():
            for run in runs:
                marker = _MARKERS[run.outcome.fate]
                axes.plot(at[leak], run.outcome.rounds_survived, marker, color=color, ms=4.5, alpha=0.8)
    axes.set_xticks(range(len(leaks)), [f"{100 * leak:g} %" for leak in leaks])
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="y", integer=True)
    axes.grid(color=FAINT)
    axes.set(xlabel="leak of the gate", ylabel="rounds survived")
