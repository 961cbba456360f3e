"""Repair of a run: find damaged and missing files when it is opened, so that their phase writes them again.

A kill leaves no such files, since all writes are atomic; disks and manual edits do. All files follow from seeds and
earlier files, so the new ones are the same.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from sector.engine.errors import InputError
from sector.engine.files import write_text
from sector.engine.models.checkpoint import check_checkpoint, complete_checkpoint
from sector.engine.run.directory import RunDir, read_snapshot
from sector.engine.run.disk import forget_lost, read_removed
from sector.engine.run.phase import Phase, R
from sector.engine.run.records import (
    METRICS,
    Damaged,
    GenerationRecord,
    RemovedRecord,
    StartRecord,
    TrainingRecord,
    parse_metrics,
    read_content,
)
from sector.engine.training.dataset import preview_of, read_candidates, read_examples, read_votes


def remove_damaged(run: RunDir) -> list[str]:
    """Remove unreadable files, and the evidence that their phase is done; return their names in the run.

    A missing file of a phase that is done is treated in the same way.
    Raise InputError if a file cannot be removed.
    """
    damaged = list(_damaged(run))
    try:
        for path, evidence in damaged:
            _remove(path)
            _remove(evidence)
            # The folder shows that the round has started, so it must be there.
            path.parent.mkdir(parents=True, exist_ok=True)
        forget_lost(run, run.read_config())
        names = {str(path.relative_to(run.root)) for path, _ in damaged}
        return sorted(names) + _completed(run) + _cut_metrics(run)
    except OSError as error:
        raise InputError(f"cannot mend {run.root}: {error.strerror or error}") from error


def _damaged(run: RunDir) -> Iterator[tuple[Path, Path]]:
    """Yield each unreadable or missing file with the evidence that its phase is done.

    The evidence is the examples of a round, or its checkpoint.
    """
    config = run.read_config()
    first, removed = config.supervised.max_digits, _removed(run).candidates
    for phase in _phases(run, first):
        examples, trained = phase.examples, phase.checkpoint
        if os.path.lexists(examples) and not _is_readable(examples, read_examples):
            yield examples, examples
        is_generated = phase.is_round and examples.exists()
        is_there = phase.candidates.exists() or phase.digits not in removed
        if is_generated and is_there and not _is_readable(phase.candidates, partial(_read_round, phase.digits)):
            yield phase.candidates, examples
        if examples.exists() and not preview_of(examples).exists():
            yield preview_of(examples), examples
        if not _is_whole(phase, GenerationRecord, is_due=is_generated):
            yield phase.record(GenerationRecord), examples
        if not _is_whole(phase, TrainingRecord, is_due=trained.exists()):
            yield phase.record(TrainingRecord), trained
    # This record cannot be made again. Without it a report counts too few seconds of training.
    start = run.supervised(first).record(StartRecord)
    if not _is_whole(run.supervised(first), StartRecord, is_due=False):
        yield start, start
    for path in run.root.glob("checkpoints/[0-9]*"):
        has_adapter = config.has_adapter and path != run.pretrained
        if not _is_readable(path, partial(check_checkpoint, has_adapter=has_adapter)):
            yield path, path
    if os.path.lexists(run.snapshot) and not _is_readable(run.snapshot, read_snapshot):
        yield run.snapshot, run.snapshot


def _phases(run: RunDir, first: int) -> list[Phase]:
    """List the supervised phase and the rounds, also rounds that have a checkpoint and no folder."""
    trained = {int(path.name) for path in run.root.glob("checkpoints/[0-9]*")}
    # Checkpoint 0 is the pretrained model.
    digits = {*(phase.digits for phase in run.rounds()), *trained} - {0, first}
    return [run.supervised(first), *map(run.round, sorted(digits))]


def _removed(run: RunDir) -> RemovedRecord:
    """Return the record of removed files; an empty one if it is damaged, so that it is made again."""
    try:
        return read_removed(run.root)
    except Damaged:
        return RemovedRecord()


def _completed(run: RunDir) -> list[str]:
    """Add missing files to the checkpoints; return their names in the run."""
    checkpoints = sorted(run.root.glob("checkpoints/[0-9]*"))
    return [str((path / name).relative_to(run.root)) for path in checkpoints for name in complete_checkpoint(path)]


def _is_readable(path: Path, read: Callable[[Path], object]) -> bool:
    """Return whether `read` accepts a file."""
    try:
        read(path)
    except InputError:
        return False
    return True


def _read_round(digits: int, path: Path) -> None:
    """Read the candidates of a round in both ways in which they are used: by the audit and by a report."""
    read_candidates(path, digits)
    read_votes(path, digits)


def _is_whole(phase: Phase, kind: type[R], is_due: bool) -> bool:
    """Return whether a record is valid, or absent and not due. Raise InputError if it is of a later release."""
    try:
        return phase.read(kind) is not None or not is_due
    except Damaged:
        return False


def _remove(path: Path) -> None:
    """Remove a file, a directory, or a link but not its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _cut_metrics(run: RunDir) -> list[str]:
    """Cut metrics.jsonl before the first damaged line, so that the later audits run again; return its name if cut."""
    path, content, good = run.root / METRICS, b"", 0
    try:
        content = read_content(path, "") or b""
        for _ in parse_metrics(content, str(path), ""):
            good += 1
    except Damaged:
        # A directory in its place cannot be overwritten.
        if not path.is_file():
            _remove(path)
        write_text(path, "".join(f"{line.decode()}\n" for line in content.split(b"\n")[:good]))
        return [METRICS]
    return []
