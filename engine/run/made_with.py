"""The settings that a run was made with, kept beside what they made: `config.toml` is there to be read and edited.

    settings.json    the settings as they were when the first file of a phase was made, and their sha256

What was made with other settings is never gone on with in silence, nor described by them.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from sector.engine.config import MAY_CHANGE, RunConfig, flat
from sector.engine.errors import InputError
from sector.engine.files import read_text, write_text

SETTINGS = "settings.json"


class MadeWith(BaseModel):
    """Settings of a run that shape what it writes, and their digest: a record that was edited does not match it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sha256: str
    settings: dict[str, Any]


def digest(settings: dict[str, Any]) -> str:
    """Hex digest of nested settings, whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def keep_settings(root: Path, config: RunConfig) -> None:
    """Record the settings of a run."""
    settings = dict(_shaping(config))
    record = MadeWith(sha256=digest(settings), settings=settings)
    write_text(root / SETTINGS, record.model_dump_json(indent=2) + "\n")


def check_settings(root: Path, config: RunConfig, source: Path) -> None:
    """InputError if a run was made with other settings than these, which stand in `source`, or its record is damaged.

    A run of a release that kept no record has nothing to be compared with. Settings of a later release, which the
    record lacks, have defaults that change nothing within a recipe.
    """
    path = root / SETTINGS
    if not path.exists():
        return
    record = _read(path)
    for key, value in _shaping(config):
        if key in record.settings and value != record.settings[key]:
            raise InputError(
                f"{source} says {key} = {value!r}, but this run was made with {key} = {record.settings[key]!r}; "
                "put it back, or start another run"
            )


def _read(path: Path) -> MadeWith:
    text = read_text(path)
    try:
        record = MadeWith.model_validate_json(text)
    except ValidationError:
        record = None
    if record is None or digest(record.settings) != record.sha256:
        raise InputError(f"{path} is damaged; restore it, or remove it if config.toml is as it was")
    return record


def _shaping(config: RunConfig) -> Iterator[tuple[str, Any]]:
    """Dotted settings that shape what a run writes."""
    return ((key, value) for key, value in flat(config.model_dump(mode="json")) if key not in MAY_CHANGE)
