"""Facts of a report on a data set in parts: its counts and settings, and its first rows as they are on disk."""

import json
from dataclasses import dataclass

from sector.engine.config import flat
from sector.engine.run.part_folder import part_files, read_manifest
from sector.engine.run.parts import DatasetSettings
from sector.engine.run.records import Fates
from sector.engine.training.columns import read_table
from sector.engine.training.locations import Location

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """Facts of a data set.

    root: its folder.
    settings: settings that it was made with.
    fates: counts of its candidates.
    parts: count of its parts.
    rows: count of its rows.
    shown: the first rows of the first part.
    """

    root: Location
    settings: DatasetSettings
    fates: Fates
    parts: int
    rows: int
    shown: list[dict[str, object]]

    @property
    def share(self) -> float:
        """Share of the candidates that were accepted."""
        return self.fates.accepted / self.fates.tried

    @property
    def verdicts(self) -> dict[str, int]:
        """Candidates by verdict."""
        at_once = self.fates.accepted - self.fates.thought_through
        return {"accepted at once": at_once, "thought_through": self.fates.thought_through, **self.fates.rejected}

    @property
    def flat_settings(self) -> dict[str, str]:
        """Settings by dotted key, as in JSON."""
        return {key: json.dumps(value) for key, value in flat(self.settings.as_json())}

    def as_json(self) -> dict[str, object]:
        """Return the facts, except for the rows, as a JSON object."""
        record = {"dataset": str(self.root), "parts": self.parts, "rows": self.rows}
        return {**record, **self.fates.as_json(), "settings": self.settings.as_json()}


def read_dataset(root: Location) -> DatasetFacts:
    """Read the facts of a data set. Raise InputError if it is incomplete or damaged."""
    files, manifest = part_files(root), read_manifest(root)
    assert manifest is not None, "part_files has read it"
    rows = sum(part.rows for part in manifest.parts)
    shown = read_table(files[0]).slice(0, _SHOWN).to_pylist()
    return DatasetFacts(root, manifest.settings, Fates.sum(manifest.parts), len(files), rows, shown)
