"""Data set as a folder: parquet files of the parts, and a manifest that lists them.

    part-00000.parquet ...  examples of a fixed range of candidates each (`parts.py`)
    manifest.json           settings, and range, counts, rows and sha256 of every part

The manifest is written before the first part, as incomplete, and again when no part is missing. It names no time and no
host, so the folder has the same bytes after any interruption, and for any number of workers.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from sector.engine.errors import InputError, first_line
from sector.engine.run.parts import PartRecord, SetSettings, holds_part, read_part, refuse_others, write_file
from sector.engine.run.records import Damaged, Record, Sha256, dump_file, read_record

MANIFEST = "manifest.json"
_PART = re.compile(r"part-\d{5,}\.parquet")
_GO_ON = "the same command makes it again from the parts"


class Manifest(Record):
    """List of the parts of a data set (`manifest.json`)."""

    name: ClassVar[str] = "manifest"

    sha256: Sha256
    """Digest of the other keys, which reveals damage."""
    complete: bool
    """Whether all parts are there. An incomplete manifest lists none."""
    settings: SetSettings
    """Settings that the parts were made with."""
    parts: list[PartRecord]
    """The parts, in order."""

    @classmethod
    def of(cls, settings: SetSettings, parts: list[PartRecord]) -> "Manifest":
        """Return the manifest of a whole data set, or of an incomplete one without parts."""
        manifest = cls(sha256="", complete=bool(parts), settings=settings, parts=parts)
        return manifest.model_copy(update={"sha256": manifest.true_sha256})

    @property
    def true_sha256(self) -> str:
        """Digest of the other keys as they are."""
        described = self.model_dump(mode="json", exclude={"sha256"})
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


class PartFolder:
    """Folder of a data set that is to be made or finished; lock it before (`locks.locked`).

    root: path of the folder.
    settings: settings of the data set.
    parts: records of the parts that are there and whole, by first candidate.
    mended: names of files that were damaged, and are made again.
    """

    def __init__(self, root: Path, settings: SetSettings) -> None:
        self.root, self.settings = root, settings
        self.parts: dict[int, PartRecord] = {}
        self.mended: list[str] = []

    def open(self) -> None:
        """Find the parts that are whole. Raise InputError if the folder holds something else than this data set."""
        listed = self._listed()
        for start in self.settings.starts:
            record = listed.get(start)
            path = self.root / self.settings.file_of(start)
            if record is None or _sha256(path) != record.sha256:
                record = read_part(self.root, self.settings, start)
            if record is not None:
                self.parts[start] = record
            elif path.exists():
                self.mended.append(path.name)

    def missing(self) -> list[int]:
        """List the first candidates of the parts that are missing or damaged."""
        return [start for start in self.settings.starts if start not in self.parts]

    def begin(self) -> None:
        """Write an incomplete manifest, so that the folder shows what it is from the first part on."""
        self._write([])

    def finish(self) -> None:
        """Write the manifest of the whole data set."""
        self._write([self.parts[start] for start in self.settings.starts])

    def _write(self, parts: list[PartRecord]) -> None:
        """Write the manifest, unless the file says the same already."""
        path, content = self.root / MANIFEST, dump_file(Manifest.of(self.settings, parts)).encode()
        if not path.exists() or path.read_bytes() != content:
            write_file(path, content)

    def _listed(self) -> dict[int, PartRecord]:
        """Return the parts that the manifest lists, by first candidate.

        Raise InputError if the folder is of another data set, or of none.
        """
        path = self.root / MANIFEST
        try:
            manifest = read_manifest(self.root)
        except Damaged:
            self.mended.append(MANIFEST)
            return {}
        if manifest is None:
            self._refuse_foreign()
            return {}
        refuse_others(path, manifest.settings, self.settings)
        return {record.first: record for record in manifest.parts}

    def _refuse_foreign(self) -> None:
        """Raise InputError if a folder without a manifest holds files that are no parts."""
        for path in sorted(self.root.iterdir()):
            if not path.name.startswith(".") and not (_PART.fullmatch(path.name) and holds_part(path)):
                raise InputError(
                    f"cannot write {self.root}: it is a directory that holds other files ({path.name}); name a new or "
                    "empty folder, or a file"
                )


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of a folder; None without one. Raise Damaged if it was changed or is not whole."""
    path = folder / MANIFEST
    manifest = read_record(path, Manifest, _GO_ON)
    if manifest is not None and manifest.sha256 != manifest.true_sha256:
        raise Damaged(f"{path} was changed; {_GO_ON}")
    return manifest


def data_files(path: Path) -> list[Path]:
    """Return the parquet files of a data set in order: a file as it is, or those of a folder.

    Raise InputError if the folder holds none, if it is not complete, or if a file is not as its manifest lists it.
    """
    if not path.is_dir():
        return [path]
    if manifest := read_manifest(path):
        if not manifest.complete:
            raise InputError(f"{path} is not complete; the `sector generate` that began it goes on with it")
        for record in manifest.parts:
            if _sha256(path / record.file) != record.sha256:
                raise InputError(
                    f"{path / record.file} is damaged or missing; the `sector generate` that wrote it makes it again"
                )
        return [path / record.file for record in manifest.parts]
    if not (files := sorted(path.glob("*.parquet"))):
        raise InputError(f"{path} is a folder without parquet files; name a file, or a folder of `sector generate`")
    return files


def read_tables(folder: Path) -> Iterator[pa.Table]:
    """Yield the rows of each part of a folder, in order. Raise InputError as `data_files`."""
    for path in data_files(folder):
        try:
            with path.open("rb") as opened:
                yield pq.read_table(opened).replace_schema_metadata(None)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} is not a readable parquet file ({first_line(error)})") from error


def _sha256(path: Path) -> str:
    """Return the digest of a file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
