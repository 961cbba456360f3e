"""Evaluation: exact-match accuracy by length, on uniform problems and on families that uniform digits rarely hold."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sector.engine.config import Filter, Values
from sector.engine.errors import InputError
from sector.engine.files import check_writable, write_text
from sector.engine.models.checkpoint import TrainedModel, resolve_checkpoint, source_of
from sector.engine.policy.solver import Solver
from sector.engine.run.audit import Score, score, score_length
from sector.engine.run.directory import RunDir
from sector.engine.run.plots import plot_eval
from sector.engine.run.records import EvaluationRecord, FamilyScore, LengthScore, dump_file, read_record
from sector.engine.run.steps import OnProgress, check_digits, open_engine
from sector.engine.tasks.task import Task


def evaluate(solver: Solver, task: Task, lengths: list[int], samples: int, seed: int, suite: bool) -> Iterator[Score]:
    """Yield a score for each length and, with `suite`, one for each family of the task at that length.

    samples: count of problems of each score.
    """
    for digits in lengths:
        yield score_length(solver, task, digits, samples, seed)
        for name, draw in task.families().items() if suite else ():
            yield score(solver, name, draw(digits, samples, seed))


def length_score(score: Score) -> LengthScore:
    """Return the record of a score, with its Wilson 95 % interval."""
    low, high = score.interval
    return LengthScore(
        digits=score.digits, correct=score.correct, samples=score.samples, accuracy=score.accuracy, low=low, high=high
    )


@dataclass(frozen=True, slots=True)
class Report:
    """An evaluation and its files.

    title: policy and checkpoint, for display.
    scores: in the order of `evaluate`.
    record: the same with its conditions, as in the JSON file.
    written: paths of picture and record; None if neither was written.
    kept: the older record in the run's plots that was not replaced, since it holds more of the same weights.
    """

    title: str
    scores: list[Score]
    record: EvaluationRecord
    written: tuple[Path, Path] | None
    kept: Path | None

    @property
    def values(self) -> dict[str, object]:
        """The record as a JSON object."""
        return self.record.as_json()


def evaluate_model(
    model: Path | TrainedModel,
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
    engine_settings: Values | None = None,
) -> Report:
    """Evaluate a checkpoint, the best one of a run, or a loaded model, and write a picture and a JSON record.

    An older record in the run's plots is not replaced if it has more samples or scores of the same weights.

    out: folder of the files; by default the run's plots, and none for a bare checkpoint.
    settings: filter of the improved policy.
    engine_settings: as in `open_engine`.
    """
    for digits in lengths:
        check_digits(digits)
    source = source_of(model)
    files = _files(out or _plots_of(source), policy)
    for file in files or ():
        check_writable(file)
    sampler, task, layout = open_engine(model, engine, engine_settings)
    solver = Solver(sampler, layout, policy, settings, seed)
    start, scores = time.perf_counter(), list[Score]()
    total = len(lengths) * (1 + (len(task.families()) if suite else 0))
    for measured in evaluate(solver, task, lengths, samples, seed, suite):
        scores.append(measured)
        on_progress(len(scores), total, f"{measured.digits} digits")
    record = _record(scores, solver, samples, engine, time.perf_counter() - start)
    title = f"Accuracy of the {policy} policy, {resolve_checkpoint(source)}"
    if files is None:
        return Report(title, scores, record, None, None)
    picture, file = files
    if out is None and _holds_more(file, record):
        return Report(title, scores, record, None, file)
    plot_eval(scores, title, picture)
    write_text(file, dump_file(record))
    return Report(title, scores, record, files, None)


def _files(folder: Path | None, policy: str) -> tuple[Path, Path] | None:
    """Return the paths of picture and record in a folder; None without a folder."""
    return None if folder is None else (folder / f"eval-{policy}.png", folder / f"eval-{policy}.json")


def _record(scores: list[Score], solver: Solver, samples: int, engine: str, seconds: float) -> EvaluationRecord:
    """Return the record of an evaluation: its scores and their conditions."""
    of_families = [score for score in scores if score.name != "uniform"]
    return EvaluationRecord(
        policy=solver.policy,
        samples=samples,
        lengths=[length_score(score) for score in scores if score.name == "uniform"],
        suite=[FamilyScore(family=score.name, **dict(length_score(score))) for score in of_families],
        seed=solver.seed,
        engine=engine,
        weights_sha256=solver.sampler.weights_sha256,
        seconds=seconds,
    )


def _holds_more(file: Path, record: EvaluationRecord) -> bool:
    """Return whether a file has an evaluation of the same weights with more samples or scores."""
    try:
        old = read_record(file, EvaluationRecord, "")
    except InputError:
        return False
    if old is None or old.weights_sha256 != record.weights_sha256:
        return False
    return old.samples > record.samples or not _lengths(old) <= _lengths(record)


def _lengths(record: EvaluationRecord) -> set[tuple[str, int]]:
    """Return the families of problems with their lengths; uniform problems have no name."""
    return {("", score.digits) for score in record.lengths} | {(score.family, score.digits) for score in record.suite}


def _plots_of(model: Path) -> Path | None:
    """Return the folder for the pictures of a run; None for a bare checkpoint."""
    run = RunDir(model)
    return run.plots() if run.exists else None
