"""`sector generate`: a file of examples that the filter accepted."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.table import Table

from sector.cli import _options as options
from sector.cli._output import Output, unwrapped
from sector.engine.config import MOST, parse_settings
from sector.engine.shares import percent


def generate(
    model: options.Model,
    digits: options.Digits,
    count: Annotated[int, options.number("M", "Number of problems to try.", 1, MOST, show_default=False)],
    out: Annotated[Path, typer.Option(metavar="FILE.parquet", help="Parquet file to write.", show_default=False)],
    engine: options.EngineOption = "native",
    filter_name: options.FilterOption = options.DEFAULT_FILTER,
    k: options.K = options.DEFAULTS.filter.k,
    temperature: options.Temperature = 0.0,
    hard_share: options.HardShare = options.DEFAULTS.hard_share,
    settings: options.VllmSettings = None,
    seed: options.Seed = 0,
    task: options.ModelTask = None,
    workers: options.Workers = None,
    as_json: options.Json = False,
) -> None:
    """Try random problems with the improved policy, and write the answers on which the model agrees with itself.

    FILE.preview.jsonl, beside the Parquet file, holds a few examples to read.

    Examples:

      sector generate --model runs/first --digits 12 --count 1000 --out 12.parquet
      sector generate --model c9 --digits 9 --count 900 --out 9.parquet --json
      sector generate --model c9 --digits 9 --count 90 --out 9.parquet --workers 2
    """
    from sector.engine.api.labels import generate as label

    output = Output(as_json)
    with output.progress(f"generating {digits} digits") as bar:
        labels = label(
            model, digits, count, out, engine=engine, filter=filter_name, k=k, temperature=temperature,
            hard_share=hard_share, seed=seed, on_progress=bar.at, workers=workers,
            settings=parse_settings(settings or ()),
        )  # fmt: skip
    report = labels.as_json()
    output.data(report, lambda: _view(report))


def _view(report: dict[str, Any]) -> Group:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", style="dim", no_wrap=True)
    tried = report["tried"]
    counts = {"accepted": report["accepted"]}
    if report["thought_through"]:
        counts["  thought through"] = report["thought_through"]
    if report["leaked"]:
        counts["  leaked"] = report["leaked"]
    counts |= {f"  {reason.replace('_', ' ')}": count for reason, count in report["rejected"].items()}
    table.add_row("tried", f"{tried:,}", "")
    for name, count in counts.items():
        table.add_row(name, f"{count:,}", percent(count / tried))
    table.add_row("generated tokens/s", f"{report['tokens_per_s']:,.0f}", f"{report['tokens']:,} tokens")
    table.add_row("accepted examples/s", f"{report['accepted_per_s']:,.0f}", f"{report['seconds']:.1f} s")
    return Group(table, unwrapped(f"written to {report['file']}"))
