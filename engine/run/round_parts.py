"""Parts of a round while it generates: what a kill leaves is kept, and the rest is generated when the run goes on.

    rounds/07/parts/0000000250.candidates.parquet  candidates of consecutive blocks, with the entropy of their guesses
    rounds/07/parts/0000000250.examples.parquet    examples of those that were accepted

Both files of a part carry its label and a digest (`parts.py`), so they show by themselves whether they are whole. At
the end of the generation the parts are joined to the files of the round, which have the same bytes as without a kill.
"""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sector.engine.files import write_atomically
from sector.engine.policy.ballot import entropies
from sector.engine.policy.generate import BLOCK, Assignment, generate_blocks
from sector.engine.run.parts import encoded, read_label
from sector.engine.run.records import Count, Fates, GenerationRecord, Record, Seconds, Sha256
from sector.engine.samplers.protocol import Sampler
from sector.engine.training.dataset import CANDIDATES, SCHEMA, Provenance, candidates_table, improved_table

_ENTROPY = "vote_entropy"
_EXAMPLES, _CANDIDATES = "examples", "candidates"


class PartOrigin(Record):
    """Origin of the examples of a part."""

    seed: Count
    """Seed of the attempt at the round."""
    engine: str
    """Name of the engine."""
    weights_sha256: Sha256
    """Digest of the weights that generated."""

    @classmethod
    def of(cls, provenance: Provenance) -> "PartOrigin":
        """Return the origin of rows with a provenance."""
        return cls(seed=provenance.seed, engine=provenance.engine, weights_sha256=provenance.weights_sha256)


class Label(Record):
    """Metadata of both files of a part."""

    first: Count
    """Index of the first candidate."""
    fates: Fates
    """Counts of the candidates."""
    decided: Count
    """Candidates with a decided vote."""
    examples_each: Count
    """Examples of each accepted candidate."""
    seconds: Seconds
    """Seconds that the part took."""
    origin: PartOrigin
    """Origin of the examples."""

    @property
    def end(self) -> int:
        """Index of the first candidate after the part."""
        return self.first + self.fates.tried


@dataclass(frozen=True, slots=True)
class Part:
    """A part as the process that made it returns it.

    label: its label.
    files: content of its files, by kind.
    """

    label: Label
    files: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class RoundPartMaker:
    """Function that makes a part of a round; workers receive it by value.

    provenance: origin of the examples.
    blocks: blocks of a part at most.
    held: first candidates of the parts that exist; a new part ends before the next of them.
    """

    provenance: Provenance
    blocks: int
    held: tuple[int, ...]

    def __call__(self, sampler: Sampler, assignment: Assignment, start: int) -> Part:
        """Generate the part that begins with a candidate."""
        began = time.perf_counter()
        rows, block = generate_blocks(sampler, start, assignment.until(self.end(start)), self.blocks)
        label = Label(
            first=start,
            fates=Fates.of(block),
            decided=block.num_decided,
            examples_each=len(block.examples_by_step()),
            seconds=time.perf_counter() - began,
            origin=PartOrigin.of(self.provenance),
        )
        spread = pa.array(entropies(block.ballot.guesses, block.ballot.valid).tolist(), pa.float64())
        tables = {
            _EXAMPLES: improved_table(block, rows, assignment.layout, self.provenance),
            _CANDIDATES: candidates_table(block).append_column(_ENTROPY, spread),
        }
        return Part(label, {kind: encoded(table, label, "snappy") for kind, table in tables.items()})

    def end(self, start: int) -> int:
        """Return the candidate before which the part from `start` on ends."""
        return min([start + self.blocks * BLOCK, *(first for first in self.held if first > start)])

    def starts(self, ends: dict[int, int], count: int) -> Iterator[int]:
        """Yield the first candidate of each part that is missing of `count` candidates.

        ends: as `RoundParts.ends`.
        """
        start = 0
        while start < count:
            if start not in ends:
                yield start
            start = ends.get(start, self.end(start))


@dataclass(slots=True)
class RoundParts:
    """Parts of a round on disk.

    folder: their folder.
    provenance: origin of the examples; parts of another origin do not count.
    labels: labels of the whole parts, by first candidate.
    """

    folder: Path
    provenance: Provenance
    labels: dict[int, Label] = field(default_factory=dict)

    def open(self) -> None:
        """Find the whole parts that an interrupted generation left."""
        for path in sorted(self.folder.glob(f"*.{_EXAMPLES}.parquet")):
            label = read_label(path, Label)
            if label and label.origin == PartOrigin.of(self.provenance):
                twin = self._path(label.first, _CANDIDATES)
                if path == self._path(label.first, _EXAMPLES) and read_label(twin, Label) == label:
                    self.labels[label.first] = label

    def maker(self, blocks: int) -> RoundPartMaker:
        """Return the function that makes the missing parts, of `blocks` blocks at most."""
        return RoundPartMaker(self.provenance, blocks, tuple(sorted(self.labels)))

    @property
    def ends(self) -> dict[int, int]:
        """For each part, the candidate behind its last one, by its first candidate."""
        return {first: label.end for first, label in self.labels.items()}

    @property
    def fates(self) -> Fates:
        """Counts of all candidates so far."""
        return Fates.sum(label.fates for label in self.labels.values())

    @property
    def seconds(self) -> float:
        """Seconds that the parts took, added up."""
        return sum(label.seconds for label in self.labels.values())

    def add(self, part: Part) -> None:
        """Write the files of a part."""
        for kind, content in part.files.items():
            write_atomically(self._path(part.label.first, kind), partial(Path.write_bytes, data=content))
        self.labels[part.label.first] = part.label

    def examples(self) -> pa.Table:
        """Return the examples of all parts in the order of one batch: first steps of all chains, then second ones."""
        parts = self._read(_EXAMPLES)
        each = max(label.examples_each for label in self.labels.values())
        steps = []
        for step in range(each):
            rows = [part.slice(step * (part.num_rows // each), part.num_rows // each) for part in parts]
            steps.append(_joined(rows, SCHEMA))
        return pa.concat_tables(steps)

    def candidates(self) -> pa.Table:
        """Return all candidates."""
        return _joined([part.select(CANDIDATES.names) for part in self._read(_CANDIDATES)], CANDIDATES)

    def generation(self, seconds: float) -> GenerationRecord:
        """Return the record of the generation."""
        fates, decided = self.fates, sum(label.decided for label in self.labels.values())
        spread = pa.concat_tables(part.select([_ENTROPY]) for part in self._read(_CANDIDATES))
        return fates.generation(
            seconds,
            self.provenance.engine,
            self.provenance.weights_sha256,
            # One mean over all, since a mean of means would differ in its last bits.
            vote_entropy=torch.tensor(spread[_ENTROPY].to_pylist(), dtype=torch.float64).mean().item(),
            disagreement=1 - fates.agreed / decided if decided else None,
        )

    def remove(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, kind: str) -> list[pa.Table]:
        """Read the files of a kind, in the order of the candidates."""
        # Python opens the files, since pyarrow opens no name that is not UTF-8.
        tables = []
        for first in sorted(self.labels):
            with self._path(first, kind).open("rb") as file:
                tables.append(pq.read_table(file))
        return tables

    def _path(self, first: int, kind: str) -> Path:
        return self.folder / f"{first:010d}.{kind}.parquet"


def _joined(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    """Join tables as one chunk, since the bytes of a file depend on its chunks."""
    return pa.concat_tables([table.cast(schema) for table in tables]).combine_chunks()
