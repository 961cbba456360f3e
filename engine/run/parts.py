"""Part of a data set: one parquet file of the examples of a fixed range of candidates, which describes itself.

The metadata of the file holds the settings, the counts and a digest of the whole file. So a part shows by itself
whether it is whole, and the manifest of the folder can be made again from the parts.
"""

import hashlib
import io
import os
import socket
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, JsonValue

from sector.engine.config import flat
from sector.engine.errors import InputError
from sector.engine.policy.generate import Assignment, generate
from sector.engine.run.records import Count, Damaged, Digits, Fates, R, Record, Sha256, Share, parse_record
from sector.engine.samplers.protocol import Sampler
from sector.engine.training.dataset import Provenance, improved_table
from sector.engine.training.locations import Location, read_bytes, write_bytes

# Keys of the metadata of a part.
_LABEL, _SHA256 = b"sector.part", b"sector.sha256"
OTHERWISE = "give the settings of that data set to go on with it, or choose another --out"
# Stands in the place of the digest while it is computed.
_BLANK = b"?" * 64


class DatasetSettings(Record):
    """Settings that the files of a data set depend on; a folder has one set of them."""

    name: ClassVar[str] = "settings"

    task: str
    """Name of the task."""
    task_sha256: Sha256 | None
    """Digest of the file of a task from outside of this package; None for another task."""
    code_sha256: dict[str, Sha256]
    """Digests of the files of such an engine and such checks, by kind and name."""
    digits: Digits
    """Digits per operand."""
    count: Annotated[Count, Field(ge=1)]
    """Candidates of the whole data set."""
    seed: Count
    """Seed of the problems and of sampling."""
    engine: str
    """Name of the engine."""
    dtype: str | None
    """Number type of the engine vllm; None for another engine."""
    weights_sha256: Sha256
    """Digest of the weights that generate."""
    hard_share: Share
    """Share of problems harder than uniform digits."""
    filter: dict[str, JsonValue]
    """Settings of the filter, by name."""
    part_rows: Annotated[Count, Field(ge=1)]
    """Candidates of a part; the last part may have fewer."""
    compression: str
    """Compression of the parquet files."""

    @property
    def starts(self) -> range:
        """First candidates of the parts."""
        return range(0, self.count, self.part_rows)

    def file_of(self, start: int) -> str:
        """Return the name of the file of a part by its first candidate. Names sort in the order of the parts."""
        width = max(5, len(str(len(self.starts) - 1)))
        return f"part-{start // self.part_rows:0{width}d}.parquet"

    def check_same(self, path: Location, found: "DatasetSettings", mend: str) -> None:
        """Raise InputError naming the first setting in which a file was made otherwise, and the mend."""
        old, new = dict(flat(found.as_json())), dict(flat(self.as_json()))
        for key in [*new, *old]:
            if old.get(key) != new.get(key):
                raise InputError(f"{path} was made with {key} = {old.get(key)!r}, not {new.get(key)!r}; {mend}")


class PartRecord(Fates):
    """A part in the manifest."""

    file: str
    """Name of the file in the folder."""
    first: Count
    """Index of its first candidate."""
    rows: Count
    """Rows of the file; an accepted candidate has one or more."""
    sha256: Sha256
    """Digest of the file."""


class _Label(Record):
    """Metadata of a part."""

    settings: DatasetSettings
    """Settings of the data set."""
    first: Count
    """Index of the first candidate."""
    fates: Fates
    """Counts of its candidates."""


@dataclass(frozen=True, slots=True)
class PartMaker:
    """Function that makes a part of a data set and writes it; workers receive it by value.

    folder: folder, or address in a store, that the driver and the workers share.
    settings: settings of the data set.
    """

    folder: Location
    settings: DatasetSettings

    def __call__(self, sampler: Sampler, assignment: Assignment, start: int) -> PartRecord:
        """Generate the part that begins with a candidate, write its file, and return its record."""
        settings = self.settings
        provenance = Provenance(settings.digits, settings.seed, settings.engine, settings.weights_sha256)
        fates, tables = [], []
        for rows, block in generate(sampler, assignment.until(start + settings.part_rows), start):
            fates.append(Fates.of(block))
            tables.append(improved_table(block, rows, assignment.layout, provenance))
        table, label = pa.concat_tables(tables), _Label(settings=settings, first=start, fates=Fates.sum(fates))
        content = encoded(table, label, settings.compression)
        path = self.folder / settings.file_of(start)
        write_file(path, content)
        return record_of(path, start, label.fates, table.num_rows, content)


def write_file(path: Location, content: bytes) -> None:
    """Write a file of a data set atomically. Raise InputError if the system refuses, as when the disk is full."""
    try:
        # A worker that a killed driver left behind may still write the same part, so the name aside is of this process.
        write_bytes(path, content, f".{socket.gethostname()}-{os.getpid()}")
    except InputError as error:
        raise InputError(f"{error}; finished parts are kept, and the same command goes on") from error


def read_part(path: Location) -> tuple[DatasetSettings, PartRecord] | None:
    """Return the settings of the data set and the record of a part; None if it is missing, damaged, or no part.

    Raise InputError if a later release wrote it.
    """
    if (found := _read_whole(path, _Label)) is None:
        return None
    label, content, rows = found
    return label.settings, record_of(path, label.first, label.fates, rows, content)


def read_label(path: Location, kind: type[R]) -> R | None:
    """Return the label of a file that `encoded` made; None if it is missing, damaged, or has no such label.

    Raise InputError if a later release wrote it.
    """
    found = _read_whole(path, kind)
    return found[0] if found else None


def _read_whole(path: Location, kind: type[R]) -> tuple[R, bytes, int] | None:
    """Return the label, the content and the count of rows of a file; None as `read_label`."""
    try:
        content = read_bytes(path)
        file = pq.read_metadata(io.BytesIO(content))
        metadata = file.metadata or {}
        if not _is_whole(content, metadata.get(_SHA256)):
            return None
        return parse_record(metadata.get(_LABEL, b""), kind, str(path), "remove it"), content, file.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError, Damaged):
        return None


def record_of(path: Location, first: int, fates: Fates, rows: int, content: bytes) -> PartRecord:
    """Return the record of a part.

    path: its file.
    first: index of its first candidate.
    fates: counts of its candidates.
    rows: rows of the file.
    content: bytes of the file.
    """
    sha256 = hashlib.sha256(content).hexdigest()
    return PartRecord(**dict(fates), file=path.name, first=first, rows=rows, sha256=sha256)


def encoded(table: pa.Table, label: Record, compression: str) -> bytes:
    """Return the bytes of a parquet file of a table, with the label in its metadata.

    They depend on the arguments and the release of pyarrow alone.
    """
    file = io.BytesIO()
    with pq.ParquetWriter(file, table.schema, compression=compression) as writer:
        # One chunk, since blocks that are solved together come as one.
        writer.write_table(table.combine_chunks())
        writer.add_key_value_metadata({_LABEL: label.model_dump_json(), _SHA256: _BLANK})
    # The metadata is behind the rows.
    head, _, tail = file.getvalue().rpartition(_BLANK)
    return head + _digest(head, tail) + tail


def _is_whole(content: bytes, digest: bytes | None) -> bool:
    """Return whether a part has the digest that its metadata names."""
    if not digest:
        return False
    head, _, tail = content.rpartition(digest)
    return _digest(head, tail) == digest


def _digest(head: bytes, tail: bytes) -> bytes:
    """Return the digest of a part from the bytes before and after the digest."""
    return hashlib.sha256(head + _BLANK + tail).hexdigest().encode()
