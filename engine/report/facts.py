"""Facts of a report, read from a run directory: the conclusion, the rounds, the seconds by phase, and some thoughts.

Text from parquet files is shown and never trusted, since anyone may have written them.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from scipy.stats import fisher_exact, spearmanr

from sector.engine.config import RunConfig, Values, flat, run_config
from sector.engine.errors import InputError, made_again
from sector.engine.report.outcomes import Outcome, outcome_of
from sector.engine.run import audit
from sector.engine.run.audit import Gate
from sector.engine.run.directory import RunDir
from sector.engine.run.disk import disk_of, read_removed
from sector.engine.run.part_folder import is_dataset
from sector.engine.run.records import RoundMetrics
from sector.engine.shares import percent
from sector.engine.tasks import find_task
from sector.engine.training.columns import read_rows
from sector.engine.training.dataset import read_examples, read_votes

# The run worked if the last audit finds at least this accuracy at every trained length.
WORKED = 0.95
# Chance above which a difference is not called one.
_SIGNIFICANT = 0.05
_SEED = re.compile(r"seed\d+")


@dataclass(frozen=True, slots=True)
class Conclusion:
    """The conclusion about a run.

    level: `good`, `mixed` or `bad`.
    headline: the result in a few words.
    because: the figures behind it.
    """

    level: str
    headline: str
    because: str


@dataclass(frozen=True, slots=True)
class RecordedThought:
    """A problem as the model solved it; all text is as on disk.

    digits: N of the problem.
    problem: text of the problem.
    verdict: accepted, thought through, or the reason of the rejection.
    accepted: whether the verdict is one of the first two.
    right: whether the answer is the true one.
    answer: the voted answer.
    direct: the fast answer.
    votes: count of guesses that equal the vote.
    num_guesses: count of guesses.
    first: the first simplification; '' if it is not on record.
    guesses: for each guess the count of simplifications before it, the guessed digits, and the digits split off before.
    """

    digits: int
    problem: str
    verdict: str
    accepted: bool
    right: bool
    answer: str
    direct: str
    votes: int
    num_guesses: int
    first: str
    guesses: list[tuple[int, str, str]]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Facts of a run.

    root: its directory.
    name: name of its directory; of a grid's run also that of its cell.
    cell: name that it shares with the runs that differ in their seed alone.
    config: its settings.
    metrics: lines of metrics.jsonl.
    outcome: its figures.
    conclusion: conclusion about the run.
    changed: settings that are not the default, by dotted name.
    gates: agreement and accuracy, by digits of the round; without rounds whose candidates were removed.
    label_mistakes: count of accepted examples by kind of mistake.
    seconds: seconds by phase.
    evaluation: accuracy by length, from `sector eval` if the run has one, else from the last audit.
    thoughts: candidates of some rounds.
    disk: bytes on disk by kind of file, and in total.
    """

    root: Path
    name: str
    cell: str
    config: RunConfig
    metrics: list[RoundMetrics]
    outcome: Outcome
    conclusion: Conclusion
    changed: Values
    gates: dict[int, Gate]
    label_mistakes: dict[str, int]
    seconds: dict[str, float]
    evaluation: dict[int, float]
    thoughts: list[RecordedThought]
    disk: dict[str, int]

    @property
    def longest(self) -> int:
        """Digits of the longest problems of an audit."""
        return max(max(line.accuracy) for line in self.metrics)

    @property
    def rounds(self) -> list[RoundMetrics]:
        """Metrics of the rounds, without those of the supervised phase."""
        return [line for line in self.metrics if line.is_round]

    def as_json(self) -> dict[str, object]:
        """Return the run as `sector report --json` prints it: conclusion, outcome, and the figures of the report."""
        gates = list(self.gates.values())
        return {
            "run": str(self.root),
            "level": self.conclusion.level,
            "verdict": self.conclusion.headline,
            "outcome": self.outcome.as_json(),
            "gate": {
                "accepted": [sum(gate.accepted[part] for gate in gates) for part in (0, 1)],
                "rejected": [sum(gate.rejected[part] for gate in gates) for part in (0, 1)],
                "rank_correlation": rank_correlation(gates),
            },
            "label_mistakes": self.label_mistakes,
            "disk": self.disk,
        }


def run_roots(paths: Sequence[Path]) -> list[Path]:
    """Return the run directories of some paths; a grid's directory stands for all its runs.

    Raise InputError if a path is neither.
    """
    roots: list[Path] = []
    for path in paths:
        of_grid = sorted(config.parent for config in path.glob("cells/*/seed*/config.toml"))
        if not RunDir(path).exists and not of_grid:
            raise InputError(_no_run(path))
        roots += [path] if RunDir(path).exists else of_grid
    return list(dict.fromkeys(roots))


def _no_run(path: Path) -> str:
    """Return why a path is no run, and the mend."""
    if not path.exists():
        return f"{path} does not exist; `sector run --out {path}` makes a run, and `sector generate --out` a data set"
    if is_dataset(path.parent):
        return f"{path} is a file of a data set; name its folder, {path.parent}"
    return f"{path} is neither a run nor a data set; name the folder that `sector run` or `sector generate` made"


