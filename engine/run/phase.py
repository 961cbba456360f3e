"""Phase of a run, the supervised phase or a round, with its files and records."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sector.engine.errors import made_again
from sector.engine.files import write_text
from sector.engine.run.records import (
    GenerationRecord,
    PhaseName,
    RemovedRecord,
    StartRecord,
    TrainingRecord,
    dump_file,
    read_record,
)

if TYPE_CHECKING:
    from sector.engine.models.checkpoint import Model

R = TypeVar("R", GenerationRecord, TrainingRecord, StartRecord)


@dataclass(frozen=True, slots=True)
class Phase:
    """Supervised phase of a run, or a round.

    root: path of the run directory.
    digits: digits of the longest problems that it trains on.
    is_round: whether it is a round.
    """

    root: Path
    digits: int
    is_round: bool

    @property
    def name(self) -> PhaseName:
        """Name in metrics.jsonl."""
        return "round" if self.is_round else "sft"

    @property
    def number(self) -> int:
        """Number in random streams, snapshots and events: the digits of a round, 0 for the supervised phase."""
        return self.digits if self.is_round else 0

    @property
    def folder(self) -> Path:
        """Folder of its files."""
        return self.root / "rounds" / (f"{self.digits:02d}" if self.is_round else "supervised")

    @property
    def examples(self) -> Path:
        """File of its examples: accepted ones of a round, labelled ones of the supervised phase."""
        return self.folder / "examples.parquet"

    @property
    def candidates(self) -> Path:
        """File of all candidates of a round."""
        return self.folder / "candidates.parquet"

    @property
    def parts(self) -> Path:
        """Folder of its parts while it generates (`round_parts.py`)."""
        return self.folder / "parts"

    @property
    def checkpoint(self) -> Path:
        """Checkpoint with the weights after it."""
        return self.root / "checkpoints" / f"{self.digits:02d}"

    @property
    def is_trained(self) -> bool:
        """Whether its training is done; its checkpoint may have been removed since (`disk.py`)."""
        return self.checkpoint.is_dir() or self.digits in self.removed.checkpoints

    @property
    def removed(self) -> RemovedRecord:
        """Record of the files that the run has removed."""
        path = self.root / f"{RemovedRecord.name}.json"
        return read_record(path, RemovedRecord, made_again(self.root)) or RemovedRecord()

    def load_checkpoint(self) -> "Model":
        """Load the weights after it."""
        # Imported here: torch comes with it.
        from sector.engine.models.checkpoint import load_checkpoint

        return load_checkpoint(self.checkpoint)

    def record(self, kind: type[GenerationRecord | TrainingRecord | StartRecord]) -> Path:
        """Return the path of a record."""
        return self.folder / f"{kind.name}.json"

    def read(self, kind: type[R]) -> R | None:
        """Read a record; None before it is written. Raise InputError if it is damaged."""
        return read_record(self.record(kind), kind, made_again(self.root))

    def write(self, record: GenerationRecord | TrainingRecord | StartRecord) -> None:
        """Write a record."""
        write_text(self.record(type(record)), dump_file(record))

    @property
    def training(self) -> TrainingRecord:
        """Record of its training, which must be done."""
        record = self.read(TrainingRecord)
        assert record is not None, f"{self.record(TrainingRecord)} is written before it is read"
        return record

    @property
    def failed(self) -> Path:
        """Path of the folders of attempts that were rolled back, up to the attempt's number."""
        return self.root / "failed" / f"{self.digits:02d}-"

    @property
    def num_failed(self) -> int:
        """Count of attempts that were rolled back."""
        return sum(1 for _ in self.root.glob(f"failed/{self.failed.name}*")) if self.is_round else 0

    @property
    def snapshot_key(self) -> str:
        """Key of its snapshots: phase and attempt, so that an attempt never resumes from a failed one."""
        return f"{self.number}.{self.num_failed}" if self.num_failed else str(self.number)

    def roll_back(self) -> None:
        """Move the files of the round to `failed`, atomically, so that the round starts again."""
        self.failed.parent.mkdir(exist_ok=True)
        os.rename(self.folder, f"{self.failed}{self.num_failed + 1}")
