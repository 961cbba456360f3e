"""Hooks of MkDocs: generate the references from the code, and turn links to source files into plain text."""

import re
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

# A link that leaves docs/ works where the repository is read, and not on the site.
_OUTSIDE = re.compile(
    r"\[([^\]]+)\]\((?:\.\./)+(?!(?:tutorial|how_to|reference|explanation|research|images)/)[^)#]*(?:#[^)]*)?\)"
)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in generated parts, and keep only the text of links that lead out of docs/."""
    generated = {"<!-- commands -->": commands, "<!-- settings -->": settings}
    for mark, make in generated.items():
        if mark in markdown:
            markdown = markdown.replace(mark, "\n".join(make()))
    depth = page.file.src_uri.count("/")
    return _OUTSIDE.sub(lambda match: match[1] if match[0].count("../") > depth else match[0], markdown)


def commands() -> Iterator[str]:
    """Yield the reference of the command line, one section per command, as its `--help` says."""
    from sector.cli.app import app

    yield from _commands("sector", typer.main.get_command(app))


def _commands(path: str, group: Any) -> Iterator[str]:
    for name, command in group.commands.items():
        # Indented lines of a help text are examples: code in Markdown, by four spaces.
        text = re.sub(r"(?m)^  +(?=\S)", "    ", command.help or "")
        yield f"## {path} {name}\n\n{text}\n"
        if hasattr(command, "commands"):
            yield from _commands(f"{path} {name}", command)
            continue
        yield "| option | meaning |\n| --- | --- |"
        context = command.context_class(command, info_name=name)
        for parameter in command.get_params(context):
            if record := parameter.get_help_record(context):
                yield f"| `{_cell(record[0])}` | {_cell(record[1])} |"
        yield ""


def settings() -> Iterator[str]:
    """Yield the reference of the settings: one table per section of the config file."""
    from sector.engine.config import RunConfig

    yield from _table("the top of the file", RunConfig, "")


def _table(title: str, model: type[BaseModel], prefix: str) -> Iterator[str]:
    yield f"## {title}\n\n| setting | type | default | meaning |\n| --- | --- | --- | --- |"
    tables = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            tables.append((prefix + name, field.annotation))
            continue
        default = "" if field.default is PydanticUndefined else f"`{field.default}`"
        meaning = _cell(field.description or "")
        yield f"| `{prefix}{name}` | {_cell(_kind(field.annotation))} | {_cell(default)} | {meaning} |"
    yield ""
    for inner, kind in tables:
        yield from _table(f"[{inner}]", kind, f"{inner}.")


def _kind(annotation: Any) -> str:
    """Name a type in plain words."""
    if get_origin(annotation) is tuple:
        return "list"
    choices = get_args(annotation)
    return ", ".join(map(str, choices)) if choices else getattr(annotation, "__name__", str(annotation))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
