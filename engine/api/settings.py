"""Settings in the words of the command line: keywords, texts of --set, config files, names of filters, lengths.

This module imports no torch, so that bad settings are refused at once.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sector.engine.config import (
    CHECK_DOOR,
    ENGINE_DOOR,
    FILTERS,
    MOST,
    Filter,
    RunConfig,
    Values,
    merged,
    parse_settings,
    read_config,
    validated,
)
from sector.engine.errors import InputError
from sector.engine.tasks import TASK_DOOR

DEFAULTS = RunConfig()
# Seeds are recorded as signed 64-bit numbers.
MAX_SEED = 2**63 - 1
# Upper end of a range of lengths; none is that long.
_MAX_LENGTH = 1000


def chosen_settings(
    config: Path | None = None,
    settings: Sequence[str] = (),
    filter_name: str | None = None,
    pretrained: Path | None = None,
    **options: object,
) -> tuple[dict[str, object], str]:
    """Return the settings of a run that a user gave, as nested dicts, and the name of their source for messages.

    An option wins over --set, and --set over the file. A task, an engine or a check that is named as FILE.py:NAME or
    MODULE:NAME is loaded, and has its name in the settings. Raise InputError for a file or a text that cannot be read.

    config: TOML file.
    settings: texts of --set.
    filter_name: name of a filter.
    pretrained: path of a pretrained model.
    options: further settings, nested as in the file; None is left out.
    """
    values = merged(read_config(config) if config else {}, parse_settings(settings))
    if pretrained:
        values["pretrained"] = _as_text(pretrained)
    values = merged(values, {key: value for key, value in options.items() if value is not None})
    values = with_loaded_code(values)
    if filter_name:
        table = values.get("filter")
        values["filter"] = (table if isinstance(table, dict) else {}) | named_filter(filter_name).model_dump(
            exclude={"k", "temperature"}
        )
    return values, str(config) if config else "command line"


def with_loaded_code(values: Values) -> dict[str, object]:
    """Return nested settings in which tasks, engines and checks that a user names as code are loaded, and have names.

    Raise InputError if code cannot be loaded. Use it for what a user typed, or for a file that a user named: no file of
    a run may name code.
    """
    loaded: dict[str, Any] = dict(values)
    for key, door in (("task", TASK_DOOR), ("engine", ENGINE_DOOR)):
        if key in loaded:
            loaded[key] = door.named(loaded[key])
    if isinstance(loaded.get("filter"), dict):
        loaded["filter"] = _with_loaded_checks(loaded["filter"])
    return loaded


def chosen_engine(engine: str) -> str:
    """Return the name of an engine that a user names, or names as FILE.py:NAME or MODULE:NAME, which is loaded.

    Raise InputError if there is no such engine.
    """
    name: str = ENGINE_DOOR.named(engine)
    if not ENGINE_DOOR.has(name):
        raise InputError(ENGINE_DOOR.unknown(name))
    return name


def _with_loaded_checks(table: Values) -> dict[str, object]:
    """Return the table of a filter in which checks that a user names as code are loaded, and have their names."""
    checks = table.get("checks")
    if not isinstance(checks, list | tuple):
        return dict(table)
    return {**table, "checks": tuple(map(CHECK_DOOR.named, checks))}


def _as_text(path: Path) -> str:
    """Return a path as text for config.toml. Raise InputError if its name is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the name {path} is not UTF-8, so config.toml cannot record it; rename the file") from error
    return str(path)


def default_out(values: Values) -> Path:
    """Return the default run directory, `runs/PRESET-seedSEED`.

    The name of a pretrained model takes the place of the preset. A task other than the default comes in front.
    """
    task = values.get("task", DEFAULTS.task)
    start = Path(str(values.get("pretrained", ""))).stem or values.get("preset", DEFAULTS.preset)
    name = f"{start}-seed{values.get('seed', DEFAULTS.seed)}"
    return Path("runs") / (name if task == DEFAULTS.task else f"{task}-{name}")


def named_filter(name: str) -> Filter:
    """Return the filter of a name. Raise InputError if no filter has it."""
    if name not in FILTERS:
        raise InputError(f"unknown filter {name!r}; choose one of {', '.join(FILTERS)}")
    return FILTERS[name]


def filter_settings(chosen: str | Filter | Values, k: int | None = None, temperature: float | None = None) -> Filter:
    """Return the settings of the improved policy, with other guesses and temperature if given.

    Raise InputError for an unknown name, a number out of range, or a check that cannot be loaded.

    chosen: name of a filter, a filter, or a table of settings, whose checks may be references to code.
    """
    if isinstance(chosen, Mapping):
        table = _with_loaded_checks(chosen)
    else:
        table = (chosen if isinstance(chosen, Filter) else named_filter(chosen)).model_dump()
    numbers = {key: value for key, value in (("k", k), ("temperature", temperature)) if value is not None}
    return validated(Filter, table | numbers, "filter")


def lengths_of(digits: str | int | Iterable[int]) -> list[int]:
    """Return lengths in order, each once: from a text such as `1-29`, `7` or `3,5,8-10`, a number, or numbers.

    Raise InputError if the text is not such a list, or if there is none.
    """
    if isinstance(digits, str):
        return _parse_lengths(digits)
    lengths = list(dict.fromkeys([digits] if isinstance(digits, int) else digits))
    if not lengths:
        raise InputError("digits lists no lengths; give 7, '1-29' or [3, 5, 8]")
    return lengths


def _parse_lengths(text: str) -> list[int]:
    lengths: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)) or len(part) > 9:
            raise InputError(f"--digits {text!r} is not a list of lengths; write 7, 1-29 or 3,5,8-10")
        if int(last or first) < int(first):
            raise InputError(f"--digits {text!r} runs backwards; write the shorter length first")
        lengths += range(int(first), min(int(last or first), _MAX_LENGTH) + 1)
    return list(dict.fromkeys(lengths))


def check_numbers(seed: int, hard_share: float = 0.0, **counts: int) -> None:
    """Raise InputError for the first number that is out of its range.

    counts: numbers of problems, by name.
    """
    ranges: list[tuple[str, float, float, float]] = [(name, count, 1, MOST) for name, count in counts.items()]
    ranges += [("hard_share", hard_share, 0, 1), ("seed", seed, 0, MAX_SEED)]
    for name, value, least, most in ranges:
        # A comparison with NaN is false.
        if not least <= value <= most:
            raise InputError(f"{name}: {value} is out of range; it takes {least:g} to {most}")
