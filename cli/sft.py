"""`sector sft`: the supervised phase alone."""

from pathlib import Path
from typing import Annotated

import typer

from sector.cli import _options as options


def sft(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Run directory, to be created or resumed.", show_default=False)
    ],
    task: options.RunTask = None,
    preset: options.RunPreset = None,
    pretrained: options.Pretrained = None,
    seed: options.RunSeed = None,
    engine: options.RunEngine = None,
    filter_name: options.RunFilter = None,
    config: options.Config = None,
    settings: options.RunSettings = None,
    track: options.Track = None,
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
    from sector.engine.api.settings import chosen_settings

    values, source = chosen_settings(
        config, settings or (), filter_name, pretrained, task=task, preset=preset, seed=seed, engine=engine
    )
    play(out, values, source, as_json, track or (), supervised_only=True)
