"""`sector run`: everything, from an empty start to the last length."""

from pathlib import Path
from typing import Annotated

import typer

from sector.cli import _options as options
from sector.cli._output import Output


def run(
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Run directory, new or to be resumed.", show_default="runs/PRESET-seedSEED"),
    ] = None,
    until: Annotated[
        int | None,
        typer.Option(metavar="N", help="Digits at which the run is done.", show_default=str(options.DEFAULTS.until)),
    ] = None,
    task: options.MaybeTask = None,
    preset: options.MaybePreset = None,
    pretrained: options.MaybePretrained = None,
    seed: options.MaybeSeed = None,
    engine: options.MaybeEngine = None,
    filter_name: options.MaybeFilter = None,
    config: options.Config = None,
    settings: options.Settings = None,
    track: options.Track = None,
    workers: options.Workers = None,
    as_json: options.Json = False,
) -> None:
    """Teach a model to add, or another --task: a supervised start on short problems, then self-play.

    After the supervised phase no true answer is seen. The same command on an
    existing directory resumes it; --until may be raised then, and --workers
    be another number: what is written stays the same. Exit code 3: the model
    no longer agrees with itself; its last good weights are kept. Ctrl-C,
    SIGTERM and SIGHUP save the step at hand; the exit code is 0 then, or 130
    after Ctrl-C.

    Under torchrun several processes or GPUs share the training; the first
    does all else. The weights are the same to the bit.

    Examples:

      sector run
      sector run --out runs/short --until 8
      sector run --out runs/paper --filter paper --seed 1
      sector run --task subtraction
      sector run --workers 8
      torchrun --nproc-per-node 4 --no-python sector run --workers 4
      sector run --config my.toml --json > events.jsonl
      sector run --track wandb
      sector run --pretrained ~/models/SmolLM2-135M --set round.candidates=200
    """
    from sector.cli._follow import asked_for, check_alone, default_out, follow, next_steps

    given, source = asked_for(
        config, settings, filter_name, pretrained, until=until, task=task, preset=preset, seed=seed, engine=engine
    )
    root = out or default_out(given)
    check_alone(root, given, source)
    from sector.engine.policy.workers import start_workers
    from sector.engine.report.trackers import log_to_trackers
    from sector.engine.run.followers import followed, leading
    from sector.engine.run.open import open_run
    from sector.engine.run.stopping import stop_on_signals
    from sector.engine.selfplay import self_play

    if followed():
        return
    output = Output(as_json)
    with (
        leading() as ranks,
        stop_on_signals() as stopping,
        open_run(root, given, source) as (run_dir, settled),
        start_workers(workers, settled.engine, settled.vllm) as crew,
    ):
        events = log_to_trackers(self_play(run_dir, settled, crew, stopping, ranks), run_dir, settled, track or ())
        follow(events, run_dir, settled, output, stopping)
    next_steps(run_dir, settled, output)
