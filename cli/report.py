"""`sector report`: finished runs as one HTML page."""

from pathlib import Path
from typing import Annotated

import typer

from sector.cli import _options as options
from sector.cli._output import Output
from sector.cli._streams import printable


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories; that of a grid names all its runs.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Where the page goes.", show_default="RUN/report.html")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write what became of runs as one HTML page, and its charts as PNGs.

    The page needs nothing but itself: no network, no script. At the top it
    says whether the run worked; then accuracy by length and round, label
    error and acceptance, time, how far agreement predicts accuracy, mistakes,
    and problems as the model solved them. Several runs are compared, those
    that differ in the seed alone as one, with intervals.

    Examples:

      sector report runs/first
      sector report runs/first runs/seed1 runs/seed2 --out three.html
      sector report runs/votes --out votes.html
    """
    from sector.engine.report import write_report

    output = Output(as_json)
    with output.progress("writing the report"):
        written = write_report(runs, out)
    runs_read = [run.as_json() for run in written.runs]
    values = {"page": str(written.page), "pictures": [str(path) for path in written.pictures], "runs": runs_read}
    lines = [f"{each['run']}: {each['verdict']}" for each in runs_read]
    lines.append(f"the page is {written.page}, its pictures are in {written.beside}")
    output.data(values, lambda: "\n".join(map(printable, lines)))
