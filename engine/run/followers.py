"""The processes of a run that only train: under torchrun, all but the first.

The first process generates, measures, writes and speaks, as it does alone. Whenever it trains a cycle, it says which
one, with the weights and moments to begin with; the others make the same batches from the run directory, which they
only read, and train along. They heed no signal but the first process, and go when it goes.
"""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import safetensors.torch

from sector.engine.config import RunConfig
from sector.engine.errors import WorkersDied
from sector.engine.run.directory import RunDir
from sector.engine.run.plan import TrainingPlan, plan_of, untrained
from sector.engine.run.stopping import ENDING
from sector.engine.training.data_parallel import FirstLeft, Ranks, process_group
from sector.engine.training.distill import (
    TrainState,
    restore,
    start_training,
    state_tensors,
    train_cycle,
    tune_allocator,
)
from sector.engine.training.torchrun import leads


def followed() -> bool:
    """True where this was not the first process: then it has trained along, and the run is over."""
    if leads():
        return False
    # Whoever asks all processes to end asks the first one, too, which tells the others when its step is saved.
    for number in (*ENDING, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    with process_group() as ranks:
        assert ranks is not None, "only a first process may be alone"
        train_along(ranks)
    return True


@contextmanager
def leading() -> Iterator[Ranks | None]:
    """The processes that train along for the time of a `with`; None outside of torchrun."""
    with process_group() as ranks:
        try:
            yield ranks
        finally:
            if ranks:
                ranks.leave()
                with suppress(WorkersDied):
                    ranks.say(b"")


def announce(ranks: Ranks, run: RunDir, config: RunConfig, plan: TrainingPlan, cycle: int, state: TrainState) -> None:
    """Tell the others what is trained now, and from where."""
    what = {"run": str(run.root.resolve()), "config": config.model_dump(), "round": plan.phase.number, "cycle": cycle}
    where = {"seed": plan.seed, "step": state.step, "tokens": state.tokens}
    ranks.say(json.dumps({**what, **where}).encode() + b"\n" + safetensors.torch.save(state_tensors(state)))


def train_along(ranks: Ranks) -> None:
    """Train what the first process says, until it says nothing more. WorkersDied if it is gone."""
    tune_allocator()
    while said := ranks.hear():
        line, _, tensors = said.partition(b"\n")
        told = json.loads(line)
        run, config = RunDir(Path(told["run"])), RunConfig.model_validate(told["config"])
        phase = run.round(told["round"]) if told["round"] else run.supervised(config.supervised.max_digits)
        plan = plan_of(run, config, phase, told["seed"])
        state = start_training(untrained(run, config), plan.trainer, told["tokens"])
        restore(state, safetensors.torch.load(tensors), told["step"])
        cycle = told["cycle"]
        steps, draws = plan.cycles[cycle], plan.draws(cycle)
        with suppress(FirstLeft):
            for _ in train_cycle(state, plan.batches(cycle), plan.trainer, steps, draws, ranks):
                pass
