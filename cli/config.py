"""`sector config`: every setting of a run, with its type, default and meaning."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from sector.cli import _options as options
from sector.cli._output import Output
from sector.engine.config import CHECKS, MOST, SHIFTED, Settings, run_config
from sector.engine.tasks import task_names

# Choices that a validator checks, so that they are not part of the type.
_CHOICES = {"task": tuple(task_names()), "filter.checks": (*CHECKS, SHIFTED)}
_TYPES = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text", "array": "list"}


def config(
    task: options.MaybeTask = None,
    schedule: Annotated[
        Literal["leaps", "paper"] | None,
        typer.Option("--schedule", help="How far rounds go.", show_default=options.DEFAULTS.schedule),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List every setting of a run: name, type, default and meaning.

    Some defaults depend on the task and on the schedule. A setting is written
    in the TOML file for --config, or given as --set NAME=VALUE.

    Examples:

      sector config
      sector config --task multiplication --schedule paper
      sector config --json
    """
    chosen = {name: value for name, value in (("task", task), ("schedule", schedule)) if value is not None}
    settings = list(settings_of(run_config(chosen, f"--task {task}")))
    Output(as_json).data({"settings": settings}, lambda: _view(settings))


def settings_of(settings: Settings, prefix: str = "") -> Iterator[dict[str, Any]]:
    """Yield name (dotted), type in words, value as default, and meaning of each setting."""
    schema = type(settings).model_json_schema()["properties"]
    values = settings.model_dump(mode="json")
    for key, field in type(settings).model_fields.items():
        name, value = prefix + key, getattr(settings, key)
        if isinstance(value, Settings):
            yield from settings_of(value, f"{name}.")
        else:
            yield {
                "name": name,
                "type": _type_in_words(schema[key], _CHOICES.get(name, ())),
                "default": values[key],
                "meaning": " ".join((field.description or "").split()),
            }


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
    """Return the range of a number; an empty list if there is none."""
    low, high = schema.get("minimum"), schema.get("maximum")
    if schema["type"] == "integer" and "exclusiveMaximum" in schema:
        high = schema["exclusiveMaximum"] - 1
    # The end of a count is there to refuse typing errors; it tells nothing.
    if low is not None and high not in (None, MOST):
        return [f"{low:g} to {high:g}" if isinstance(high, float) else f"{low} to {high}"]
    if low is not None:
        return [f"{low:g} or more"]
    if "exclusiveMinimum" in schema:
        return [f"above {schema['exclusiveMinimum']:g}"]
    return []


def _view(settings: list[dict[str, Any]]) -> Table:
    """Return the settings as a table that is complete at 80 columns."""
    table = Table(header_style="bold", pad_edge=False, box=None, padding=(0, 2, 0, 0))
    table.add_column("setting", overflow="fold", min_width=max(len(setting["name"]) for setting in settings))
    table.add_column("default, type and meaning", overflow="fold")
    for setting in settings:
        default = Text.assemble((json.dumps(setting["default"]), "bold"), f" ({setting['type']})")
        table.add_row(Text(setting["name"], style="bold"), Group(default, Text(setting["meaning"], style="dim"), ""))
    return table
