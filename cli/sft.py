"""`sector sft`: the supervised phase alone."""

from pathlib import Path
from typing import Annotated

import typer

from sector.cli import _options as options
from sector.cli._output import Output


def sft(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Run directory, new or to be resumed.", show_default=False)],
    task: options.MaybeTask = None,
    preset: options.MaybePreset = None,
    pretrained: options.MaybePretrained = None,
    seed: options.MaybeSeed = None,
    engine: options.MaybeEngine = None,
    filter_name: options.MaybeFilter = None,
    config: options.Config = None,
    settings: options.Settings = None,
    track: options.Track = None,
    as_json: options.Json = False,
) -> None:
    """Run the supervised phase alone: short problems with true answers, fast and slow.

    It ends when short problems are right and the model agrees with itself
    one digit further. `sector run --out DIR` goes on from there. Under
    torchrun several processes or GPUs share the training.

    Examples:

      sector sft --out runs/first
      sector sft --out runs/seed1 --seed 1 --json
    """
    from sector.cli._follow import asked_for, check_alone, follow, next_steps

    given, source = asked_for(
        config, settings, filter_name, pretrained, task=task, preset=preset, seed=seed, engine=engine
    )
    check_alone(out, given, source)
    from sector.engine.report.trackers import log_to_trackers
    from sector.engine.run.followers import followed, leading
    from sector.engine.run.open import open_run
    from sector.engine.run.phases import Phases
    from sector.engine.run.stopping import stop_on_signals

    if followed():
        return
    output = Output(as_json)
    with leading() as ranks, stop_on_signals() as stopping, open_run(out, given, source) as (run_dir, settled):
        phases = Phases(run_dir, settled, stopping=stopping, ranks=ranks)
        events = log_to_trackers(phases.supervise(), run_dir, settled, track or ())
        follow(events, run_dir, settled, output, stopping)
    next_steps(run_dir, settled, output)
