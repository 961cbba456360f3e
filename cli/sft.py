"""`sector sft`: the supervised phase alone."""

from pathlib import Path
from typing import Annotated

import typer

from sector.cli import _options as options
from sector.cli._output import Output


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
    from sector.cli._follow import asked_for, check_alone, follow, next_steps

    values, source = asked_for(
        config, settings, filter_name, pretrained, task=task, preset=preset, seed=seed, engine=engine
    )
    check_alone(out, values, source)
    from sector.engine.report.trackers import log_to_trackers
    from sector.engine.run.followers import followed, leading
    from sector.engine.run.open import open_run
    from sector.engine.run.phases import Phases
    from sector.engine.run.stopping import stop_on_signals

    if followed():
        return
    output = Output(as_json)
    with leading() as ranks, stop_on_signals() as stopping, open_run(out, values, source) as (run_dir, run_config):
        events = Phases(run_dir, run_config, stopping=stopping, ranks=ranks).supervise()
        follow(log_to_trackers(events, run_dir, run_config, track or ()), run_dir, run_config, output, stopping)
    next_steps(run_dir, run_config, output)
