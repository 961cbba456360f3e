"""Part of a data set: one parquet file of the examples of a fixed range of candidates, which describes itself.

The metadata of the file holds the settings, the counts and a digest of both and of the rows. So a part shows by itself
whether it is whole, and the manifest of the folder can be made again from the parts.
"""

import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError, model_validator

from sector.engine.errors import InputError
from sector.engine.files import write_atomically
from sector.engine.language.rows import cat
from sector.engine.policy.generate import Assignment, generate
from sector.engine.policy.improve import Improved
from sector.engine.run.records import Count, Digits, GenerationRecord, Reason, Record, Sha256, Share, check_fates
from sector.engine.samplers.protocol import Sampler
from sector.engine.training.dataset import Provenance, improved_table

# Key of the metadata of a part.
_KEY = b"sector.part"


class SetSettings(Record):
    """Settings that the rows of a data set depend on; a folder has one set of them."""

    name: ClassVar[str] = "settings"

    task: str
    """Name of the task."""
    task_sha256: Sha256 | None = None
    """Digest of the file of a task from outside of this package; None for another task."""
    digits: Digits
    """Digits per operand."""
    count: Annotated[Count, Field(ge=1)]
    """Candidates of the whole data set."""
    seed: Count
    """Seed of the problems and of sampling."""
    engine: str
    """Name of the engine."""
    weights_sha256: Sha256
    """Digest of the weights that generate."""
    hard_share: Share
    """Share of problems harder than uniform digits."""
    filter: dict[str, Any]
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


