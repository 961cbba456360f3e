"""Damaged files of a run: found when it is opened, and removed, so that the phase that made them makes them again.

Files are written aside and renamed, so this is not what a kill leaves behind, but what disks and people do. All of them
follow from seeds and earlier files: what is made again is the same.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError

from sector.engine.errors import InputError
from sector.engine.files import write_text
from sector.engine.models.checkpoint import WEIGHTS, open_tensors
from sector.engine.run.directory import METRICS, RunDir


def remove_damaged(run: RunDir) -> list[str]:
    """Remove what cannot be read, with all that shows its phase as done; names below the run directory."""
    damaged = list(_damaged(run))
    try:
        for path, evidence in damaged:
            for each in (path, evidence):
                shutil.rmtree(each) if each.is_dir() else each.unlink(missing_ok=True)
        return sorted(str(path.relative_to(run.root)) for path, _ in damaged) + _cut_metrics(run)
    except OSError as error:
        raise InputError(f"cannot mend {run.root}: {error.strerror or error}") from error


def _damaged(run: RunDir) -> Iterator[tuple[Path, Path]]:
    """What cannot be read, and what shows that its phase is done: a round's examples, or its checkpoint."""
    for path in run.root.glob("rounds/*/*.parquet"):
        if not _is_readable(path, _read_metadata):
            yield path, path.with_name("examples.parquet")
    for path in run.root.glob("rounds/*/*.json"):
        if not _is_readable(path, _read_json):
            name = path.parent.name
            first = str(run.read_config().supervised.max_digits).zfill(2)
            trained = run.root / "checkpoints" / (first if name == "supervised" else name)
            yield path, trained if path.name == "training.json" else path.with_name("examples.parquet")
    for path in run.root.glob("checkpoints/[0-9]*"):
        if not (_is_readable(path / WEIGHTS, _read_header) and _is_readable(path / "config.json", _read_json)):
            yield path, path
    if run.snapshot.exists() and not _is_readable(run.snapshot, _read_header):
        yield run.snapshot, run.snapshot


def _is_readable(path: Path, read: Callable[[Path], object]) -> bool:
    try:
        read(path)
    except (OSError, ValueError, TypeError, pa.ArrowException, SafetensorError):
        return False
    return True


def _read_json(path: Path) -> None:
    if not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
        raise TypeError("not an object")


def _read_metadata(path: Path) -> None:
    with path.open("rb") as file:
        pq.read_metadata(file)


def _read_header(path: Path) -> None:
    """The header says how long the file is; a truncated one is refused."""
    with open_tensors(path):
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
