"""Record of the settings that the files of a run were made with, since users may edit `config.toml`.

    settings.json    settings at the time of the first file of a phase, and their sha256

A run whose settings differ from its record is refused.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from sector.engine.config import CHECK_DOOR, ENGINE_DOOR, MAY_CHANGE, RunConfig, Values, flat
from sector.engine.errors import InputError
from sector.engine.files import read_text, write_text
from sector.engine.tasks import TASK_DOOR

SETTINGS = "settings.json"


class MadeWith(BaseModel):
    """Settings that shape the files of a run, with a digest that reveals edits.

    sha256: digest of the settings, and of `task_sha256` and `code_sha256` if there are any.
    settings: settings by dotted key.
    task_sha256: digest of the file of a task from outside of this package.
    code_sha256: digests of the files of such an engine and such checks, by kind and name, as in `check residues`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sha256: str
    settings: dict[str, object]
    task_sha256: str | None = None
    code_sha256: dict[str, str] | None = None

    @property
    def true_sha256(self) -> str:
        """Digest of the record as it is."""
        return digest(self.settings | self.digests)

    @property
    def digests(self) -> dict[str, object]:
        """Digests of code from outside of this package; empty if there is none."""
        digests = {"task_sha256": self.task_sha256, "code_sha256": self.code_sha256}
        return {key: value for key, value in digests.items() if value}


def digest(settings: Values) -> str:
    """Return the hex sha256 of nested settings, independent of their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def keep_settings(root: Path, config: RunConfig) -> None:
    """Record the settings of a run."""
    settings = dict(_shaping(config))
    record = MadeWith(
        sha256="",
        settings=settings,
        task_sha256=task_sha256(config.task),
        code_sha256=code_sha256(config.engine, config.filter.checks),
    )
    record = record.model_copy(update={"sha256": record.true_sha256})
    text = record.model_dump_json(indent=2, include={"sha256", "settings", *record.digests})
    write_text(root / SETTINGS, text + "\n")


def check_settings(root: Path, config: RunConfig, source: Path) -> None:
    """Raise InputError if a run was made with other settings than `config`, or its record is damaged.

    source: file of the settings, for the message.
    Early releases wrote no record; their runs pass. Settings that the record lacks are of a later release, and their
    defaults change nothing within a recipe. Code of an engine or a check that is not loaded is not compared; a run is
    resumed with loaded code only.
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
    if record.task_sha256 != task_sha256(config.task):
        raise InputError(
            f"{root} was made with other code of the task {config.task}; put that file back, or start another run"
        )
    for code, sha256 in code_sha256(config.engine, config.filter.checks).items():
        if sha256 != (record.code_sha256 or {}).get(code):
            raise InputError(f"{root} was made with other code of the {code}; put that file back, or start another run")


def task_sha256(name: str) -> str | None:
    """Return the digest of the file of a task; None for a task of this package."""
    origin = TASK_DOOR.origin_of(name)
    return origin.sha256 if origin else None


def code_sha256(engine: str, checks: Sequence[str]) -> dict[str, str]:
    """Return the digests of the files of an engine and checks from outside, if they are loaded, by kind and name."""
    doors = [(ENGINE_DOOR, engine), *((CHECK_DOOR, name) for name in checks)]
    origins = {f"{door.kind} {name}": door.origin_of(name) for door, name in doors}
    return {name: origin.sha256 for name, origin in origins.items() if origin}


def _read(path: Path) -> MadeWith:
    """Read a record. Raise InputError if it is damaged."""
    text = read_text(path)
    try:
        record = MadeWith.model_validate_json(text)
    except ValidationError:
        record = None
    if record is None or record.true_sha256 != record.sha256:
        raise InputError(f"{path} is damaged; restore it, or remove it if config.toml is as it was")
    return record


def _shaping(config: RunConfig) -> Iterator[tuple[str, object]]:
    """Yield the settings that shape the files of a run, as pairs of dotted key and value."""
    return ((key, value) for key, value in flat(config.model_dump(mode="json")) if key not in MAY_CHANGE)
