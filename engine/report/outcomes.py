"""What became of runs, in figures: of one, and of several that differ in nothing but the seed.

Reads what runs have on disk; asks for no sum itself, the audit has done that.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from scipy import stats

from sector.engine.config import RunConfig
from sector.engine.run.directory import RunDir
from sector.engine.run.records import GenerationRecord, RoundMetrics, StartRecord

# A round survived if the audit finds at least this share of the answers right at its own length.
SURVIVES = 0.9


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one run.

    stopped_because: `reached`, why the loop stopped, or None where it has not stopped yet.
    final_digits: where the loop got to by its own lights. rounds_survived: rounds before the first in which the audit
        finds fewer than `SURVIVES` right at the round's own length; with no such round, all of them.
    label_errors: by digits of the round, None where nothing was accepted. mean_label_error: over all accepted examples.
    final_accuracy: mean over 1 to `final_digits`, by the last audit.
    eval_accuracy, eval_lowest: mean and lowest over the lengths of the run's evaluation, None without one.
    tokens: generated and trained. seconds: of the whole run, with the supervised phase where another run lent it.
    """

    seed: int
    stopped_because: str | None
    final_digits: int
    rounds: int
    rounds_survived: int
    label_errors: dict[int, float | None]
    mean_label_error: float | None
    final_accuracy: float
    eval_accuracy: float | None
    eval_lowest: float | None
    tokens: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over runs, with Student's 95 % interval; no interval for a single run."""

    mean: float
    low: float | None
    high: float | None
    count: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


# What is averaged over seeds.
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
    """What became of a run; None before its supervised phase is done."""
    lines = run.metrics()
    if not lines:
        return None
    config, rounds = run.read_config(), [line for line in lines if line.is_round]
    last = lines[-1]
    accepted = sum(line.accepted for line in rounds)
    evaluation = run.read_evaluation()
    scores = [score.accuracy for score in evaluation.lengths] if evaluation else []
    lent = run.supervised(config.supervised.max_digits).read(StartRecord)
    return Outcome(
        seed=config.seed,
        stopped_because=stopped_because(run, config, lines),
        final_digits=last.digits,
        rounds=len(rounds),
        rounds_survived=_survived(rounds),
        label_errors={line.digits: line.label_error for line in rounds},
        mean_label_error=sum(line.wrong_accepted for line in rounds) / accepted if accepted else None,
        final_accuracy=fmean(last.trained_accuracies),
        eval_accuracy=fmean(scores) if scores else None,
        eval_lowest=min(scores, default=None),
        tokens=sum(line.tokens_generated + line.tokens_trained for line in lines),
        seconds=last.seconds_total + (lent.seconds if lent else 0.0),
    )


def stopped_because(run: RunDir, config: RunConfig, lines: Sequence[RoundMetrics]) -> str | None:
    """Why a run with these metrics is over; None if it is not, as far as its files tell."""
    last = lines[-1]
    if last.digits >= config.until:
        return "reached"
    if last.is_round and last.next_agreement < config.round.min_agreement:
        return f"no agreement at {last.digits + 1} digits"
    following = run.following(last.digits, last.leap)
    generation = following.read(GenerationRecord)
    return f"nothing accepted at {following.digits} digits" if generation and not generation.accepted else None


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and Student's 95 % interval over runs."""
    center, count = fmean(values), len(values)
    if count < 2:
        return Mean(center, None, None, count)
    error = float(stats.sem(values))
    if error == 0:
        return Mean(center, center, center, count)
    low, high = stats.t.interval(0.95, count - 1, loc=center, scale=error)
    return Mean(center, float(low), float(high), count)


def means_of(outcomes: Sequence[Outcome]) -> dict[str, Mean]:
    """Every figure of `FIGURES` that some of the runs have, over those that have it."""
    known = {name: [value for each in outcomes if (value := getattr(each, name)) is not None] for name in FIGURES}
    return {name: mean_of(values) for name, values in known.items() if values}


def label_errors_of(outcomes: Sequence[Outcome]) -> dict[int, Mean]:
    """Label error by digits of the round, over the runs that accepted something there."""
    lengths = sorted({digits for each in outcomes for digits in each.label_errors})
    by_length = {
        digits: [error for each in outcomes if (error := each.label_errors.get(digits)) is not None]
        for digits in lengths
    }
    return {digits: mean_of(errors) for digits, errors in by_length.items() if errors}


def _survived(rounds: Sequence[RoundMetrics]) -> int:
    for count, line in enumerate(rounds):
        if line.own_accuracy < SURVIVES:
            return count
    return len(rounds)
