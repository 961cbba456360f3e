"""Data set as a folder: parquet files of the parts, and a manifest that lists them.

    part-00000.parquet ...  examples of a fixed range of candidates each (`parts.py`)
    manifest.json           settings, and range, counts, rows and sha256 of every part

The manifest is written before the first part, as incomplete, and again when no part is missing. It names no time and no
host, so the folder has the same bytes after any interruption, and for any number of workers.

The folder may be an address in a store that the workers reach (`locations.py`). A store has no locks and needs none:
two calls with the same settings write the same bytes, and a call with others finds the manifest of the first.
"""

import hashlib
import json
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import ClassVar

from sector.engine.errors import InputError
from sector.engine.files import aside_of
from sector.engine.run.locks import locked
from sector.engine.run.made_with import digest
from sector.engine.run.parts import OTHERWISE, DatasetSettings, PartRecord, read_part, write_file
from sector.engine.run.records import Damaged, Record, Sha256, dump_file, parse_record, read_content
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
        """Return the manifest of a data set: complete with its parts, incomplete if `parts` is empty."""
        manifest = cls(sha256="", complete=bool(parts), settings=settings, parts=parts)
        return manifest.model_copy(update={"sha256": digest(manifest.model_dump(mode="json", exclude={"sha256"}))})


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
        # Mend of a part of another data set.
        self._mend = OTHERWISE

    def held(self) -> AbstractContextManager[None]:
        """Lock a folder of this machine, as `locks.locked` does."""
        return locked(self.root, "`sector generate`") if isinstance(self.root, Path) else nullcontext()

    def open(self) -> None:
        """Find the parts that are whole. Raise InputError if the folder holds something else than this data set."""
        names = [self.settings.file_of(start) for start in self.settings.starts]
        for name in (MANIFEST, *names):
            _check_file(self.root / name)
        records = self._listed()
        self._check_strays(names)
        for start, name in zip(self.settings.starts, names, strict=True):
            path, record = self.root / name, records.get(start)
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
        """Write the manifest of the whole data set, and remove the files that killed processes left aside.

        Raise InputError if a part is gone, as when the folder was moved meanwhile.
        """
        if isinstance(self.root, Path):
            for record in self.parts.values():
                if not (self.root / record.file).exists():
                    raise InputError(
                        f"{self.root / record.file} was removed meanwhile; the same command makes it again"
                    )
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
        self.settings.check_same(self.root / MANIFEST, manifest.settings, OTHERWISE)
        # The folder has these settings, so its files stay, but for the one that came from elsewhere.
        self._mend = "remove it, and the same command makes it again"
        return {record.first: record for record in manifest.parts}

    def _check_files(self) -> None:
        """Raise InputError if a folder without a whole manifest holds files, but no part of this data set."""
        files = [path for path in listed(self.root) if not path.name.startswith(".") and not _is_cut_to_nothing(path)]
        # Other files are not read: they may be of any size.
        parts = [path for path in files if _is_part_name(path.name) and self._read(path)]
        if files and not parts:
            raise InputError(
                f"cannot write {self.root}: it is a directory that holds other files ({files[0].name}) and no "
                "whole part; remove them if `sector generate` wrote them, or name a new or empty folder, or a file"
            )

    def _check_strays(self, names: list[str]) -> None:
        """Raise InputError for a part under another name, whose rows other libraries would read with the folder.

        names: names of the parts.
        """
        own = set(names)
        for path in listed(self.root):
            if _is_part_name(path.name) and path.name not in own:
                raise InputError(
                    f"{path} is no part of this data set, but other libraries would read its rows with the folder; "
                    "remove it, and the same command goes on"
                )

    def _read(self, path: Location) -> PartRecord | None:
        """Return the record of a part; None if it is missing or damaged. Raise InputError for another data set's."""
        if found := read_part(path):
            self.settings.check_same(path, found[0], self._mend)
        return found[1] if found else None


def is_dataset(path: Location) -> bool:
    """Return whether a path is the folder of a data set."""
    # Unlike a method of Path, this takes names of any length.
    return os.path.isfile(path / MANIFEST) if isinstance(path, Path) else exists(path / MANIFEST)


def read_manifest(folder: Location) -> Manifest | None:
    """Read the manifest of a folder; None without one. Raise Damaged if it was changed or is not whole."""
    path = folder / MANIFEST
    content = read_content(path, _GO_ON)
    if content is None:
        return None
    # First of all, since a garbled key looks like one of a later release.
    if not _is_unchanged(content):
        raise Damaged(f"{path} was changed; {_GO_ON}")
    return parse_record(content, Manifest, str(path), _GO_ON)


def _is_unchanged(content: bytes) -> bool:
    """Return whether a manifest has the digest that it names."""
    try:
        values = json.loads(content)
        return digest({key: values[key] for key in values if key != "sha256"}) == values["sha256"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return False


def part_files(folder: Location) -> list[Location]:
    """Return the parquet files of a data set in order.

    Raise InputError if the folder is none, if it is not complete, or if a file is not as the manifest lists it.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder} has no {MANIFEST}; name a parquet file, or a folder of `sector generate`")
    if not manifest.complete:
        raise InputError(
            f"{folder} is not complete; wait for the `sector generate` that makes it, or start the same command again"
        )
    for record in manifest.parts:
        if _sha256(folder / record.file) != record.sha256:
            raise InputError(f"{folder / record.file} is damaged or missing; {_GO_ON}")
    return [folder / record.file for record in manifest.parts]


def _check_file(path: Location) -> None:
    """Raise InputError if there is something else than a file in its place."""
    if isinstance(path, Path) and path.exists() and not path.is_file():
        raise InputError(f"{path} is a folder, a device or a pipe, not a file; remove it, and the same command goes on")


def _is_part_name(name: str) -> bool:
    """Return whether a file has the name of a part, of any data set."""
    return name.startswith("part-") and name.endswith(".parquet")


def _is_cut_to_nothing(path: Location) -> bool:
    """Return whether a file of a data set is empty, as a power failure may leave it."""
    named = path.name == MANIFEST or _is_part_name(path.name)
    return named and isinstance(path, Path) and path.stat().st_size == 0


def _sha256(path: Location) -> str:
    """Return the digest of a file; empty if it cannot be read."""
    try:
        with opened(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
