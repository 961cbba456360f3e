"""Damaged and missing files of a run: found when it is opened, so that the phase that made them makes them again.

Files are written aside and renamed, so this is not what a kill leaves behind, but what disks and people do. All of them
follow from seeds and earlier files: what is made again is the same.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
from safetensors import SafetensorError

from sector.engine.bound import LEARNED, WEIGHTS
from sector.engine.errors import InputError
from sector.engine.files import write_text
from sector.engine.models.checkpoint import complete_checkpoint
from sector.engine.run.directory import METRICS, RunDir
from sector.engine.training.dataset import preview_of


def remove_damaged(run: RunDir) -> list[str]:
    """Remove what cannot be read, with all that shows its phase as done; names below the run directory.

    What is missing counts as well, where its phase is done.
    """
    damaged = [*_damaged(run), *_missing(run)]
    try:
        for path, evidence in damaged:
            for each in (path, evidence):
                shutil.rmtree(each) if each.is_dir() else each.unlink(missing_ok=True)
            # A round whose folder is gone has begun all the same.
            path.parent.mkdir(parents=True, exist_ok=True)
        names = {str(path.relative_to(run.root)) for path, _ in damaged}
        return sorted(names) + _completed(run) + _cut_metrics(run)
    except OSError as error:
        raise InputError(f"cannot mend {run.root}: {error.strerror or error}") from error


def _damaged(run: RunDir) -> Iterator[tuple[Path, Path]]:
    """What cannot be read, and what shows that its phase is done: a round's examples, or its checkpoint."""
    for path in run.root.glob("rounds/*/*.parquet"):
        if not _is_readable(path, pq.read_metadata):
            yield path, path.with_name("examples.parquet")
    for path in run.root.glob("rounds/*/*.json"):
        if not _is_readable(path, _read_json):
            name = path.parent.name
            trained = run.checkpoint(int(name) if name.isdigit() else run.read_config().supervised.max_digits)
            yield path, trained if path.name == "training.json" else path.with_name("examples.parquet")
    for path in run.root.glob("checkpoints/[0-9]*"):
        read = {WEIGHTS: _read_header, "config.json": _read_json}
        if (path / LEARNED).exists():
            read[LEARNED] = _read_json
        if not all(_is_readable(path / name, one) for name, one in read.items()):
            yield path, path
    if run.snapshot.exists() and not _is_readable(run.snapshot, _read_header):
        yield run.snapshot, run.snapshot


def _missing(run: RunDir) -> Iterator[tuple[Path, Path]]:
    """What is not there, as in `_damaged`: a phase writes its files in order, and the evidence last."""
    for examples in run.root.glob("rounds/*/examples.parquet"):
        # The supervised phase has no candidates.
        generated = ("candidates.parquet", "generation.json") if examples.parent.name.isdigit() else ()
        for name in (*generated, preview_of(examples).name):
            if not examples.with_name(name).exists():
                yield examples.with_name(name), examples
    first = run.read_config().supervised.max_digits
    for trained in run.root.glob("checkpoints/[0-9]*"):
        digits = int(trained.name)
        training = run.round_dir(0 if digits == first else digits) / "training.json"
        # Checkpoint 0 is what a pretrained model came with.
        if digits and not training.exists():
            yield training, trained


def _completed(run: RunDir) -> list[str]:
    """Complete the checkpoints; names of the files that were missing."""
    found = sorted(run.root.glob("checkpoints/[0-9]*"))
    return [str((path / name).relative_to(run.root)) for path in found for name in complete_checkpoint(path)]


def _is_readable(path: Path, read: Callable[[Path], object]) -> bool:
    try:
        read(path)
    except (OSError, ValueError, TypeError, pa.ArrowException, SafetensorError):
        return False
    return True


def _read_json(path: Path) -> None:
    if not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
        raise TypeError("not an object")


def _read_header(path: Path) -> None:
    """The header says how long the file is; a truncated one is refused."""
    with safetensors.safe_open(path, framework="pt"):
        pass


def _cut_metrics(run: RunDir) -> list[str]:
    """Keep the lines before the first that is none; the audits behind it are made again."""
    path = run.root / METRICS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    good = []
    for line in lines:
        try:
            if not isinstance(json.loads(line)["seconds_total"], float):
                break
        except (ValueError, KeyError, TypeError):
            break
        good.append(line)
    if len(good) == len(lines):
        return []
    write_text(path, "".join(line + "\n" for line in good))
    return [METRICS]
