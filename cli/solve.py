"""`sector solve`: answers to typed problems."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sector.cli import _options as options
from sector.cli._groups import EngineOptions, with_groups
from sector.cli._output import Output
from sector.engine.errors import InputError
from sector.engine.files import decoded, read_text

if TYPE_CHECKING:
    from sector.engine.policy.solve import Solution, Thought


@with_groups
def solve(
    *,
    problems: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROBLEM...",
            help="Problems such as 123+456, or 456-123 and 123*456 if the model has learned that task.",
        ),
    ] = None,
    file: Annotated[
        Path | None, options.option("FILE", "Read problems from this file, one per line; - is stdin.")
    ] = None,
    model: Annotated[
        Path | None,
        options.option("DIR", options.MODEL_HELP, show_default="the newest run in runs/, else shipped weights"),
    ] = None,
    policy: options.SolvePolicy = None,
    show: Annotated[bool, options.flag("--show", "Print the chain of thought, the guesses and the checks.")] = False,
    chosen: EngineOptions,
    task: options.ModelTask = None,
    as_json: options.Json = False,
) -> None:
    """Solve problems of up to 256 digits, with a trained model.

    Without --model, the newest run in runs/ solves them. If there is none,
    weights that ship with sector do; stderr says which.

    If some of the problems cannot be read, the others are answered, and the
    exit code is 2. With --policy improved there is no answer if the model
    does not agree with itself; this is not an error. Sampling is greedy, so
    the answers of a model are always the same.

    Examples:

      sector solve 123+456
      sector solve 31415926+27182818 --show
      sector solve 1234*5678 --model multiplication
      sector solve --file problems.txt --model runs/first --json
    """
    from sector.engine.api.answers import default_policy
    from sector.engine.api.answers import solve as answer
    from sector.engine.api.choice import check_task, choose_model

    output = Output(as_json)
    texts = _typed(problems or [], file)
    with output.progress("solving"):
        choice = None
        if model is None:
            choice = choose_model(texts)
            model = choice.path
        check_task(model, task)
        solutions = answer(texts, model, policy or default_policy(show), show=show, **chosen.arguments)
    if choice and not all(solution.unread for solution in solutions):
        output.say(f"sector: solved by {choice.reason}")
    unread = [solution for solution in solutions if solution.unread]
    for solution in solutions:
        # A single unreadable problem is explained on stderr, several on their own lines.
        _print(solution, output, why=unread != [solution])
    if unread:
        raise InputError(_why_unread(unread, len(texts)))


def _why_unread(unread: list["Solution"], count: int) -> str:
    """Return one line about the problems that cannot be read. With several, their own lines give the reasons."""
    if count == 1:
        return str(unread[0].error)
    summary = f"{len(unread)} of {count} problems cannot be read"
    return f"{summary}: {unread[0].error}" if len(unread) == 1 else f"{summary}; see the reason on each line"


def _typed(problems: list[str], file: Path | None) -> list[str]:
    """Return the problems to solve, from the command line or from a file.

    Raise InputError if there are none, or if there is a file as well.
    """
    from sector.engine.policy.solve import read_problems

    # Unknown options arrive here too (`app.py`). A word that begins like a negative number is taken for a problem.
    if stray := next((text for text in problems if re.match(r"-[^\d]", text)), None):
        raise InputError(f"No such option: {stray}; see `sector solve --help`")
    if bool(problems) == (file is not None):
        raise InputError("give either problems, as in `sector solve 123+456`, or --file FILE")
    if file is None:
        return [text.strip() for text in problems]
    return read_problems(_read(file), "stdin" if str(file) == "-" else str(file))


def _read(file: Path) -> str:
    """Return the text of a file, or of stdin if its name is -."""
    if str(file) != "-":
        return read_text(file)
    if sys.stdin is None:
        raise InputError("stdin is closed, but --file - reads problems from it; name a file instead")
    return decoded(sys.stdin.buffer.read(), "stdin")


def _print(solution: "Solution", output: Output, why: bool) -> None:
    """Print a solution.

    why: print the reason if there is no answer.
    """
    if output.as_json:
        output.line(solution.as_json())
        return
    if solution.thought is not None:
        output.console.print(thinking(solution.thought, output.console.width))
    answer = solution.answer
    if solution.error is not None:
        answer = f"?  ({solution.error})" if why else "?"
    output.text(f"{solution.problem.rstrip('= ')} = {answer}")


def thinking(thought: "Thought", width: int) -> RenderableType:
    """Return a table of the chain of thought, a row per step, and the facts about the answer."""
    # The slow policy guesses once, after its last step. A chain of thought to the end guesses after its first steps.
    without_guess = [""] * max(0, len(thought.steps) - len(thought.guesses))
    guesses = [*thought.guesses, *without_guess] if thought.through else [*without_guess, *thought.guesses]
    pairs = [(guess, step.found) for guess, step in zip(guesses, thought.steps, strict=False)]
    at_front = _stand_at_front(pairs)
    votes = [Text("does not parse") if guess is None else _joined(guess, found, at_front) for guess, found in pairs]
    steps = [
        (str(index), step.rest, Text(step.found, style="cyan"), vote)
        for index, (step, vote) in enumerate(zip(thought.steps, votes, strict=True), start=1)
    ]
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *steps, strict=True)]
    fits = _INDENT + sum(widths) + _GAP * (len(widths) - 1) <= width
    table = _in_columns(steps) if fits else _one_below_another(steps)
    facts = _facts(thought, width)
    return Padding(Group(*(part for part in (table, facts) if part.row_count)), (1, 0, 1, _INDENT))


_StepRow = tuple[str, str, Text, Text]
_COLUMNS = ("step", "what remains", "digits found", "so the answer is")
_INDENT, _GAP = 2, 3


def _in_columns(steps: list[_StepRow]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for row in steps:
        table.add_row(*row)
    return table


def _one_below_another(steps: list[_StepRow]) -> Table:
    """Return the steps one below another, for numbers that are too long for columns."""
    table = Table.grid(padding=(0, _GAP, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for step, rest, found, vote in steps:
        table.add_row(f"{step}  what remains", rest)
        table.add_row("   digits found", found)
        if vote.plain:
            table.add_row("   so the answer is", vote)
    return table


def _facts(thought: "Thought", width: int) -> Table:
    """Return a table of the vote, the direct answer, and the checks."""
    rows: list[tuple[str, str, Text]] = []
    if thought.vote is not None:
        name = "thought through" if thought.through else "vote"
        rows.append((name, thought.vote, Text(f"{thought.votes} of {len(thought.guesses)} guesses")))
    if thought.direct is not None:
        note = _agrees(thought.direct == thought.vote) if thought.vote else Text()
        rows.append(("direct answer", thought.direct, note))
    rows += [
        (check.label, f"{check.problem} = {check.answer or '?'}", _agrees(check.agrees)) for check in thought.checks
    ]
    facts = Table.grid(padding=(0, _GAP, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if _INDENT + sum(widths) + _GAP * len(widths) <= width:
        facts.add_column(no_wrap=True)
        facts.add_column(no_wrap=True)
        for row in rows:
            facts.add_row(*row)
        return facts
    # Too long to stand side by side: the number below its name.
    facts.columns[0].no_wrap, facts.columns[0].overflow = False, "fold"
    for name, value, note in rows:
        facts.add_row(Text.assemble(name, "  ", note))
        facts.add_row(Text(f"  {value}", style="not dim"))
    return facts


def _stand_at_front(pairs: list[tuple[str | None, str]]) -> bool:
    """Return whether guesses begin with the digits found, as for tasks that find the first digit of an answer first."""
    guessed = [(guess, found) for guess, found in pairs if guess]
    return all(guess.startswith(found) for guess, found in guessed) and not all(
        guess.endswith(found) for guess, found in guessed
    )


def _joined(guess: str, found: str, at_front: bool) -> Text:
    """Return a full answer, with the digits that were already found in colour."""
    cut = min(len(guess), len(found)) if at_front else max(0, len(guess) - len(found))
    parts = ((guess[:cut], "cyan"), guess[cut:]) if at_front else (guess[:cut], (guess[cut:], "cyan"))
    return Text.assemble(*parts)


def _agrees(yes: bool) -> Text:
    return Text("agrees", style="green") if yes else Text("differs", style="red")