class Fates(Record):
    """Counts of tried candidates."""

    tried: Count
    """Candidates that the improved policy tried."""
    accepted: Count
    """Candidates that passed the filter."""
    thought_through: Count
    """Accepted candidates that were solved to the end."""
    rejected: dict[Reason, Count]
    """Candidates that failed, by the check that failed first."""
    tokens: Count
    """Tokens generated."""

    @classmethod
    def sum(cls, parts: Iterable["Fates"]) -> "Fates":
        """Return the counts of several parts together."""
        tried = accepted = thought_through = tokens = 0
        rejected: dict[str, int] = {}
        for part in parts:
            tried, accepted, tokens = tried + part.tried, accepted + part.accepted, tokens + part.tokens
            thought_through += part.thought_through
            for reason, count in part.rejected.items():
                rejected[reason] = rejected.get(reason, 0) + count
        return cls(tried=tried, accepted=accepted, thought_through=thought_through, rejected=rejected, tokens=tokens)

    def generation(self, seconds: float, settings: SetSettings) -> GenerationRecord:
        """Return the record of a generation with these counts."""
        return GenerationRecord(
            **self.model_dump(include=set(Fates.model_fields)),
            agreement=(self.accepted - self.thought_through) / self.tried,
            seconds=seconds,
            engine=settings.engine,
            weights_sha256=settings.weights_sha256,
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_fates(self.tried, self.accepted, self.thought_through, self.rejected)
        return self


class PartRecord(Fates):
    """A part in the manifest."""

    name: ClassVar[str] = "part"

    file: str
    """Name of the file in the folder."""
    first: Count
    """Index of its first candidate."""
    rows: Count
    """Rows of the file; an accepted candidate has one or more."""
    sha256: Sha256
    """Digest of the file."""


class ThisCall(Record):
    """Work of one call on a data set."""

    name: ClassVar[str] = "this_call"

    parts: Count
    """Parts that were made."""
    tried: Count
    """Candidates of these parts."""
    accepted: Count
    """Accepted candidates of these parts."""
    tokens: Count
    """Tokens generated for these parts."""
    mended: list[str]
    """Names of files that were damaged, and were made again."""


class _Label(Record):
    """Metadata of a part."""

    settings: SetSettings
    """Settings of the data set."""
    first: Count
    """Index of the first candidate."""
    fates: Fates
    """Counts of its candidates."""
    sha256: Sha256
    """Digest of the rows and of the other keys."""


@dataclass(frozen=True, slots=True)
class PartMaker:
    """Function that makes a part of a data set and writes it; workers receive it by value.

    folder: folder that the driver and the workers share.
    settings: settings of the data set.
    """

    folder: Path
    settings: SetSettings

    def __call__(self, sampler: Sampler, assignment: Assignment, start: int) -> PartRecord:
        """Generate the part that begins with a candidate, write its file, and return its record."""
        settings = self.settings
        provenance = Provenance(settings.digits, settings.seed, settings.engine, settings.weights_sha256)
        blocks, tables = [], []
        for rows, block in generate(sampler, assignment.until(start + settings.part_rows), start):
            blocks.append(block)
            tables.append(improved_table(block, rows, assignment.layout, provenance))
        return write_part(self.folder, settings, start, _fates(cat(blocks)), pa.concat_tables(tables))


def write_part(folder: Path, settings: SetSettings, start: int, fates: Fates, table: pa.Table) -> PartRecord:
    """Write a part atomically, and return its record. Raise InputError if the system refuses."""
    content = _encoded(table, settings, start, fates)
    file = settings.file_of(start)
    write_file(folder / file, content)
    return PartRecord(
        **fates.model_dump(), file=file, first=start, rows=table.num_rows, sha256=hashlib.sha256(content).hexdigest()
    )


def write_file(path: Path, content: bytes) -> None:
    """Write a file of a data set atomically. Raise InputError if the system refuses, as when the disk is full."""
    try:
        write_atomically(path, lambda aside: aside.write_bytes(content))
    except InputError as error:
        raise InputError(f"{error}; finished parts are kept, and the same command goes on") from error


def read_part(folder: Path, settings: SetSettings, start: int) -> PartRecord | None:
    """Return the record of a part that is on disk and whole; None if it is missing or damaged.

    A part whose rows are whole but whose file has other bytes than `write_part` gives it is written again.

    Raise InputError if the part is of another data set.
    """
    path = folder / settings.file_of(start)
    label, table = _read(path)
    if label is None or table is None:
        return None
    refuse_others(path, label.settings, settings)
    if label.first != start or label.sha256 != _seal(table, label.settings, start, label.fates):
        return None
    content = _encoded(table, settings, start, label.fates)
    if path.read_bytes() == content:
        sha256 = hashlib.sha256(content).hexdigest()
        return PartRecord(**label.fates.model_dump(), file=path.name, first=start, rows=table.num_rows, sha256=sha256)
    return write_part(folder, settings, start, label.fates, table)


def refuse_others(path: Path, found: SetSettings, wanted: SetSettings) -> None:
    """Raise InputError naming the first setting in which a file was made otherwise."""
    old, new = found.as_json(), wanted.as_json()
    for key in new:
        if old[key] != new[key]:
            raise InputError(
                f"{path} was made with {key} = {old[key]!r}, not {new[key]!r}; give the settings of that data set to "
                "go on with it, or choose another --out"
            )


def holds_part(path: Path) -> bool:
    """Return whether a file is a part of a data set, by its metadata."""
    return _read(path)[0] is not None


def _read(path: Path) -> tuple[_Label | None, pa.Table | None]:
    """Read metadata and rows of a part; None for both if it is missing, or if it is not a whole parquet file."""
    try:
        with path.open("rb") as opened, pq.ParquetFile(opened, page_checksum_verification=True) as file:
            metadata = (file.schema_arrow.metadata or {}).get(_KEY, b"")
            return _Label.model_validate_json(metadata), file.read()
    except (pa.ArrowException, OSError, ValidationError, UnicodeDecodeError):
        return None, None


def _encoded(table: pa.Table, settings: SetSettings, start: int, fates: Fates) -> bytes:
    """Return the bytes of the file of a part; they depend on its arguments and the release of pyarrow alone."""
    label = _Label(settings=settings, first=start, fates=fates, sha256=_seal(table, settings, start, fates))
    content = io.BytesIO()
    pq.write_table(
        table.combine_chunks().replace_schema_metadata({_KEY: label.model_dump_json().encode()}),
        content,
        compression=settings.compression,
        write_page_checksum=True,
    )
    return content.getvalue()


def _seal(table: pa.Table, settings: SetSettings, start: int, fates: Fates) -> str:
    """Return the digest of the rows and the record of a part."""
    described = [settings.as_json(), start, fates.as_json(), table.to_pylist()]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _fates(improved: Improved) -> Fates:
    """Return the counts of tried candidates."""
    return Fates(
        tried=len(improved.problems),
        accepted=int(improved.accepted.sum()),
        thought_through=improved.num_thought_through,
        rejected=improved.rejected(),
        tokens=improved.tokens,
    )
