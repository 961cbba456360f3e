"""The evaluation: exact-match accuracy by length, on uniform problems and on kinds that uniform digits hardly hold."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sector.engine.config import Filter
from sector.engine.files import check_writable, write_text
from sector.engine.models.checkpoint import resolve_checkpoint
from sector.engine.policy.solver import Solver
from sector.engine.run.audit import Score, score, score_length
from sector.engine.run.directory import RunDir
from sector.engine.run.plots import plot_eval
from sector.engine.run.steps import OnProgress, check_digits, open_engine
from sector.engine.tasks.task import Task


def evaluate(solver: Solver, task: Task, lengths: list[int], samples: int, seed: int, suite: bool) -> Iterator[Score]:
    """A score for every length, followed by one for each family at that length where the suite is asked for.

    Each is of so many samples.
    """
    for digits in lengths:
        yield score_length(solver, task, digits, samples, seed)
        for name, draw in task.families().items() if suite else ():
            yield score(solver, name, draw(digits, samples, seed))


def score_json(each: Score) -> dict[str, Any]:
    """A score with its Wilson 95 % interval."""
    low, high = each.interval
    return {
        "digits": each.digits,
        "correct": each.correct,
        "samples": each.samples,
        "accuracy": each.accuracy,
        "low": low,
        "high": high,
    }


@dataclass(frozen=True, slots=True)
class Report:
    """An evaluation: its scores in order, the same for machines, and the picture if one was drawn."""

    title: str
    scores: list[Score]
    values: dict[str, Any]
    picture: Path | None


def evaluate_model(
    model: Path,
    lengths: list[int],
    samples: int,
    *,
    policy: str,
    suite: bool,
    out: Path | None,
    engine: str,
    settings: Filter,
    seed: int,
    on_progress: OnProgress,
    given: dict[str, Any] | None = None,
) -> Report:
    """Evaluate a checkpoint, or a run's best, and leave picture and JSON in `out` or among the run's plots.

    given: as in `open_engine`.
    """
    for digits in lengths:
        check_digits(digits)
    folder = out or _plots_of(model)
    stem = None if folder is None else folder / f"eval-{policy}"
    if stem:
        check_writable(stem.with_suffix(".png"))
    sampler, task, layout = open_engine(model, engine, given)
    solver = Solver(sampler, layout, policy, settings, seed)
    start, scores = time.perf_counter(), []
    for each in evaluate(solver, task, lengths, samples, seed, suite):
        scores.append(each)
        on_progress(len(scores), len(lengths) * (1 + suite * len(task.families())), f"{each.digits} digits")
    values = {
        "policy": policy,
        "samples": samples,
        "lengths": [score_json(each) for each in scores if each.name == "uniform"],
        "suite": [{"family": each.name, **score_json(each)} for each in scores if each.name != "uniform"],
        "seed": seed,
        "engine": engine,
        "weights_sha256": sampler.weights_sha256,
        "seconds": time.perf_counter() - start,
    }
    title = f"Accuracy of the {policy} policy, {resolve_checkpoint(model)}"
    if stem:
        plot_eval(scores, title, stem.with_suffix(".png"))
        write_text(stem.with_suffix(".json"), json.dumps(values, indent=2) + "\n")
    return Report(title, scores, values, stem and stem.with_suffix(".png"))


def _plots_of(model: Path) -> Path | None:
    """The folder for the pictures of a run; None for a bare checkpoint."""
    run = RunDir(model)
    return run.plots() if run.exists else None
