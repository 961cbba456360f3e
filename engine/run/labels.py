"""Result of `sector generate`: examples that the filter accepted, in memory or in a folder of parts."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sector.engine.errors import InputError
from sector.engine.run.part_folder import part_files
from sector.engine.run.records import Count, GenerationRecord, Record
from sector.engine.training.columns import read_table
from sector.engine.training.locations import Location


class ThisCall(Record):
    """Work of one call on a data set."""

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


@dataclass(frozen=True, slots=True)
class Labels:
    """Examples that the filter accepted, and how many problems were tried.

    rows: the examples; None if they are in a folder, and not in memory.
    digits: digits of the problems.
    counts: candidates by fate, tokens, seconds, engine and weights. For a folder they are those of the whole data set,
        except for the seconds, which are those of this call.
    file: file or folder of the examples; None if none was written.
    num_parts: count of the files of a folder; 0 for a file.
    this_call: work of this call on a folder; None for a file.
    """

    rows: pa.Table | None
    digits: int
    counts: GenerationRecord
    file: Location | None
    num_parts: int = 0
    this_call: ThisCall | None = None

    @property
    def table(self) -> pa.Table:
        """The examples; the columns are those of `dataset.SCHEMA`. A folder is read into memory as a whole."""
        if self.rows is not None:
            return self.rows
        assert self.file is not None, "examples that are not in memory are in a folder"
        return pa.concat_tables([read_table(path) for path in part_files(self.file)])

    @property
    def work(self) -> ThisCall | GenerationRecord:
        """Counts of the work of this call."""
        return self.this_call or self.counts

    @property
    def tokens_per_s(self) -> float:
        """Tokens that this call generated per second."""
        return self.work.tokens / self.counts.seconds

    @property
    def accepted_per_s(self) -> float:
        """Candidates that this call accepted per second."""
        return self.work.accepted / self.counts.seconds

    def to_dataset(self) -> Any:
        """Return the examples as a Dataset of the library `datasets`. Raise InputError if it is not installed."""
        try:
            from datasets import Dataset
        except ImportError as error:
            raise InputError("a Dataset needs the package datasets: pip install datasets") from error
        return Dataset(self.table)

    def as_json(self) -> dict[str, object]:
        """Return counts, tokens and speeds as the object that `sector generate --json` prints."""
        record = {
            "digits": self.digits,
            **self.counts.as_json(),
            "tokens_per_s": self.tokens_per_s,
            "accepted_per_s": self.accepted_per_s,
            "file": None if self.file is None else str(self.file),
        }
        return record | ({"parts": self.num_parts, "this_call": self.this_call.as_json()} if self.this_call else {})
