"""`sector config`: a list of all settings of a run, with type, default and meaning."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from sector.cli import _options as options
from sector.cli._output import Output
from sector.engine.config import CHECK_DOOR, ENGINE_DOOR, MOST, Schedule, Settings, run_config
from sector.engine.tasks import task_names

# Choices that are not part of the type of a setting, because a validator checks them.
_CHOICES = {"task": task_names, "engine": ENGINE_DOOR.names, "filter.checks": CHECK_DOOR.names}
_TYPES = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "array": "list",
    "object": "table",
}


def config(
    task: options.RunTask = None,
    schedule: Annotated[
        Schedule | None,
        options.option(
            "NAME",
            "Growth of a round: up to several digits (leaps), or one digit (paper).",
            "--schedule",
            show_default=options.DEFAULTS.schedule,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List all settings of a run with their types, defaults and meanings.

    To change a setting of `sector run` or `sector sft`, add the option
    --set NAME=VALUE, or write it in a TOML file and add --config FILE.toml.
    Some defaults depend on the task and on the schedule.

    Examples:

      sector config
      sector config --task multiplication --schedule paper
      sector config --json
    """
    chosen = {name: value for name, value in (("task", task), ("schedule", schedule)) if value is not None}
    settings = list(settings_of(run_config(chosen, f"--task {task}")))
    Output(as_json).data({"settings": list(map(asdict, settings))}, lambda: _view(settings))


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of a run.

    name: dotted name.
    type: type in words, with range or choices.
    default: value, as in JSON.
    meaning: sentences about it.
    """

    name: str
    type: str
    default: object
    meaning: str


def settings_of(settings: Settings, prefix: str = "") -> Iterator[Setting]:
    """Yield each setting, with its value as default."""
    schema = type(settings).model_json_schema()["properties"]
    values = settings.model_dump(mode="json")
    for key, field in type(settings).model_fields.items():
        name, value = prefix + key, getattr(settings, key)
        if isinstance(value, Settings):
            yield from settings_of(value, f"{name}.")
        else:
            type_in_words = _type_in_words(schema[key], _CHOICES[name]() if name in _CHOICES else ())
            yield Setting(name, type_in_words, values[key], " ".join((field.description or "").split()))


def _type_in_words(schema: dict[str, Any], choices: tuple[str, ...]) -> str:
    """Return a type with its choices and range: `whole number, 1 or more`.

    schema: JSON schema of the setting.
    choices: values that a validator allows.
    """
    kind = schema["type"]
    if choices := tuple(schema.get("enum", choices)):
        return f"{'list of' if kind == 'array' else 'one of'}: {', '.join(choices)}"
    return ", ".join([_TYPES[kind], *_range_in_words(schema)])


def _range_in_words(schema: dict[str, Any]) -> list[str]:
    """Return the range of a number; an empty list for any other type."""
    if "minimum" not in schema:
        return []
    low, high, limit = schema["minimum"], schema.get("maximum"), schema.get("exclusiveMaximum")
    if schema["type"] == "number":
        return [f"{low:g} to below {limit:g}" if high is None else f"{low:g} to {high:g}"]
    if limit is not None:
        high = limit - 1
    # The end of a count is there to refuse typing errors, and says nothing.
    return [f"{low} or more" if high == MOST else f"{low} to {high}"]


def _view(settings: list[Setting]) -> Table:
    """Return the settings as a table that is complete at 80 columns."""
    table = Table(header_style="bold", pad_edge=False, box=None, padding=(0, 2, 0, 0))
    table.add_column("setting", overflow="fold", min_width=max(len(setting.name) for setting in settings))
    table.add_column("default, type and meaning", overflow="fold")
    for setting in settings:
        default = Text.assemble((json.dumps(setting.default), "bold"), f" ({setting.type})")
        table.add_row(Text(setting.name, style="bold"), Group(default, Text(setting.meaning, style="dim"), ""))
    return table
