"""`sector export`: a run as two folders for a hub."""

from pathlib import Path
from typing import Annotated

import typer

from sector.cli import _options as options
from sector.cli._output import Output
from sector.cli._streams import printable


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory; it is only read.")],
    to: Annotated[Path, options.option("DIR", "Directory to create.")],
    wide_heads: Annotated[
        bool,
        typer.Option("--wide-heads", help="Widen the heads of a model of text with zeros, for vLLM on a CPU."),
    ] = False,
    task: options.ModelTask = None,
    as_json: options.Json = False,
) -> None:
    """Write the best weights of a run and its examples as two folders, in the form of the Hugging Face hub.

    DIR/model holds weights, config, tokenizer and a card with the audited
    figures. DIR/dataset holds a card and a parquet file with the columns
    prompt and completion, as datasets, pandas and the trainers of TRL read
    them; further columns hold chains of thought and guesses. Nothing is
    uploaded.

    Examples:

      sector export runs/first --to first-on-hub
      sector export runs/text --to text-served --wide-heads
    """
    from sector.engine.api.choice import check_task
    from sector.engine.api.hub import export as write

    output = Output(as_json)
    check_task(run, task)
    with output.progress("exporting") as bar:
        written = write(run, to, wide_heads=wide_heads, on_progress=bar.at)
    output.data(
        written.as_json(),
        lambda: printable(f"model: {written.model}\ndataset: {written.dataset} ({written.rows:,} rows)", keep="\n"),
    )
