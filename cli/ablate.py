"""`sector ablate`: a grid of runs over settings and seeds."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table

from sector.cli import _options as options
from sector.cli._errors import Interrupted
from sector.cli._output import Output, clock, table, unwrapped
from sector.engine.config import flat
from sector.engine.run.events import Generated, TrainingStep
from sector.engine.run.stop_signals import HINT
from sector.engine.shares import hundredths, percent

if TYPE_CHECKING:
    from sector.benchmarks.ablate import GridStep
    from sector.benchmarks.budget import Budget, LeftOut
    from sector.benchmarks.grid import Grid
    from sector.engine.run.stop_signals import Stopping

# Formats a figure for a table.
Format = Callable[[float], str]

# Columns of the table of label errors.
_SHOWN_ROUNDS = 8


def ablate(
    grid_file: Annotated[Path, typer.Argument(metavar="GRID.toml", help="File that lists the cells and the seeds.")],
    out: Annotated[Path, options.option("DIR", "Directory of the runs, to be created or resumed.")],
    plan: Annotated[bool, options.flag("--plan", "Check the grid and show finished runs; start no run.")] = False,
    budget: Annotated[
        str | None, options.option("TIME", "Leave out runs that do not fit in this time, such as 2h or 90m.")
    ] = None,
    task: options.ModelTask = None,
    as_json: options.Json = False,
) -> None:
    """Run each cell of a grid of settings with each seed, and compare the cells.

    Each run is an ordinary run directory, DIR/cells/CELL/seedN. It is
    evaluated at its end. To resume a grid, repeat its command: finished runs
    are skipped. A run whose model stops agreeing with itself counts as a
    result, and the next run starts. Intervals are Student's 95 % over seeds.
    With --budget, a run starts if it fits, by the time that finished runs of
    its cell or of the grid took; the runs left out are named. With --plan,
    too, --budget shows which runs would fit.

    The repository has example grids in benchmarks/grids.

    Examples:

      sector ablate benchmarks/grids/vote_x_commutativity.toml --out runs/votes
      sector ablate my_grid.toml --out runs/mine --plan
      sector ablate my_grid.toml --out runs/mine --budget 2h
      sector ablate my_grid.toml --out runs/mine --json > mine.jsonl
    """
    from sector.benchmarks.ablate import results
    from sector.benchmarks.budget import Budget, plan_runs, seconds_of
    from sector.benchmarks.grid import read_grid

    output = Output(as_json)
    seconds = None if budget is None else seconds_of(budget)
    grid = read_grid(grid_file)
    if not plan:
        _run_or_stop(grid, out, output, None if seconds is None else Budget(seconds))
    comparison = results(grid, out)
    if plan and seconds is not None:
        comparison["planned"] = [
            {"cell": run.cell.name, "seed": run.seed, "seconds": run.seconds, "fits": run.fits}
            for run in plan_runs(grid, out, seconds)
        ]
    output.data({"event": "done", **comparison}, lambda: _plan(comparison) if plan else _view(comparison))


def _run_or_stop(grid: "Grid", out: Path, output: Output, budget: "Budget | None") -> None:
    """Run the unfinished runs; on a signal, save the current step, name the command that resumes, and exit."""
    from sector.engine.run.stop_signals import Terminated, stop_on_signals

    with stop_on_signals() as stopping:
        try:
            _run(grid, out, output, stopping, budget)
        except (Terminated, KeyboardInterrupt) as error:
            if isinstance(error, KeyboardInterrupt) or stopping.interrupted:
                raise Interrupted(f"interrupted; the same command resumes {out}") from error
            output.say(f"sector: stopped by a signal; the same command resumes {out}")
            raise typer.Exit from error


def _run(grid: "Grid", out: Path, output: Output, stopping: "Stopping", budget: "Budget | None") -> None:
    """Run the unfinished runs. On a request to stop, raise Terminated once the current step is saved.

    budget: time for the runs; those that do not fit are left out, and named.
    """
    from sector.benchmarks.ablate import run_grid
    from sector.benchmarks.budget import LeftOut
    from sector.engine.run.stop_signals import Terminated

    def evaluating(done: int, of: int, note: str) -> None:
        if stopping.asked:
            raise Terminated
        bar.note(f"evaluating: {note}")

    total = len(grid.cells) * len(grid.seeds)
    stopping.is_shown = output.shows_bars
    with output.progress(grid.title) as bar:
        for step in run_grid(grid, out, evaluating, stopping, budget):
            doing = HINT if stopping.interrupted else f"{step.cell.name} seed {step.seed}: {_doing(step)}"
            bar.at(step.index, total, doing)
            if step.event is None:
                _report(step, total, output)
            elif isinstance(step.event, LeftOut):
                _report_left_out(step, step.event, output)
            if stopping.ends_after(step.event):
                raise Terminated


def _doing(step: "GridStep") -> str:
    """Return the phase of a run, in words."""
    match step.event:
        case TrainingStep(digits=digits):
            return f"distilling {digits or 'short'} digits"
        case Generated(digits=digits):
            return f"generating {digits} digits"
    return ""


def _report(step: "GridStep", total: int, output: Output) -> None:
    """Print the outcome of a finished run: with --json as an object, else as a line on stderr."""
    outcome = step.outcome
    title = f"{step.index + 1} of {total}: {step.cell.name} seed {step.seed}"
    if outcome is None:
        output.say(f"{title} diverged before its first round")
        return
    if output.as_json:
        output.line({"event": "run", "cell": step.cell.name, **outcome.as_json()})
        return
    rounds = "the supervised phase alone"
    if outcome.rounds:
        survived = f"{outcome.rounds_survived} of {outcome.rounds} rounds survived"
        rounds = f"{survived}, label error {percent(outcome.mean_label_error, 2)}"
    reached = f"{outcome.final_digits} digits ({outcome.stopped_because})"
    output.say(f"{title}: {reached}, {rounds}, {clock(outcome.seconds)}")


def _report_left_out(step: "GridStep", left_out: "LeftOut", output: Output) -> None:
    """Print which run is left out and why: with --json as an object, else as a line on stderr."""
    if output.as_json:
        figures = {"seconds": left_out.seconds, "left": left_out.left}
        output.line({"event": "left out", "cell": step.cell.name, "seed": step.seed, **figures})
        return
    output.say(
        f"left out: {step.cell.name} seed {step.seed}, which takes about {clock(left_out.seconds)}; "
        f"{clock(left_out.left)} of the budget are left"
    )


def _plan(comparison: dict[str, Any]) -> Group:
    """Return the counts of runs, the cells with their settings, and the results if there are any."""
    cells, seeds = comparison["cells"], comparison["seeds"]
    done = sum(len(row["runs"]) for row in cells)
    counts = f"{len(cells) * len(seeds)} runs, {done} done: {len(cells)} cells, seeds {', '.join(map(str, seeds))}"
    settings = [dict(flat(row["settings"])) for row in cells]
    common = {key: value for key, value in settings[0].items() if all((key, value) in own.items() for own in settings)}
    plan = Table("cell", "done", "settings", header_style="bold", box=None, pad_edge=False)
    for column in plan.columns:
        column.overflow = "fold"
    plan.add_row("all cells", "", _assignments(common))
    for row, own in zip(cells, settings, strict=True):
        different = {key: value for key, value in own.items() if key not in common}
        plan.add_row(row["cell"], f"{len(row['runs'])} of {len(seeds)}", _assignments(different))
    parts: tuple[RenderableType, ...] = (comparison["title"], unwrapped(counts, style="bold"), "", plan)
    if "planned" in comparison:
        parts = (*parts, "", *_planned(comparison["planned"]))
    return Group(*parts, "", _view(comparison)) if done else Group(*parts)


def _assignments(settings: dict[str, object]) -> str:
    return ", ".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())


def _planned(runs: list[dict[str, Any]]) -> Iterator[RenderableType]:
    """Yield lines about the runs that fit in the budget and those that do not."""
    fit = [run for run in runs if run["fits"]]
    known = sum(run["seconds"] or 0.0 for run in fit)
    yield unwrapped(f"{len(fit)} of {len(runs)} unfinished runs fit, in about {clock(known)}", style="bold")
    if any(run["seconds"] is None for run in fit):
        yield unwrapped("no run is over yet, so none has an expected time")
    for run in runs:
        if not run["fits"]:
            yield unwrapped(f"left out: {run['cell']} seed {run['seed']}, about {clock(run['seconds'])}")


def _view(comparison: dict[str, Any]) -> Group:
    """Return a table of the outcomes, and one of the label error by round; a row is a cell."""
    accuracy = f"accuracy 1-{comparison['longest']}, %"
    figures: dict[str, tuple[str, Format]] = {
        "digits": ("final_digits", _tenths),
        "rounds survived": ("rounds_survived", _tenths),
        accuracy: ("eval_accuracy", hundredths),
        "lowest, %": ("eval_lowest", hundredths),
        "label error, %": ("mean_label_error", partial(hundredths, places=2)),
        "tokens, M": ("tokens", lambda count: _tenths(count / 1e6)),
        "minutes": ("seconds", lambda seconds: _tenths(seconds / 60)),
    }
    summary = _table(comparison["title"], ["cell", "seeds", *figures])
    for row in comparison["cells"]:
        cells = [_interval(row["means"].get(name), as_text) for name, as_text in figures.values()]
        summary.add_row(_name(row), str(len(row["runs"])), *cells)
    lengths = sorted({int(digits) for row in comparison["cells"] for digits in row["label_errors"]})
    if not lengths:
        return Group(summary)
    shown = _spread(lengths)
    errors = _table("Label error by digits of the round, %", ["cell", *map(str, shown)])
    for row in comparison["cells"]:
        errors.add_row(_name(row), *(_interval(row["label_errors"].get(str(digits)), hundredths) for digits in shown))
    return Group(summary, "", errors)


def _spread(lengths: list[int]) -> list[int]:
    """Return at most _SHOWN_ROUNDS of the lengths, evenly spread, the first and the last among them."""
    last = len(lengths) - 1
    return sorted({lengths[column * last // (_SHOWN_ROUNDS - 1)] for column in range(_SHOWN_ROUNDS)})


def _table(title: str, columns: list[str]) -> Table:
    # One space between columns and one word per line, so that the table fits into 80 characters.
    names = [name.replace(" ", "\n") for name in columns]
    return table(*names, title=title, title_justify="left", title_style="bold", padding=(0, 1, 0, 0))


def _name(row: dict[str, object]) -> str:
    """Return the name of a cell, one line for the value of each axis."""
    return str(row["cell"]).replace("_", "\n")


def _tenths(figure: float) -> str:
    return f"{figure:.1f}"


def _interval(mean: dict[str, Any] | None, as_text: Format) -> str:
    """Return a mean, and below it half its interval unless there is only one run or all runs are equal."""
    if mean is None:
        return "-"
    center = as_text(mean["mean"])
    if mean["low"] is None or mean["low"] == mean["high"]:
        return center
    return f"{center}\n\N{PLUS-MINUS SIGN}{as_text(mean['high'] - mean['mean'])}"
