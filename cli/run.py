"""`sector run`: the whole loop, from new weights to the last length."""

from pathlib import Path
from typing import Annotated

from sector.cli import _options as options
from sector.cli._groups import RunOptions, with_groups


@with_groups
def run(
    *,
    out: Annotated[
        Path | None,
        options.option("DIR", "Run directory, to be created or resumed.", show_default="runs/PRESET-seedSEED"),
    ] = None,
    until: Annotated[
        int | None,
        options.option("N", "Number of digits at which the run is done.", show_default=str(options.DEFAULTS.until)),
    ] = None,
    chosen: RunOptions,
    workers: options.Workers = None,
    dry_run: Annotated[
        bool, options.flag("--dry-run", "Print the time, tokens and disk to expect, and run nothing.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Train a model from start to finish: supervised on short problems, then by self-play on longer ones.

    Each round of self-play tries problems that are longer than the last,
    keeps the answers on which the model agrees with itself, and trains on
    them. The model sees true answers in the supervised phase only.

    To resume a run, repeat its command. You may raise --until then, and
    change --workers, which changes nothing in the files. Ctrl-C, SIGTERM and
    SIGHUP save the current step first; the exit code is 130 after Ctrl-C,
    else 0. Exit code 3 means that the model no longer agrees with itself;
    the last good weights are kept.

    --dry-run measures this machine for some seconds, and prints an estimate:
    the least work that the settings allow, and the most.

    Under torchrun, several processes or GPUs share the training, with the
    same weights to the bit; the first process does everything else.

    Examples:

      sector run
      sector run --out runs/short --until 8
      sector run --out runs/paper --filter paper --seed 1
      sector run --task subtraction
      sector run --workers 8
      sector run --dry-run --set keep_checkpoints=1
      torchrun --nproc-per-node 4 --no-python sector run --workers 4
      sector run --config my.toml --json > events.jsonl
      sector run --track wandb
      sector run --pretrained ~/models/SmolLM2-135M --set round.candidates=200
    """
    from sector.cli._follow import play
    from sector.cli._forecast import show_forecast
    from sector.engine.api.settings import default_out

    values, source = chosen.chosen(until)
    if dry_run:
        show_forecast(values, source, as_json, out, workers)
        return
    play(out or default_out(values), values, source, as_json, chosen.track or (), workers)
