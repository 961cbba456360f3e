"""`sector distill`: the training of one round, on files of examples."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sector.cli import _options as options
from sector.cli._groups import ModelOptions, with_groups
from sector.cli._output import Output
from sector.cli._streams import printable
from sector.engine.config import MOST, WINDOW_ROWS

if TYPE_CHECKING:
    from sector.engine.run.steps import DistillRecord


@with_groups
def distill(
    named: ModelOptions,
    data: options.Data,
    out: Annotated[Path, options.option("DIR", "Checkpoint directory to create.")],
    replay: options.Replay = None,
    steps: Annotated[
        int | None,
        options.number(
            "N", "Number of training steps.", 1, MOST, show_default="the largest number in a round of the run"
        ),
    ] = None,
    window: Annotated[
        int | None,
        options.number("N", "Most rows of a folder in memory at a time.", 1, MOST, show_default=str(WINDOW_ROWS)),
    ] = None,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Train a model on examples that the filter accepted, as in one round.

    The model learns to answer directly (fast) and to simplify (slow). The
    longest problems in the data count as new, all others as replay. If --model
    is a run directory, the examples of its rounds are replayed too. Under
    torchrun, several processes or GPUs share the training, with the same
    weights to the bit.

    A folder of `sector generate` trains as one file with the same rows would.
    If it has more rows than --window, its parts pass by one after another,
    again and again, shuffled within windows of at most so many rows.

    Examples:

      sector distill --model runs/first --data 12.parquet --out checkpoints/12
      sector distill --model c12 --data 13.parquet --replay 12.parquet --out c13
      sector distill --model c12 --data thirteen/ --out c13
      torchrun --nproc-per-node 2 --no-python sector distill ...
    """
    from sector.engine.run.steps import distill_files
    from sector.engine.training.torchrun import leads

    output, model = Output(as_json), named.checked()
    with output.progress("distilling") as bar:
        record = distill_files(
            model, data, replay or [], out, steps=steps, seed=seed, on_progress=bar.at, window=window
        )
    if leads():
        output.data(record.as_json(), lambda: _view(record))


def _view(record: "DistillRecord") -> str:
    return (
        f"{record.digits} digits: {record.examples:,} new examples, {record.replay_examples:,} replayed\n"
        f"{record.steps} steps in {record.seconds:.1f} s, {record.tokens_per_s:,.0f} tokens/s, "
        f"last loss {record.loss:.4f}\n"
        f"new checkpoint: {printable(record.checkpoint)}"
    )
