"""Data set as a folder: parquet files of the parts, and a manifest that lists them.

    part-00000.parquet ...  examples of a fixed range of candidates each (`parts.py`)
    manifest.json           settings, and range, counts, rows and sha256 of every part

The manifest is written before the first part, as incomplete, and again when no part is missing. It names no time and no
host, so the folder has the same bytes after any interruption, and for any number of workers.

The folder may be an address in a store that the workers reach (`locations.py`). A store has no locks and needs none:
two calls with the same settings write the same bytes, and a call with others finds the manifest of the first.
"""

import hashlib
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import ClassVar

from sector.engine.errors import InputError
from sector.engine.files import aside_of
from sector.engine.run.locks import locked
from sector.engine.run.made_with import digest
from sector.engine.run.parts import DatasetSettings, PartRecord, read_part, write_file
from sector.engine.run.records import Damaged, Record, Sha256, dump_file, read_content, read_record
from sector.engine.training.locations import Location, create, exists, listed, opened

MANIFEST = "manifest.json"
_GO_ON = "the `sector generate` that wrote it makes it again"


class Manifest(Record):
    """List of the parts of a data set (`manifest.json`)."""

    name: ClassVar[str] = "manifest"

    sha256: Sha256
    """Digest of the other keys, which reveals damage."""
    complete: bool
    """Whether all parts are there. An incomplete manifest lists none."""
    settings: DatasetSettings
    """Settings that the parts were made with."""
    parts: list[PartRecord]
    """The parts, in order."""

    @classmethod
    def of(cls, settings: DatasetSettings, parts: list[PartRecord]) -> "Manifest":
        """Return the manifest of a whole data set, or of an incomplete one without parts."""
        manifest = cls(sha256="", complete=bool(parts), settings=settings, parts=parts)
        return manifest.model_copy(update={"sha256": manifest.true_sha256})

    @property
    def true_sha256(self) -> str:
        """Digest of the other keys as they are."""
        return digest(self.model_dump(mode="json", exclude={"sha256"}))


class PartFolder:
    """Folder of a data set that is to be made or finished, in a block `with folder.held()`.

    root: path of the folder, or its address.
    settings: settings of the data set.
    parts: records of the parts that are there and whole, by first candidate.
    mended: names of files that were damaged, and are made again.
    """

    def __init__(self, root: Location, settings: DatasetSettings) -> None:
        self.root, self.settings = root, settings
        self.parts: dict[int, PartRecord] = {}
        self.mended: list[str] = []

    def held(self) -> AbstractContextManager[None]:
        """Lock a folder of this machine, as `locks.locked` does."""
        return locked(self.root, "`sector generate`") if isinstance(self.root, Path) else nullcontext()

    def open(self) -> None:
        """Find the parts that are whole. Raise InputError if the folder holds something else than this data set."""
        listed = self._listed()
        for start in self.settings.starts:
            path, record = self.root / self.settings.file_of(start), listed.get(start)
            if record is None or _sha256(path) != record.sha256:
                record = self._read(path)
            if record is not None and record.first == start:
                self.parts[start] = record
            elif exists(path):
                self.mended.append(path.name)

    def missing(self) -> list[int]:
        """List the first candidates of the parts that are missing or damaged."""
        return [start for start in self.settings.starts if start not in self.parts]

    def begin(self) -> None:
        """Write an incomplete manifest, which shows from the first part on that the folder is a data set.

        Raise InputError if another call has begun another data set there since.
        """
        if not isinstance(self.root, Path) and not create(self.root / MANIFEST, self._content([])):
            self._listed()
        self._write([])

    def finish(self) -> None:
        """Write the manifest of the whole data set, and remove the files that killed processes left aside."""
        self._write([self.parts[start] for start in self.settings.starts])
        if not isinstance(self.root, Path):
            return
        for name in ("part-*.parquet", MANIFEST):
            for left in self.root.glob(aside_of(self.root / name, ".*").name):
                left.unlink(missing_ok=True)

    def _write(self, parts: list[PartRecord]) -> None:
        """Write the manifest, unless the file says the same already."""
        path, content = self.root / MANIFEST, self._content(parts)
        if read_content(path, _GO_ON) != content:
            write_file(path, content)

    def _content(self, parts: list[PartRecord]) -> bytes:
        """Return the bytes of a manifest."""
        return dump_file(Manifest.of(self.settings, parts)).encode()

    def _listed(self) -> dict[int, PartRecord]:
        """Return the parts that the manifest lists, by first candidate.

        Raise InputError if the folder is of another data set, or of none.
        """
        try:
            manifest = read_manifest(self.root)
        except Damaged:
            # It is read again where another call may have written since.
            if MANIFEST not in self.mended:
                self.mended.append(MANIFEST)
            manifest = None
        if manifest is None:
            self._check_files()
            return {}
        self.settings.check_same(self.root / MANIFEST, manifest.settings)
        return {record.first: record for record in manifest.parts}

    def _check_files(self) -> None:
        """Raise InputError if a folder without a whole manifest holds files, but no part of this data set."""
        files = [path for path in listed(self.root) if not path.name.startswith(".")]
        parts = [path for path in files if self._read(path)]
        if files and not parts:
            raise InputError(
                f"cannot write {self.root}: it is a directory that holds other files ({files[0].name}); name a new or "
                "empty folder, or a file"
            )

    def _read(self, path: Location) -> PartRecord | None:
        """Return the record of a part; None if it is missing or damaged. Raise InputError for another data set's."""
        if found := read_part(path):
            self.settings.check_same(path, found[0])
        return found[1] if found else None


def is_dataset(path: Location) -> bool:
    """Return whether a path is the folder of a data set."""
    # Unlike a method of Path, this takes names of any length.
    return os.path.isfile(path / MANIFEST) if isinstance(path, Path) else exists(path / MANIFEST)


def read_manifest(folder: Location) -> Manifest | None:
    """Read the manifest of a folder; None without one. Raise Damaged if it was changed or is not whole."""
    path = folder / MANIFEST
    manifest = read_record(path, Manifest, _GO_ON)
    if manifest is not None and manifest.sha256 != manifest.true_sha256:
        raise Damaged(f"{path} was changed; {_GO_ON}")
    return manifest


def part_files(folder: Location) -> list[Location]:
    """Return the parquet files of a data set in order.

    Raise InputError if the folder is none, if it is not complete, or if a file is not as the manifest lists it.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder} has no {MANIFEST}; name a parquet file, or a folder of `sector generate`")
    if not manifest.complete:
        raise InputError(f"{folder} is not complete; the `sector generate` that began it goes on with it")
    for record in manifest.parts:
        if _sha256(folder / record.file) != record.sha256:
            raise InputError(f"{folder / record.file} is damaged or missing; {_GO_ON}")
    return [folder / record.file for record in manifest.parts]


def _sha256(path: Location) -> str:
    """Return the digest of a file; empty if it cannot be read."""
    try:
        with opened(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
