"""`sector generate`: examples that the filter accepted, as a file or as a folder of parts."""

from typing import TYPE_CHECKING, Annotated

from rich.console import Group
from rich.table import Table

from sector.cli import _options as options
from sector.cli._errors import Interrupted
from sector.cli._groups import EngineOptions, ModelOptions, with_groups
from sector.cli._output import Output, unwrapped
from sector.engine.config import MOST
from sector.engine.shares import percent

if TYPE_CHECKING:
    from sector.engine.run.labels import Labels


@with_groups
def generate(
    named: ModelOptions,
    digits: options.Digits,
    count: Annotated[int, options.number("M", "Number of problems to try.", 1, MOST)],
    # Not a Path, which would drop the slash at the end.
    out: Annotated[str, options.option("FILE.parquet|DIR/", "Parquet file to write, or folder of parts.")],
    chosen: EngineOptions,
    temperature: options.Temperature = 0.0,
    hard_share: options.HardShare = options.DEFAULTS.hard_share,
    seed: options.Seed = 0,
    workers: options.Workers = None,
    part_rows: options.PartRows = None,
    compression: options.PartCompression = None,
    as_json: options.Json = False,
) -> None:
    """Try random problems with the improved policy, and write the answers on which the model agrees with itself.

    FILE.preview.jsonl, beside the Parquet file, holds a few examples to read.
    A name with a slash at its end is a folder of Parquet files with
    manifest.json. After an interruption the same command goes on with it.
    It may be an address of fsspec, such as s3://bucket/nine/.

    Examples:

      sector generate --model runs/first --digits 12 --count 1000 --out 12.parquet
      sector generate --model c9 --digits 9 --count 900 --out 9.parquet --json
      sector generate --model c9 --digits 9 --count 90 --out 9.parquet --workers 2
      sector generate --model c9 --digits 9 --count 1000000 --out nine/
    """
    from sector.engine.api.labels import generate as label
    from sector.engine.api.labels import is_folder

    output, model = Output(as_json), named.checked()
    try:
        with output.progress(f"generating {digits} digits") as bar:
            labels = label(
                model, digits, count, out, temperature=temperature, hard_share=hard_share, seed=seed, workers=workers,
                part_rows=part_rows, compression=compression, on_progress=bar.at, **chosen.arguments,
            )  # fmt: skip
    except KeyboardInterrupt as error:
        kept = "finished parts are kept, and the same command goes on" if is_folder(out) else "nothing is written"
        raise Interrupted(f"interrupted; {kept}") from error
    for name in labels.this_call.mended if labels.this_call else ():
        output.say(f"{name} was damaged; made again")
    output.data(labels.as_json(), lambda: _view(labels))


def _view(labels: "Labels") -> Group:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", style="dim", no_wrap=True)
    counts = labels.counts
    fates = {"accepted": counts.accepted}
    if counts.thought_through:
        fates["  thought through"] = counts.thought_through
    if counts.leaked:
        fates["  leaked"] = counts.leaked
    fates |= {f"  {reason.replace('_', ' ')}": count for reason, count in counts.rejected.items()}
    table.add_row("tried", f"{counts.tried:,}", "")
    for name, count in fates.items():
        table.add_row(name, f"{count:,}", percent(count / counts.tried))
    table.add_row("tokens", f"{counts.tokens:,}", "")
    if labels.work.tried:
        table.add_row("generated tokens/s", f"{labels.tokens_per_s:,.0f}", "")
        table.add_row("accepted examples/s", f"{labels.accepted_per_s:,.0f}", f"{counts.seconds:.1f} s")
    return Group(table, unwrapped(_written(labels)))


def _written(labels: "Labels") -> str:
    """Return the name of the file or folder, and the share of this call in a folder."""
    call, whole = labels.this_call, f"{labels.file} ({_parts(labels.num_parts)})"
    if call is None:
        return f"written to {labels.file}"
    if not call.parts:
        return f"complete before this call: {whole}"
    if call.parts == labels.num_parts:
        return f"written to {whole}"
    return f"written to {whole}; seconds and rates are of this call, which made {_parts(call.parts)}"


def _parts(count: int) -> str:
    return f"{count:,} part{'s' * (count != 1)}"