def read_run(root: Path) -> RunFacts | None:
    """Read the facts of a run; None before its supervised phase is done. Raise InputError naming a damaged file."""
    run = RunDir(root)
    metrics, outcome, config = run.metrics(), outcome_of(run), run.read_config()
    if outcome is None:
        return None
    rounds = [line.digits for line in metrics if line.is_round]
    try:
        removed = read_removed(root).candidates
        tried = [digits for digits in rounds if digits not in removed]
        gates = {digits: _gate(run, digits) for digits in tried}
        label_mistakes = _label_mistakes(run, rounds)
        thoughts = list(_thoughts(run, tried, find_task(config.task).at_once))
    except InputError as error:
        raise InputError(f"{error}; {made_again(root)}") from error
    resolved = root.resolve()
    is_seed = _SEED.fullmatch(resolved.name) is not None
    evaluation = run.read_evaluation()
    scores = {score.digits: score.accuracy for score in evaluation.lengths} if evaluation else metrics[-1].accuracy
    return RunFacts(
        root=root,
        name=f"{resolved.parent.name}/{resolved.name}" if is_seed else resolved.name,
        cell=resolved.parent.name if is_seed else resolved.name,
        config=config,
        metrics=metrics,
        outcome=outcome,
        conclusion=_conclusion(config, metrics, outcome),
        changed=changed_settings(config),
        gates=gates,
        label_mistakes=label_mistakes,
        seconds=_seconds(metrics, outcome),
        evaluation=scores,
        thoughts=thoughts,
        disk=disk_of(root),
    )


def cells_of(runs: Sequence[RunFacts]) -> dict[str, list[RunFacts]]:
    """Group runs that differ in their seed alone, and name each group."""

    def settings(run: RunFacts) -> str:
        return run.config.model_copy(update={"seed": 0}).model_dump_json()

    groups = [list(group) for _, group in groupby(sorted(runs, key=settings), key=settings)]
    groups.sort(key=lambda group: runs.index(group[0]))
    named: dict[str, list[RunFacts]] = {}
    for group in groups:
        name = ", ".join(dict.fromkeys(run.cell for run in group))
        # Groups may come from directories of the same name.
        named[name if name not in named else f"{name} ({group[0].root})"] = group
    return named


def rank_correlation(gates: Sequence[Gate]) -> tuple[float, float] | None:
    """Return Spearman's rank correlation of agreement and accuracy over rounds, and its p-value.

    None unless both vary.
    """
    agreements, accuracies = [gate.agreement for gate in gates], [gate.accuracy for gate in gates]
    if len(set(agreements)) < 2 or len(set(accuracies)) < 2:
        return None
    correlation = spearmanr(agreements, accuracies)
    return float(correlation.statistic), float(correlation.pvalue)


def gate_answer(gates: Sequence[Gate]) -> str:
    """Return whether agreement predicts accuracy, as sentences with the figures of all candidates of some rounds."""
    (right, passed), (right_rejected, rejected) = (
        (sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs))
        for pairs in ([gate.accepted for gate in gates], [gate.rejected for gate in gates])
    )
    if not passed or not rejected:
        return f"It cannot be told: all {passed + rejected:,} candidates were {'accepted' if passed else 'rejected'}."
    shares = (
        f"{percent(right / passed)} of {passed:,} accepted answers are right, and {percent(right_rejected / rejected)} "
        f"of {rejected:,} rejected ones"
    )
    if right + right_rejected == passed + rejected:
        return f"It cannot be told: {shares}."
    test = fisher_exact([[right, passed - right], [right_rejected, rejected - right_rejected]], alternative="greater")
    if test.pvalue < _SIGNIFICANT:
        return f"Yes: {shares} (Fisher's exact test: p = {test.pvalue:.2g})."
    return f"Not in this data: {shares}, which may be chance (Fisher's exact test: p = {test.pvalue:.2g})."


def _conclusion(config: RunConfig, metrics: list[RoundMetrics], outcome: Outcome) -> Conclusion:
    trained = metrics[-1].trained_accuracies
    lowest = percent(min(trained), unlike=[WORKED])
    because = f"lowest accuracy at 1 to {outcome.final_digits} digits: {lowest} by the last audit"
    survived = f"; {outcome.rounds_survived} of {outcome.rounds} rounds survived" if outcome.rounds else ""
    first, final = config.supervised.max_digits, outcome.final_digits
    taught = f"from {first} to {final} digits" if outcome.rounds else f"1 to {final} digits with true answers"
    good = min(trained) >= WORKED
    if outcome.stopped_because is None:
        return Conclusion("mixed", f"Under way: {final} of {config.until} digits", because + survived)
    if outcome.stopped_because != "reached":
        headline = f"Stopped at {final} of {config.until} digits: {outcome.stopped_because}"
        return Conclusion("mixed" if good and outcome.rounds else "bad", headline, because + survived)
    if good:
        return Conclusion("good", f"It worked: {taught}", because + survived)
    collapsed = outcome.rounds_survived < outcome.rounds
    headline = (
        f"Collapsed after {outcome.rounds_survived} rounds" if collapsed else f"Reached {final} digits, not clean"
    )
    return Conclusion("bad" if collapsed else "mixed", headline, because + survived)


