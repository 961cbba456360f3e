"""`sector profile`: where the time of generating and of distilling goes, step by step."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table

from sector.cli import _options as options
from sector.cli._output import Output
from sector.engine.config import MOST, parse_settings
from sector.engine.shares import percent

# Rows of the table; the JSON holds all.
_TOP = 15
# Processor time below this share of the operations' time: they waited for cores that others had.
_CROWDED = 0.8
# What the shares mean, where a kernel ran and where none did.
_ON_GPU = {
    "kernels": "of the steps' time, the GPU runs a kernel or a copy",
    "host": "it waits for the processor, which is inside an operation or a call to CUDA",
    "idle": "neither: Python between operations, or waiting",
}
_ON_CPU = {
    "operations": "of all cores' time, a core is inside an operation of torch",
    "host": "it works outside of them: Python, and the recording itself",
    "idle": "it does not work for us",
}

Skip = Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Steps of warm-up, before recording begins.")]
Steps = Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Steps to record.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Where the trace goes.", show_default=False)]
Nsight = Annotated[
    bool, typer.Option("--nsight", help="Record nothing; mark steps and ranges for nsys or ncu, which run this.")
]

profile = typer.Typer(
    no_args_is_help=True, help="Show where the time goes, by torch.profiler: a trace, a table, shares."
)


@profile.command()
def generate(
    context: typer.Context,
    model: options.Model,
    digits: options.Digits,
    out: Out,
    count: Annotated[int, typer.Option(min=1, max=MOST, metavar="M", help="Candidates of each step.")] = 250,
    skip: Skip = 1,
    steps: Steps = 3,
    engine: options.EngineOption = "native",
    filter_name: options.FilterOption = options.DEFAULT_FILTER,
    k: options.K = options.DEFAULTS.filter.k,
    settings: options.Settings = None,
    seed: options.Seed = 0,
    nsight: Nsight = False,
    as_json: options.Json = False,
) -> None:
    """Profile generating: a step is one block of candidates through the improved policy.

    The trace, generate-trace.json, opens in ui.perfetto.dev or chrome://tracing.
    On a GPU it also prints the nsys and ncu lines for the longest kernel.

    Examples:

      sector profile generate --model runs/first --digits 20 --out profile
      sector profile generate --model runs/first --digits 20 --out profile --json
    """
    from sector.benchmarks.profiling import Generation, Recording, profile_generate

    output = Output(as_json)
    generation = Generation(
        model, digits, count, engine, options.filter_config(filter_name, k), options.DEFAULTS.hard_share, seed,
        parse_settings(settings or ()),
    )  # fmt: skip
    with output.progress(f"profiling {digits} digits") as bar:
        report = profile_generate(generation, Recording(out, skip, steps, nsight, bar.at))
    _show(report, context, out, output)


@profile.command()
def distill(
    context: typer.Context,
    model: options.Model,
    data: Annotated[
        list[Path], typer.Option(metavar="FILE", help="Examples to learn from; may be given again.", show_default=False)
    ],
    out: Out,
    replay: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Earlier examples to keep in mind; may be given again.", show_default=False),
    ] = None,
    skip: Skip = 5,
    steps: Steps = 10,
    seed: options.Seed = 0,
    nsight: Nsight = False,
    as_json: options.Json = False,
) -> None:
    """Profile distilling: a step is one training step. No weights are written.

    The trace, distill-trace.json, opens in ui.perfetto.dev or chrome://tracing.

    Examples:

      sector profile distill --model runs/first --data 12.parquet --out profile
      sector profile distill --model c12 --data 13.parquet --out profile --json
    """
    from sector.benchmarks.profiling import Recording, profile_distill

    output = Output(as_json)
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
    """The words of the command under way, with `--nsight`."""
    words = context.command_path.split()
    for parameter in context.command.params:
        value = context.params[parameter.name or ""]
        for each in value if isinstance(value, list | tuple) else [value]:
            if each is not None and not isinstance(each, bool):
                words += [parameter.opts[0], str(each)]
    return [*words, "--nsight"]


def _view(report: dict[str, Any]) -> RenderableType:
    from sector.benchmarks.machine import one_line

    taken = f"steps: {report['steps']}, {report['seconds_a_step']:.3f} s each"
    if "trace" not in report:
        return f"{taken}, marked for Nsight"
    return Group(
        f"{one_line(report)}\n{taken} ({report['seconds_a_step_unrecorded']:.3f} s where nothing is recorded)\n",
        _operations(report["operations"]),
        "",
        _ranges(report["ranges"]),
        "",
        _shares(report),
    )


def _table(*columns: str) -> Table:
    table = Table(header_style="bold", pad_edge=False, box=None)
    for column in columns:
        first = column == columns[0]
        table.add_column(column, justify="left" if first else "right", no_wrap=True, overflow="ellipsis")
    return table


def _operations(operations: list[dict[str, Any]]) -> Table:
    table = _table("operation", "on", "self ms", "calls", "share")
    for each in operations[:_TOP]:
        milliseconds = f"{1000 * each['self_seconds']:,.1f}"
        table.add_row(each["name"], each["on"], milliseconds, f"{each['calls']:,}", percent(each["share"]))
    return table


def _ranges(ranges: list[dict[str, Any]]) -> Table:
    # Threads side by side add up, so that no share of the steps' time would stay below 100 %.
    table = _table("range", "ms, all threads", "calls", "threads")
    for each in ranges:
        table.add_row(each["name"], f"{1000 * each['seconds']:,.1f}", f"{each['calls']:,}", f"{each['threads']:.2f}")
    return table


def _shares(report: dict[str, Any]) -> Table:
    shares, cores = report["shares"], report["hardware"]["cores"]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for name, meaning in (_ON_GPU if "kernels" in shares else _ON_CPU).items():
        table.add_row(name, percent(shares[name]), meaning)
    if report["cores_used"] < _CROWDED * shares.get("operations", 0) * cores:
        got = f"{report['cores_used']:.1f} of {cores}"
        table.add_row("cores", got, "that we got: other work on this machine makes every figure here longer")
    return table
