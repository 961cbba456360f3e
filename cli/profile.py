"""`sector profile`: the time of each operation and span of generating and of distilling."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table

from sector.cli import _options as options
from sector.cli._errors import Command, CommandGroup
from sector.cli._groups import EngineOptions, ModelOptions, with_groups
from sector.cli._output import Output, table
from sector.engine.api.settings import filter_settings
from sector.engine.config import MOST, parse_settings
from sector.engine.shares import percent

# Rows of the table of operations; the JSON holds all.
_TOP = 15
# If the processor time is below this share of the operations' time, operations waited for cores that were taken.
_CROWDED = 0.8
# Meaning of the shares: of the time of the steps on a GPU, and of the time of all cores on a CPU.
_ON_GPU = {
    "kernels": "of the steps' time, the GPU runs a kernel or a copy",
    "host": "the GPU waits for the processor, which is inside an operation or a CUDA call",
    "idle": "neither: Python between operations, or waiting",
}
_ON_CPU = {
    "operations": "of all cores' time, cores are inside an operation of torch or a compiled pass",
    "host": "cores do other work of this process: Python, and the recording itself",
    "idle": "cores do no work for this process",
}

Skip = Annotated[int, options.number("N", "Number of warm-up steps before recording.", 1, 1000)]
Steps = Annotated[int, options.number("N", "Number of steps to record.", 1, 1000)]
Out = Annotated[Path, options.option("DIR", "Directory to write the trace to.")]
Nsight = Annotated[
    bool, options.flag("--nsight", "Run under nsys or ncu: mark steps and spans for them, and record no trace.")
]

profile = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    help="Record a profile with torch.profiler: a trace, a table of operations, and shares of time.",
)


@profile.command(cls=Command)
@with_groups
def generate(
    *,
    context: typer.Context,
    named: ModelOptions,
    digits: options.Digits,
    out: Out,
    count: Annotated[int, options.number("M", "Number of problems per step.", 1, MOST)] = 250,
    skip: Skip = 1,
    steps: Steps = 3,
    chosen: EngineOptions,
    seed: options.Seed = 0,
    nsight: Nsight = False,
    as_json: options.Json = False,
) -> None:
    """Profile generating. A step runs the improved policy on one block of problems.

    Open the trace, DIR/generate-trace.json, in ui.perfetto.dev or in
    chrome://tracing. On a GPU, the command also prints nsys and ncu command
    lines that profile the longest kernel.

    Examples:

      sector profile generate --model runs/first --digits 20 --out profile
      sector profile generate --model runs/first --digits 20 --out profile --json
    """
    from sector.benchmarks.profiling import Recording, profile_generate

    output, model = Output(as_json), named.checked()
    checks = filter_settings(chosen.filter_name, chosen.k)
    with output.progress(f"profiling {digits} digits") as bar:
        report = profile_generate(
            model, digits, count, Recording(out, skip, steps, nsight, bar.at), engine=chosen.engine, settings=checks,
            seed=seed, engine_settings=parse_settings(chosen.settings or ()),
        )  # fmt: skip
    _show(report, context, out, output)


@profile.command(cls=Command)
@with_groups
def distill(
    context: typer.Context,
    named: ModelOptions,
    data: options.Data,
    out: Out,
    replay: options.Replay = None,
    skip: Skip = 5,
    steps: Steps = 10,
    seed: options.Seed = 0,
    nsight: Nsight = False,
    as_json: options.Json = False,
) -> None:
    """Profile distilling. A step is one training step; the weights are not saved.

    Open the trace, DIR/distill-trace.json, in ui.perfetto.dev or in
    chrome://tracing.

    Examples:

      sector profile distill --model runs/first --data 12.parquet --out profile
      sector profile distill --model c12 --data 13.parquet --out profile --json
    """
    from sector.benchmarks.profiling import Recording, profile_distill

    output, model = Output(as_json), named.checked()
    with output.progress("profiling distill") as bar:
        recording = Recording(out, skip, steps, nsight, bar.at)
        report = profile_distill(model, data, replay or [], seed, recording)
    _show(report, context, out, output)


def _show(report: dict[str, Any], context: typer.Context, out: Path, output: Output) -> None:
    from sector.benchmarks.profiling import nsight_commands

    if kernel := report.get("kernel"):
        report["nsight"] = nsight_commands(kernel, again(context), out)
    output.data(report, lambda: _view(report))
    if "trace" in report:
        output.say(f"trace: {report['trace']}; open it in ui.perfetto.dev")
    for line in report.get("nsight", {}).values():
        output.say(line)


def again(context: typer.Context) -> list[str]:
    """Return the words of the running command with --nsight, and without its other switches."""
    words = context.command_path.split()
    for parameter in context.command.params:
        value = context.params[parameter.name or ""]
        if parameter.name == "task":
            # Loading has replaced the reference by the name.
            words += options.task_words(value) if value else []
            continue
        values = value if isinstance(value, list | tuple) else [value]
        for text in [str(value) for value in values if value is not None and not isinstance(value, bool)]:
            words += [parameter.opts[0], text]
    return [*words, "--nsight"]


def _view(report: dict[str, Any]) -> RenderableType:
    from sector.benchmarks.machine import one_line

    steps = f"steps: {report['steps']}, {report['seconds_a_step']:.3f} s each"
    if "trace" not in report:
        return f"{steps}, marked for Nsight"
    return Group(
        f"{one_line(report)}\n{steps} ({report['seconds_a_step_unrecorded']:.3f} s without recording)\n",
        _operations(report["operations"]),
        "",
        _ranges(report["ranges"]),
        "",
        _shares(report),
    )


def _operations(operations: list[dict[str, Any]]) -> Table:
    shown = table("operation", "on", "self ms", "calls", "share")
    for row in operations[:_TOP]:
        milliseconds = f"{1000 * row['self_seconds']:,.1f}"
        shown.add_row(row["name"], row["on"], milliseconds, f"{row['calls']:,}", percent(row["share"]))
    return shown


def _ranges(ranges: list[dict[str, Any]]) -> Table:
    # No shares: the times of parallel threads add up to more than the time of the steps.
    shown = table("range", "ms, all threads", "calls", "threads")
    for row in ranges:
        shown.add_row(row["name"], f"{1000 * row['seconds']:,.1f}", f"{row['calls']:,}", f"{row['threads']:.2f}")
    return shown


def _shares(report: dict[str, Any]) -> Table:
    shares, cores = report["shares"], report["hardware"]["cores"]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(style="dim")
    for name, meaning in (_ON_GPU if "kernels" in shares else _ON_CPU).items():
        grid.add_row(name, percent(shares[name]), meaning)
    if report["cores_used"] < _CROWDED * shares.get("operations", 0) * cores:
        used = f"{report['cores_used']:.1f} of {cores}"
        grid.add_row("cores", used, "this process got; other work on this machine makes all times here longer")
    return grid
