"""A label-free alarm: which figure that the loop can see foretells the audited collapse, and how far ahead.

An alarm is a rule: it rings in the first round in which a figure is at most, or at least, a threshold. Only the audit
knows whether it was right. It was right if the run collapses (`outcomes.collapse_of`) in one of the next `HORIZON`
rounds; otherwise it was false. In the round of the collapse itself it comes too late, and counts as none.

A rule that is chosen on the runs that it is judged by looks better than it is. So each cell is judged by the rule that
is best on all other cells.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import nan
from statistics import median

import numpy as np
from numpy.typing import NDArray

from sector.engine.report.outcomes import collapse_of
from sector.engine.run.records import RoundMetrics

# An alarm more rounds ahead than this is a false one.
HORIZON = 5
# Rounds of a slope.
_WINDOW = 3

Values = NDArray[np.float64]


def _slope(rounds: Sequence[RoundMetrics]) -> list[float]:
    """Return the change of agreement per round over the last `_WINDOW` rounds, of each round."""
    values = [nan if line.agreement is None else line.agreement for line in rounds]
    return [
        nan if index < _WINDOW - 1 else (value - values[index - _WINDOW + 1]) / (_WINDOW - 1)
        for index, value in enumerate(values)
    ]


# Figures that the loop can see, by name: of each round of a run, NaN where it has none.
FIGURES: dict[str, Callable[[Sequence[RoundMetrics]], list[float]]] = {
    "agreement": lambda rounds: [_or_nan(line.agreement) for line in rounds],
    "slope of agreement": _slope,
    "agreement one digit further": lambda rounds: [line.next_agreement for line in rounds],
    "disagreement of checks": lambda rounds: [_or_nan(line.disagreement) for line in rounds],
    "entropy of votes": lambda rounds: [_or_nan(line.vote_entropy) for line in rounds],
}


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that rings in the first round in which a figure passes a threshold.

    figure: name in `FIGURES`.
    is_low: whether it rings at values of at most the threshold; else at values of at least the threshold.
    threshold: the threshold.
    """

    figure: str
    is_low: bool
    threshold: float

    def __str__(self) -> str:
        return f"{self.figure} {'at most' if self.is_low else 'at least'} {self.threshold:.3g}"


@dataclass(frozen=True, slots=True)
class Alarm:
    """The worth of a figure as an alarm.

    figure: name in `FIGURES`.
    rule: the best rule on all runs; None if no rule is better than silence.
    collapses: count of runs that collapse after their first round, which an alarm could foretell.
    foretold: count of those that the alarm foretold.
    leads: rounds between each such alarm and its collapse.
    false_alarms: count of runs with an alarm that was false.
    runs: count of runs.
    """

    figure: str
    rule: Rule | None
    collapses: int
    foretold: int
    leads: list[int]
    false_alarms: int
    runs: int

    @property
    def worth(self) -> tuple[int, float]:
        """Collapses foretold less false alarms, then the median lead; more is better."""
        return self.foretold - self.false_alarms, median(self.leads) if self.leads else 0.0

    def as_json(self) -> dict[str, object]:
        """Return the fields as a JSON object."""
        return {**asdict(self), "rule": str(self.rule) if self.rule else None}


def alarms_of(cells: Mapping[str, Sequence[Sequence[RoundMetrics]]]) -> list[Alarm]:
    """Judge each figure as an alarm, the best first; none without a collapse that could be foretold.

    cells: rounds of the runs of each cell. Of a single cell each run is judged by its other runs.
    """
    groups = [[rounds for rounds in runs if rounds] for runs in cells.values()]
    groups = [runs for runs in groups if runs]
    if len(groups) == 1:
        groups = [[rounds] for rounds in groups[0]]
    collapses = sum(bool(collapse_of(rounds)) for runs in groups for rounds in runs)
    if not collapses or len(groups) < 2:
        return []
    return sorted((_judge(figure, groups, collapses) for figure in FIGURES), key=lambda alarm: alarm.worth)[::-1]


def _judge(figure: str, groups: Sequence[Sequence[Sequence[RoundMetrics]]], collapses: int) -> Alarm:
    """Judge a figure: each group of runs by the rule that is best on the other groups."""
    values = [[np.array(FIGURES[figure](rounds)) for rounds in runs] for runs in groups]
    rules = list(_rules(figure, np.concatenate([of_run for runs in values for of_run in runs])))
    # `[G, U]`: leads of the alarms of each rule, summed up to alarms that were right less those that were false.
    leads = [
        np.array([_leads(rules, of_run, collapse_of(rounds)) for of_run, rounds in zip(of_runs, runs, strict=True)])
        for of_runs, runs in zip(values, groups, strict=True)
    ]
    worth = np.array([((each > 0).sum(axis=0) - (each == 0).sum(axis=0)) for each in leads])
    total, judged = worth.sum(axis=0), list[int]()
    for each, own in zip(leads, worth, strict=True):
        if (best := _best(total - own)) is not None:
            judged += each[:, best].tolist()
    best = _best(total)
    return Alarm(
        figure=figure,
        rule=None if best is None else rules[best],
        collapses=collapses,
        foretold=sum(lead > 0 for lead in judged),
        leads=sorted(lead for lead in judged if lead > 0),
        false_alarms=judged.count(0),
        runs=sum(map(len, groups)),
    )


def _rules(figure: str, values: Values) -> Iterator[Rule]:
    """Yield the rules that differ on these values; of each kind those that ring least come first."""
    known = np.unique(values[~np.isnan(values)])
    for is_low in (True, False):
        for value in known if is_low else known[::-1]:
            yield Rule(figure, is_low, float(value))


def _leads(rules: Sequence[Rule], values: Values, collapse: int | None) -> NDArray[np.int64]:
    """Return by how many rounds the alarm of each rule is ahead, `[U]`: 0 if it is false, -1 if there is none.

    values: the figure in each round of the run.
    collapse: index of the round in which the run collapses.
    """
    # In the round of the collapse an alarm comes too late, and rounds after it do not count.
    seen = values[:collapse]
    thresholds = np.array([[rule.threshold] for rule in rules]).reshape(len(rules), 1)
    is_low = np.array([[rule.is_low] for rule in rules], dtype=bool).reshape(len(rules), 1)
    rings = np.where(is_low, seen <= thresholds, seen >= thresholds)
    if not seen.size:
        return np.full(len(rules), -1)
    ahead = np.zeros(len(rules), dtype=np.int64) if collapse is None else collapse - rings.argmax(axis=1)
    return np.where(rings.any(axis=1), np.where(ahead <= HORIZON, ahead, 0), -1)


def _best(worth: NDArray[np.int64]) -> int | None:
    """Return the index of the highest worth, of equal ones the first; None if none is better than silence."""
    return int(worth.argmax()) if worth.size and worth.max() > 0 else None


def _or_nan(value: float | None) -> float:
    return nan if value is None else value
