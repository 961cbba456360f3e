"""`sector task`: tasks of your own, from a first file to a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sector.cli import _options as options
from sector.cli._errors import Command, CommandGroup
from sector.cli._output import Output, table, unwrapped
from sector.engine.config import flat
from sector.engine.errors import InputError

if TYPE_CHECKING:
    from sector.engine.testing.task_page import TaskPage

Reference = Annotated[
    str,
    typer.Argument(metavar="TASK", help="FILE.py:NAME, MODULE:NAME, or the name of a task that is installed."),
]

task = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="List, write, check and show tasks.")


@task.command("list", cls=Command)
def list_tasks(as_json: options.Json = False) -> None:
    """List the tasks of this package and of installed packages.

    Examples:

      sector task list
      sector task list --json
    """
    from sector.engine.tasks import TASK_DOOR, built_in, find_task, task_names

    def source(name: str) -> str:
        return "sector" if name in built_in() else TASK_DOOR.installed()[name].value

    rows = [{"name": name, "example": find_task(name).example, "source": source(name)} for name in task_names()]

    def view() -> Table:
        listed = table("task", "example", "from")
        for row in rows:
            listed.add_row(*map(Text, row.values()))
        return listed

    Output(as_json).data({"tasks": rows}, view)


@task.command(cls=Command)
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new task.")],
    out: Annotated[Path | None, options.option("FILE.py", "File to write.", show_default="NAME.py")] = None,
    as_json: options.Json = False,
) -> None:
    """Write a file with a task to start from. It can be learned as it is.

    Examples:

      sector task new parity
      sector task new parity --out my_tasks/parity.py
    """
    from sector.engine.api.scaffold import new_task

    reference = new_task(name, out)
    lines = [f"{verb} {reference}" for verb in ("sector task show", "sector task check", "sector run --task")]
    Output(as_json).data(
        {"task": reference},
        lambda: Group(
            Text(f"wrote {reference.rpartition(':')[0]}; then:"), *(unwrapped(f"  {line}") for line in lines)
        ),
    )


@task.command(cls=Command)
def check(reference: Reference, as_json: options.Json = False) -> None:
    """Test whether a task keeps its promises to the loop. A broken one ends with an example, and exit code 2.

    Examples:

      sector task check parity.py:Parity
      sector task check multiplication
    """
    from sector.engine.testing.promise import Promise
    from sector.engine.testing.task import check_task

    output = Output(as_json)

    def tell(promise: Promise) -> None:
        if not as_json:
            output.console.print(Text.assemble(("kept", "green"), f"  {promise.text}"))

    promises = check_task(reference, on_kept=tell)
    output.data({"task": reference, "kept": promises}, lambda: Text(f"{reference} keeps all {len(promises)} promises"))


@task.command(cls=Command)
def show(
    reference: Reference,
    problem: Annotated[
        str | None, typer.Argument(metavar="PROBLEM", help="Problem to show.", show_default="the task's example")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show one problem as the loop sees it: its steps, its checks and its tokens.

    The steps are those of the truth, which a model is to learn.

    Examples:

      sector task show parity.py:Parity
      sector task show multiplication 1234*5678
    """
    from sector.engine.tasks.outside import named_task
    from sector.engine.testing.task_page import task_page

    page = task_page(named_task(reference), problem)
    output = Output(as_json)
    output.data(page.as_json(), lambda: _view(page, output.console.width))


def _view(page: "TaskPage", width: int) -> RenderableType:
    from sector.cli.solve import thinking

    solution = page.solution
    if solution.thought is None:
        raise InputError(f"{solution.problem}: {solution.error}")
    lines: list[RenderableType] = [
        Text.assemble((page.task, "bold"), f"  {solution.problem} = {solution.answer}"),
        thinking(solution.thought, width),
        _tokens("asks for the answer", page.prompt),
        _tokens("the answer", page.answer),
    ]
    if page.simplification:
        lines += [
            _tokens("asks for a simplification", page.think),
            _tokens("the simplification", page.simplification),
        ]
    if page.texts:
        lines += [Text("as text", "dim"), *(Padding(Text(text), (0, 0, 0, 2)) for text in page.texts)]
    if page.settings:
        settings = ", ".join(f"{key}={value}" for key, value in flat(page.settings))
        lines.append(Text(f"\nsettings  {settings}"))
    return Group(*lines)


def _tokens(title: str, names: list[str]) -> RenderableType:
    """Return a title and tokens below it; the place of a token, behind `@`, is dim."""
    text = Text()
    for name in names:
        letter, at, place = name.partition("@")
        text.append(letter).append(f"{at}{place} ", "dim")
    return Group(Text(title, "dim"), Padding(text, (0, 0, 0, 2)))
