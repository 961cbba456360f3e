"""The label-free alarm: foretold collapses, false alarms and leads, judged on cells that did not choose the rule."""

import pytest
from recorded import round_metrics

from sector.engine.report.alarm import FIGURES, HORIZON, Alarm, alarms_of
from sector.engine.run.records import RoundMetrics

Rounds = list[RoundMetrics]


def run_of(agreements: list[float], collapse: int | None = None, entropy: float = 1.0) -> Rounds:
    """Rounds from 7 digits on with these agreements; from the round `collapse` on, nothing at its length is right."""
    rounds = []
    for index, agreement in enumerate(agreements):
        digits = 7 + index
        own = 0.0 if collapse is not None and index >= collapse else 1.0
        accuracy = {**dict.fromkeys(range(1, digits + 2), 1.0), digits: own}
        figures = {"agreement": agreement, "vote_entropy": entropy + 0.001 * (digits % 3), "next_agreement": 0.9}
        rounds.append(round_metrics(digits, accuracy=accuracy, **figures))
    return rounds


def falling(lead: int, collapse: int = 8) -> Rounds:
    """A run whose agreement falls `lead` rounds before its collapse."""
    return run_of([0.9] * (collapse - lead) + [0.5] * (lead + 2), collapse)


STEADY = run_of([0.9] * 10)


def named(alarms: list[Alarm], figure: str) -> Alarm:
    return next(alarm for alarm in alarms if alarm.figure == figure)


def test_a_fall_of_agreement_foretells_the_collapse_and_nothing_else_does() -> None:
    alarms = alarms_of({"a": [falling(2), STEADY], "b": [falling(3), STEADY], "c": [falling(1), STEADY]})
    best, agreement = alarms[0], named(alarms, "agreement")
    assert best.figure in ("agreement", "slope of agreement") and len(alarms) == len(FIGURES)
    assert (agreement.collapses, agreement.foretold, agreement.false_alarms, agreement.runs) == (3, 3, 0, 6)
    assert agreement.leads == [1, 2, 3] and str(agreement.rule) == "agreement at most 0.5"
    silent = named(alarms, "agreement one digit further")
    assert silent.rule is None and (silent.foretold, silent.false_alarms) == (0, 0)
    # No run of these tests has this figure.
    assert named(alarms, "disagreement of checks").rule is None


def test_a_figure_that_rises_can_foretell_too() -> None:
    """A model that always says the same agrees with itself more and more."""
    rising = [run_of([0.7, 0.7, 0.7, 0.99, 0.99, 0.99], 5), run_of([0.7] * 6)]
    agreement = named(alarms_of({"a": rising, "b": rising}), "agreement")
    assert str(agreement.rule) == "agreement at least 0.99"
    assert (agreement.foretold, agreement.leads, agreement.false_alarms) == (2, [2, 2], 0)


def test_an_alarm_too_early_is_false_and_one_at_the_collapse_is_late() -> None:
    early, late = falling(HORIZON + 1), run_of([0.9] * 8 + [0.5] * 2, 8)
    shown = {"a": [falling(2)] * 4, "b": [falling(3)] * 4}
    agreement = named(alarms_of({**shown, "early": [early], "late": [late]}), "agreement")
    assert (agreement.collapses, agreement.foretold, agreement.false_alarms) == (10, 8, 1)
    assert named(alarms_of({**shown, "last": [falling(HORIZON)]}), "agreement").false_alarms == 0


def test_false_alarms_of_runs_that_live_are_counted() -> None:
    alive = run_of([0.9, 0.4, 0.9, 0.9])
    agreement = named(alarms_of({"a": [falling(2)] * 3, "b": [falling(2)] * 3, "alive": [alive]}), "agreement")
    assert (agreement.foretold, agreement.false_alarms, agreement.runs) == (6, 1, 7)


def test_a_rule_is_not_judged_by_the_cell_that_chose_it() -> None:
    """A figure that tells the runs apart by chance alone fits every cell, and helps in none."""
    lone = {"a": [run_of([0.91, 0.90, 0.92], 2)], "b": [run_of([0.95, 0.96, 0.97])], "c": [run_of([0.92, 0.94, 0.93])]}
    agreement = named(alarms_of(lone), "agreement")
    assert agreement.rule is not None and agreement.foretold == 0


def test_of_one_cell_each_run_is_judged_by_the_others() -> None:
    agreement = named(alarms_of({"a": [falling(2), falling(2), STEADY]}), "agreement")
    assert (agreement.foretold, agreement.false_alarms) == (2, 0)


@pytest.mark.parametrize(
    "cells",
    [{}, {"a": [STEADY], "b": [STEADY]}, {"a": [falling(2)]}, {"a": [run_of([0.5], 0)], "b": [STEADY]}, {"a": [[]]}],
    ids=["none", "no collapse", "one run", "collapsed at once", "no rounds"],
)
def test_without_a_collapse_to_foretell_nothing_is_judged(cells: dict[str, list[Rounds]]) -> None:
    assert alarms_of(cells) == []


def test_the_slope_is_a_change_per_round() -> None:
    slope = FIGURES["slope of agreement"](run_of([0.9, 0.8, 0.6, 0.6]))
    assert slope[2:] == pytest.approx([-0.15, -0.1]) and all(value != value for value in slope[:2])
