"""`sector report`: runs, or a data set, as one HTML page."""

from pathlib import Path
from typing import Annotated

import typer

from sector.cli import _options as options
from sector.cli._output import Output
from sector.cli._streams import printable


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Run directories, or a folder of `sector generate`. The directory of a grid stands for all its runs.",
        ),
    ],
    out: Annotated[
        Path | None, options.option("FILE.html", "HTML file to write.", show_default="RUN/report.html or DIR.html")
    ] = None,
    task: options.ModelTask = None,
    as_json: options.Json = False,
) -> None:
    """Write an HTML page about one or more runs, and its charts as PNG files.

    The page says first whether the run worked. Then come accuracy by length
    and round, label error and acceptance, time, how well agreement predicts
    accuracy, mistakes, and examples of solved problems. Several runs are
    compared; runs that differ in the seed alone form one group, with
    intervals. Then rise and fall of each group are shown, rounds survived by
    the leak of the gate, and which figure foretells a collapse. The page is
    a single file without scripts, and loads nothing from the network. The
    page of a data set shows counts, settings and rows.

    Examples:

      sector report runs/first
      sector report runs/first runs/seed1 runs/seed2 --out three.html
      sector report runs/votes --out votes.html
      sector report twelve/
    """
    from sector.engine.report import write_report

    output = Output(as_json)
    with output.progress("writing the report"):
        written = write_report(runs, out)
    records = [run.as_json() for run in written.runs]
    values: dict[str, object] = {
        "page": str(written.page),
        "pictures": [str(path) for path in written.pictures],
        "runs": records,
        "alarms": [alarm.as_json() for alarm in written.alarms],
    }
    lines = [f"{run.root}: {run.conclusion.headline}; {_disk(run.disk)}" for run in written.runs]
    if written.dataset:
        fates = written.dataset.fates
        values["dataset"] = written.dataset.as_json()
        lines = [f"{fates.accepted:,} of {fates.tried:,} candidates accepted", f"the page is {written.page}"]
    else:
        lines.append(f"the page is {written.page}, its charts are in {written.beside}")
    output.data(values, lambda: "\n".join(map(printable, lines)))


def _disk(sizes: dict[str, int]) -> str:
    """Return the disk of a run in words: the total, and the largest kinds of files."""
    kinds = sorted((kind for kind in sizes if kind != "total" and sizes[kind]), key=lambda kind: -sizes[kind])
    parts = ", ".join(f"{kind} {sizes[kind] / 1e6:.1f}" for kind in kinds)
    return f"{sizes['total'] / 1e6:.1f} MB on disk ({parts})"