def changed_settings(config: RunConfig) -> dict[str, object]:
    """Return the settings that are not the default, by dotted name.

    Defaults are those of the run's task, preset and pretrained start, which are compared with their own defaults.
    """
    start = {"task": config.task, "pretrained": config.pretrained, "preset": config.preset}
    default = dict(flat({**run_config(start).model_dump(), **RunConfig().model_dump(include=set(start))}))
    return {key: value for key, value in flat(config.model_dump()) if value != default.get(key)}


def _gate(run: RunDir, digits: int) -> Gate:
    problems, answers, _, accepted = read_votes(run.round(digits).candidates, digits)
    return audit.gate(problems, answers, accepted)


def _label_mistakes(run: RunDir, rounds: list[int]) -> dict[str, int]:
    """Count the accepted examples of all rounds by the mistake in the answer; empty if there are none."""
    total: Counter[str] = Counter()
    for digits in rounds:
        for examples in read_examples(run.round(digits).examples).values():
            # Unlike `+`, `update` keeps kinds with a count of 0.
            total.update(audit.label_mistakes(examples))
    return dict(total)


def _seconds(metrics: list[RoundMetrics], outcome: Outcome) -> dict[str, float]:
    """Return seconds by phase; they add up to those of the run."""
    parts = {
        "supervise": metrics[0].seconds_train,
        "generate": sum(line.seconds_generate for line in metrics),
        "distill": sum(line.seconds_train for line in metrics[1:]),
        "audit": sum(line.seconds_audit for line in metrics),
    }
    return {**parts, "probes and files": max(0.0, outcome.seconds - sum(parts.values()))}


def round_seconds(metrics: list[RoundMetrics]) -> list[dict[str, float]]:
    """Return seconds by phase for each round."""
    rows = []
    for before, line in pairwise(metrics):
        parts = {
            "generate": line.seconds_generate,
            "distill": line.seconds_train,
            "audit": line.seconds_audit,
        }
        whole = line.seconds_total - before.seconds_total
        rows.append({**parts, "probes and files": max(0.0, whole - sum(parts.values()))})
    return rows


def _thoughts(run: RunDir, rounds: list[int], at_once: int | None) -> Iterator[RecordedThought]:
    """Yield the first candidate of each verdict, in the first, a middle and the last round.

    The thought of an accepted candidate includes its guesses.
    """
    for digits in sorted({rounds[0], rounds[len(rounds) // 2], rounds[-1]} if rounds else ()):
        candidates = read_rows(run.round(digits).candidates)
        problems, answers, _, accepted = read_votes(run.round(digits).candidates, digits)
        right = audit.answers_correct(problems, answers).tolist()
        examples = {row["problem"]: row for row in read_rows(run.round(digits).examples)}
        num_guesses = max((len(row["guesses"] or []) for row in examples.values()), default=0)
        seen: set[str] = set()
        for row, is_accepted, is_right in zip(candidates, accepted.tolist(), right, strict=True):
            if row["verdict"] not in seen:
                seen.add(row["verdict"])
                thought = _thought(digits, row, is_accepted, is_right, examples.get(row["problem"], {}), at_once)
                # The guesses of a rejected candidate are not on record; it had as many as the others.
                yield replace(thought, num_guesses=max(thought.num_guesses, thought.votes, num_guesses))


def _thought(
    digits: int, row: dict[str, Any], accepted: bool, right: bool, example: dict[str, Any], at_once: int | None
) -> RecordedThought:
    """Return a candidate as a thought.

    row: row of the candidates.
    example: row of the examples; empty if the candidate was rejected.
    at_once: digits of the longest problems that the task answers at once; None if there is no limit (`Task.at_once`).
    """
    guesses = [str(guess) for guess in example.get("guesses") or []]
    thinks = bool(example.get("simplification")) and digits > 1
    # The guess after j simplifications ends in the j digits that they split off. A task that answers short problems
    # only takes its first guess when such a problem remains.
    first = digits - at_once if at_once is not None else 1
    split = [
        (count, guess[: len(guess) - count], guess[len(guess) - count :]) if thinks else (0, guess, "")
        for count, guess in enumerate(guesses, start=first)
    ]
    return RecordedThought(
        digits=digits,
        problem=str(row["problem"]),
        verdict=str(row["verdict"]).replace("_", " "),
        accepted=accepted,
        right=right,
        answer=str(row["answer"]),
        direct=str(row.get("direct", "")),
        votes=int(row["votes"]),
        num_guesses=len(guesses),
        first=str(example.get("simplification", "")),
        guesses=split,
    )
