"""Settings as text: TOML files, and `--set` of a command line."""

import tomllib
from collections.abc import Sequence
from pathlib import Path

import tomli_w

from sector.engine.config.run import RunConfig
from sector.engine.config.values import merged
from sector.engine.errors import InputError
from sector.engine.files import read_text


def read_config(path: Path) -> dict[str, object]:
    """Read a TOML file as nested dicts. Raise InputError if it is missing, not text or not TOML."""
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not TOML: {error}") from error
    except RecursionError as error:
        raise InputError(f"{path} cannot be read as TOML: it is nested too deeply") from error


def parse_settings(texts: Sequence[str]) -> dict[str, object]:
    """Parse settings of the form `vllm.max_digits=40` to nested dicts; a value is TOML or a bare word.

    Raise InputError for the first text that has another form. `validated` checks whether the keys exist.
    """
    settings: dict[str, object] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        path = [part.strip() for part in key.split(".")]
        if not equals or not all(part.isidentifier() for part in path):
            raise InputError(f"--set {text!r} is not a setting; write it as vllm.max_digits=40")
        try:
            setting: object = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            setting = value.strip()
        for part in reversed(path[1:]):
            setting = {part: setting}
        settings = merged(settings, {path[0]: setting})
    return settings


def dump_config(config: RunConfig) -> str:
    """Return the resolved config as TOML."""
    return tomli_w.dumps(config.model_dump())
