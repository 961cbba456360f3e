"""`sector ablate`: a grid of runs over settings and seeds."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.table import Table

from sector.cli import _options as options
from sector.cli._errors import Interrupted
from sector.cli._output import Output, clock
from sector.engine.run.events import Generated, TrainingStep
from sector.engine.shares import hundredths, percent

if TYPE_CHECKING:
    from sector.benchmarks.ablate import Step
    from sector.benchmarks.grid import Grid
    from sector.engine.run.stopping import Stopping

Figure = Callable[[float], str]

# The table shows the label error of so many rounds, the first and the last among them.
_SHOWN_ROUNDS = 8


def ablate(
    grid_file: Annotated[
        Path, typer.Argument(metavar="GRID.toml", help="The grid: its cells and seeds.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where runs go, new or to be resumed.", show_default=False)],
    plan: Annotated[bool, typer.Option("--plan", help="Check the grid, say what is done, and run nothing.")] = False,
    as_json: options.Json = False,
) -> None:
    """Run every cell of a grid with every seed, and compare them.

    Each run is an ordinary run directory, DIR/cells/CELL/seedN, evaluated
    when it is over. The same command resumes: finished runs are skipped, a
    half-finished one goes on. A run that no longer agrees with itself is a
    result; the grid goes on. Intervals are Student's 95 % over seeds.

    Grids that come with the sources are in benchmarks/grids.

    Examples:

      sector ablate benchmarks/grids/vote_x_commutativity.toml --out runs/votes
      sector ablate my_grid.toml --out runs/mine --plan
      sector ablate my_grid.toml --out runs/mine --json > mine.jsonl
    """
    from sector.benchmarks.ablate import results
    from sector.benchmarks.grid import read_grid
    from sector.engine.run.stopping import Terminated, stop_on_signals

    output = Output(as_json)
    grid = read_grid(grid_file)
    if not plan:
        with stop_on_signals() as stopping:
            try:
                _run(grid, out, output, stopping)
            except (Terminated, KeyboardInterrupt) as error:
                if isinstance(error, KeyboardInterrupt) or stopping.interrupted:
                    raise Interrupted(f"interrupted; the same command resumes {out}") from error
                output.say(f"sector: stopped as asked; the same command resumes {out}")
                raise typer.Exit from error
    found = results(grid, out)
    output.data({"event": "done", **found}, lambda: _view(found))


def _run(grid: "Grid", out: Path, output: Output, stopping: "Stopping") -> None:
    """Run what is not done yet. Terminated once the step at hand is saved, if that is asked for."""
    from sector.benchmarks.ablate import run_grid
    from sector.engine.run.stopping import Terminated

    def evaluating(done: int, of: int, note: str) -> None:
        if stopping.asked:
            raise Terminated
        bar.note(f"evaluating: {note}")

    total = len(grid.cells) * len(grid.seeds)
    with output.progress(grid.title) as bar:
        for step in run_grid(grid, out, evaluating, stopping):
            bar.at(step.index, total, f"{step.cell.name} seed {step.seed}: {_doing(step)}")
            if step.event is None:
                _report(step, total, output)
            if stopping.ends_after(step.event):
                raise Terminated


def _doing(step: "Step") -> str:
    """What a run is at, in words."""
    match step.event:
        case TrainingStep(digits=digits):
            return f"distilling {digits or 'short'} digits"
        case Generated(digits=digits):
            return f"generating {digits} digits"
    return ""


def _report(step: "Step", total: int, output: Output) -> None:
    """A run is over: a line for machines, or in words."""
    outcome = step.outcome
    if outcome is None:
        output.say(f"{step.index + 1} of {total}: {step.cell.name} seed {step.seed} diverged before its first round")
    elif output.as_json:
        output.line({"event": "run", "cell": step.cell.name, **outcome.as_json()})
    else:
        rounds = (
            f"{outcome.rounds_survived} of {outcome.rounds} rounds survived, label error "
            f"{percent(outcome.mean_label_error, 2)}"
            if outcome.rounds
            else "the supervised phase alone"
        )
        output.say(
            f"{step.index + 1} of {total}: {step.cell.name} seed {step.seed}: {outcome.final_digits} digits "
            f"({outcome.stopped_because}), {rounds}, {clock(outcome.seconds)}"
        )


def _view(found: dict[str, Any]) -> Group:
    """A row a cell: what became of it; and its label error round by round."""
    accuracy = f"accuracy 1-{found['longest']}, %"
    figures: dict[str, tuple[str, Figure]] = {
        "digits": ("final_digits", _tenths),
        "rounds survived": ("rounds_survived", _tenths),
        accuracy: ("eval_accuracy", hundredths),
        "lowest, %": ("eval_lowest", hundredths),
        "label error, %": ("mean_label_error", partial(hundredths, places=2)),
        "tokens, M": ("tokens", lambda count: _tenths(count / 1e6)),
        "minutes": ("seconds", lambda seconds: _tenths(seconds / 60)),
    }
    summary = _table(found["title"], ["cell", "seeds", *figures])
    for row in found["cells"]:
        cells = [_interval(row["means"].get(name), figure) for name, figure in figures.values()]
        summary.add_row(_name(row), str(len(row["runs"])), *cells)
    lengths = sorted({int(digits) for row in found["cells"] for digits in row["label_errors"]})
    shown = sorted(
        {lengths[turn * (len(lengths) - 1) // (_SHOWN_ROUNDS - 1)] for turn in range(_SHOWN_ROUNDS * bool(lengths))}
    )
    errors = _table("Label error by digits of the round, %", ["cell", *map(str, shown)])
    for row in found["cells"]:
        errors.add_row(_name(row), *(_interval(row["label_errors"].get(str(digits)), hundredths) for digits in shown))
    return Group(summary, "", errors) if shown else Group(summary)


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    # A single space between columns and a word a line: all of it fits into 80 characters.
    table.padding = (0, 1, 0, 0)
    for name in columns:
        table.add_column(name.replace(" ", "\n"), justify="left" if name == "cell" else "right", no_wrap=True)
    return table


def _name(row: dict[str, Any]) -> str:
    """The name of a cell, a line for the value of each axis."""
    return str(row["cell"]).replace("_", "\n")


def _tenths(figure: float) -> str:
    return f"{figure:.1f}"


def _interval(mean: dict[str, Any] | None, figure: Figure) -> str:
    """A mean, and below it half its interval; the mean alone where runs do not differ, or there is only one."""
    if mean is None:
        return "-"
    center = figure(mean["mean"])
    if mean["low"] is None or mean["low"] == mean["high"]:
        return center
    return f"{center}\n\N{PLUS-MINUS SIGN}{figure(mean['high'] - mean['mean'])}"
