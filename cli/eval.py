"""`sector eval`: exact-match accuracy by length."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from sector.cli import _options as options
from sector.cli._output import Output, unwrapped
from sector.engine.config import MOST, parse_settings
from sector.engine.shares import hundredths, percent

if TYPE_CHECKING:
    from sector.engine.report.evaluate import Report


def evaluate(
    model: options.Model,
    digits: Annotated[str, typer.Option(metavar="LENGTHS", help="Lengths: 7, 1-29 or 3,5,8-10.")] = "1-29",
    samples: Annotated[
        int,
        typer.Option(min=1, max=MOST, metavar="N", help="Problems of each length, and of each family of them."),
    ] = 1000,
    policy: options.PolicyOption = "fast",
    suite: Annotated[bool, typer.Option(help="Test long carries, unequal lengths and leading zeros, too.")] = True,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where the picture and the JSON go.", show_default="the run's plots/, if it has one"
        ),
    ] = None,
    engine: options.EngineOption = "native",
    filter_name: options.FilterOption = options.DEFAULT_FILTER,
    k: options.K = options.DEFAULTS.filter.k,
    settings: options.Settings = None,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Measure exact-match accuracy by length, with Wilson 95 % intervals, as a table and a PNG.

    fast: greedy direct answers. slow: one simplification, which must be right
    in every digit. improved: what it does not believe counts as wrong.

    Examples:

      sector eval --model runs/first
      sector eval --model runs/first --digits 25-32 --policy improved --no-suite
      sector eval --model checkpoints/12 --digits 1-12 --out eval12 --json
    """
    from sector.engine.report.evaluate import evaluate_model

    output = Output(as_json)
    lengths, looks = options.parse_lengths(digits), options.filter_config(filter_name, k)
    with output.progress(f"evaluating, {policy} policy") as bar:
        report = evaluate_model(
            model, lengths, samples, policy=policy, suite=suite, out=out, engine=engine, settings=looks, seed=seed,
            on_progress=bar.at, given=parse_settings(settings or ()),
        )  # fmt: skip
    output.data(report.values, lambda: _view(report))
    output.say(_where(report))


def _where(report: "Report") -> str:
    """Where it is written, or why nowhere."""
    if report.written:
        picture, record = report.written
        return f"picture: {picture}, record: {record}"
    if report.kept:
        return f"not written: {report.kept} holds more of the same weights and stays; name a directory with --out"
    return "no picture: name a directory with --out"


def _view(report: "Report") -> Group:
    families = [name for name in dict.fromkeys(score.name for score in report.scores) if name != "uniform"]
    at = {(score.name, score.digits): score for score in report.scores}
    table = Table(header_style="bold", pad_edge=False, collapse_padding=True, box=None)
    for name in ("digits", "uniform", "95 %", *families):
        table.add_column(name, justify="right", no_wrap=True)
    for digits in dict.fromkeys(score.digits for score in report.scores):
        score = at["uniform", digits]
        low, high = (hundredths(bound) for bound in score.interval)
        others = [_colored(at[name, digits].accuracy) for name in families]
        table.add_row(str(digits), _colored(score.accuracy), f"{low}-{high}", *others)
    # As a title of the table it would be folded to the table's width.
    return Group(unwrapped(f"{report.title}, with Wilson 95 % intervals", style="bold"), table)


def _colored(accuracy: float) -> Text:
    color = "green" if accuracy >= 0.98 else "yellow" if accuracy >= 0.9 else "red"
    return Text(percent(accuracy), style=color)
