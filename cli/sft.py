"""`sector sft`: the supervised phase alone."""

from pathlib import Path
from typing import Annotated

from sector.cli import _options as options
from sector.cli._groups import RunOptions, with_groups


@with_groups
def sft(
    out: Annotated[Path, options.option("DIR", "Run directory, to be created or resumed.")],
    chosen: RunOptions,
    as_json: options.Json = False,
) -> None:
    """Run only the supervised phase: train on short problems with true answers.

    The model learns to answer directly (fast) and to simplify (slow). The
    phase ends when it solves short problems and agrees with itself on
    problems of one digit more. `sector run --out DIR` continues the run.
    Under torchrun, several processes or GPUs share the training.

    Examples:

      sector sft --out runs/first
      sector sft --out runs/seed1 --seed 1 --json
    """
    from sector.cli._follow import play

    values, source = chosen.chosen()
    play(out, values, source, as_json, chosen.track or (), supervised_only=True)
