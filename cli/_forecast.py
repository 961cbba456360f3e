"""View of `sector run --dry-run`: phases with their time, tokens and disk."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from sector.cli._output import Output, clock
from sector.engine.config import Values, run_config

if TYPE_CHECKING:
    from sector.engine.run.forecast import Forecast, PhaseForecast


def show_forecast(values: Values, source: str, as_json: bool, out: Path | None, workers: int | None) -> None:
    """Measure and print the forecast of a run with these settings. Raise InputError if they are invalid.

    out: directory of the run; the forecast does not read it.
    workers: workers of the run; the forecast measures without them.
    """
    config = run_config(values, source)
    from sector.engine.run.forecast import forecast

    output = Output(as_json)
    with output.progress("measuring this machine"):
        result = forecast(config)
    if out is not None and out.exists():
        output.say(f"{out} exists; the forecast is of a new run with the settings of this command")
    if workers is not None:
        output.say("measured in this process alone; workers shorten the generation, the probes and the audits")
    output.data(result.as_json(), lambda: _view(result))


def _view(result: "Forecast") -> Group:
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "right", "right", "right", "right", "right", "right", "right", "right"):
        table.add_column(justify=justify, no_wrap=True)
    table.add_row("digits", "cycles", "generate", "train", "probe", "audit", "M tokens", "MB", "in all")
    for phase in result.least:
        table.add_row(*_row(phase))
    least, most = result.total["least"], result.total["most"]
    rounds = sum(phase.phase == "round" for phase in result.most)
    measured = ", ".join(map(str, result.rates))
    told = (
        f"At least {clock(least['seconds'])}, {_megabytes(least['bytes'])}: "
        "each goal met after one cycle, each leap as far as the settings allow.\n"
        f"At most {clock(most['seconds'])}, {_megabytes(most['bytes'])}: "
        f"all cycles, {rounds} rounds of one more digit each; rounds rolled back come on top.\n"
        f"{_megabytes(result.kept_bytes)} of the least work stay, and {_megabytes(result.snapshot_bytes)} more while a "
        "phase trains; plots and logs come on top.\n"
        f"An estimate: measured in {result.seconds_measured:.0f} s by this engine and trainer on {result.weights} "
        f"weights at {measured} digits, beside what else runs now."
    )
    return Group(table, Text(told))


def _row(phase: "PhaseForecast") -> list[str]:
    seconds = (phase.seconds_generate, phase.seconds_train, phase.seconds_probe, phase.seconds_audit)
    tokens = (phase.tokens_generated + phase.tokens_trained) / 1e6
    return [
        f"1-{phase.digits}" if phase.phase == "sft" else str(phase.digits),
        str(phase.cycles),
        *map(clock, seconds),
        f"{tokens:.1f}",
        f"{phase.bytes / 1e6:.1f}",
        clock(phase.seconds),
    ]


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB"
