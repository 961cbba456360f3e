"""Outcomes of runs in figures: of one run, and means over runs that differ in their seed alone.

All figures come from files of the runs. No true answer is computed here; the audits have done so.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Literal, TypeVar

from scipy import stats

from sector.engine.config import RunConfig
from sector.engine.run.directory import RunDir
from sector.engine.run.records import GenerationRecord, RoundMetrics, StartRecord

# A run collapses in the round from which on, to its end, the audit finds less than this share of the answers right at
# the round's own length: its model is more often wrong than right. A small model with a strict gate falls below it at
# some lengths, and recovers, since its labels stay right. A run that stops before that, since it accepts or agrees with
# too little, has not collapsed: its gate has starved it.
SURVIVES = 0.5
# Reason of a run that stopped at its end.
REACHED = "reached"
Fate = Literal["collapsed", "stopped", "alive"]
Key = TypeVar("Key", int, str)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one run.

    seed: seed of the run.
    stopped_because: `reached`, or the reason for which the loop stopped; None while it has not.
    final_digits: digits of the last phase that is done.
    rounds: count of rounds.
    rounds_survived: count of rounds before the collapse (`SURVIVES`); all rounds of a run without one.
    collapsed_at: digits of the round in which the run collapsed for good; None if it has not.
    label_errors: label error by digits of the round; None for a round that accepted nothing.
    accuracies: audited accuracy at the round's own length, by digits of the round.
    agreements: share of the candidates on which vote and checks agree, by digits of the round.
    mean_label_error: label error over all accepted examples.
    final_accuracy: mean accuracy at 1 to `final_digits` digits, by the last audit.
    eval_accuracy: mean accuracy over the lengths of the run's evaluation; None without one.
    eval_lowest: lowest accuracy in the run's evaluation; None without one.
    tokens: count of tokens generated and trained on.
    seconds: duration of the whole run, including a supervised phase that it shares with another run.
    """

    seed: int
    stopped_because: str | None
    final_digits: int
    rounds: int
    rounds_survived: int
    collapsed_at: int | None
    label_errors: dict[int, float | None]
    accuracies: dict[int, float]
    agreements: dict[int, float | None]
    mean_label_error: float | None
    final_accuracy: float
    eval_accuracy: float | None
    eval_lowest: float | None
    tokens: int
    seconds: float

    @property
    def fate(self) -> Fate:
        """Fate of the run: collapsed, stopped before that, or alive (at its end or still under way)."""
        if self.collapsed_at is not None:
            return "collapsed"
        return "alive" if self.stopped_because in (None, REACHED) else "stopped"

    def as_json(self) -> dict[str, object]:
        """Return the fields and the fate as a JSON object."""
        return {**asdict(self), "fate": self.fate}


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over runs with its interval.

    mean: the mean.
    low: lower end of Student's 95 % interval; None for a single run.
    high: upper end of the same.
    count: count of runs.
    """

    mean: float
    low: float | None
    high: float | None
    count: int

    def as_json(self) -> dict[str, object]:
        return asdict(self)


# Figures of an outcome that it has for each round.
ByRound = Literal["label_errors", "accuracies", "agreements"]
# The figures of an outcome that are averaged over seeds.
FIGURES = (
    "final_digits",
    "rounds_survived",
    "mean_label_error",
    "final_accuracy",
    "eval_accuracy",
    "eval_lowest",
    "tokens",
    "seconds",
)


def outcome_of(run: RunDir) -> Outcome | None:
    """Return the outcome of a run; None before its supervised phase is done."""
    lines = run.metrics()
    if not lines:
        return None
    config, rounds = run.read_config(), [line for line in lines if line.is_round]
    last, collapse = lines[-1], collapse_of(rounds)
    accepted = sum(line.accepted for line in rounds)
    evaluation = run.read_evaluation()
    scores = [score.accuracy for score in evaluation.lengths] if evaluation else []
    lent = run.supervised(config.supervised.max_digits).read(StartRecord)
    return Outcome(
        seed=config.seed,
        stopped_because=stopped_because(run, config, lines),
        final_digits=last.digits,
        rounds=len(rounds),
        rounds_survived=len(rounds) if collapse is None else collapse,
        collapsed_at=None if collapse is None else rounds[collapse].digits,
        label_errors={line.digits: line.label_error for line in rounds},
        accuracies={line.digits: line.own_accuracy for line in rounds},
        agreements={line.digits: line.agreement for line in rounds},
        mean_label_error=sum(line.wrong_accepted for line in rounds) / accepted if accepted else None,
        final_accuracy=fmean(last.trained_accuracies),
        eval_accuracy=fmean(scores) if scores else None,
        eval_lowest=min(scores, default=None),
        tokens=sum(line.tokens_generated + line.tokens_trained for line in lines),
        seconds=last.seconds_total + (lent.seconds if lent else 0.0),
    )


def stopped_because(run: RunDir, config: RunConfig, lines: Sequence[RoundMetrics]) -> str | None:
    """Return the reason for which a run with these metrics is over; None if its files tell of none."""
    last = lines[-1]
    if last.digits >= config.until:
        return REACHED
    if last.is_round and last.next_agreement < config.round.min_agreement:
        return f"no agreement at {last.digits + 1} digits"
    following = run.following(last.digits, last.leap)
    generation = following.read(GenerationRecord)
    return f"nothing accepted at {following.digits} digits" if generation and not generation.accepted else None


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean and Student's 95 % interval of values of several runs."""
    center, count = fmean(values), len(values)
    if count < 2:
        return Mean(center, None, None, count)
    error = float(stats.sem(values))
    if error == 0:
        return Mean(center, center, center, count)
    low, high = stats.t.interval(0.95, count - 1, loc=center, scale=error)
    return Mean(center, float(low), float(high), count)


def means_of(outcomes: Sequence[Outcome]) -> dict[str, Mean]:
    """Return the mean of each of `FIGURES` over the runs that have it; a figure that none has is left out."""
    return _means({name: [getattr(outcome, name) for outcome in outcomes] for name in FIGURES})


def means_by_round(outcomes: Sequence[Outcome], name: ByRound) -> dict[int, Mean]:
    """Return the mean of a figure by digits of the round, over the runs that have it there."""
    of_runs: list[dict[int, float | None]] = [getattr(outcome, name) for outcome in outcomes]
    lengths = sorted({digits for figures in of_runs for digits in figures})
    return _means({digits: [figures.get(digits) for figures in of_runs] for digits in lengths})


def _means(figures: dict[Key, list[float | None]]) -> dict[Key, Mean]:
    """Return the mean of each figure over the runs that have it; a figure that none has is left out."""
    measured = {key: [value for value in values if value is not None] for key, values in figures.items()}
    return {key: mean_of(values) for key, values in measured.items() if values}


def collapse_of(rounds: Sequence[RoundMetrics]) -> int | None:
    """Return the index, from 0, of the round from which on accuracy at its own length stays below SURVIVES.

    None if the last round survives: the run did not collapse.
    """
    survived = [index for index, line in enumerate(rounds, start=1) if line.own_accuracy >= SURVIVES]
    first_lost = max(survived, default=0)
    return first_lost if first_lost < len(rounds) else None
