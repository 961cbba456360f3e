"""Followers: the ranks of a run that only train. Under torchrun these are all ranks but the first, the leader.

The leader does all other work: it generates, measures, writes files and prints. For each training cycle it sends the
followers the plan, the weights and the moments. They build the same batches from the run directory, which they only
read. They ignore signals and end when the leader ends.
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
from sector.engine.run.plan import TrainingPlan, initial_model, plan_of
from sector.engine.run.stop_signals import ENDING
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


def follow_leader() -> bool:
    """Return whether this process is a follower. A follower trains first, and returns when the run is over."""
    if leads():
        return False
    # A signal to all processes reaches the leader too. It ends the followers once its step is saved.
    for number in (*ENDING, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    with process_group() as ranks:
        assert ranks is not None, "a follower has a leader"
        train_along(ranks)
    return True


@contextmanager
def lead_ranks() -> Iterator[Ranks | None]:
    """Yield the ranks that share the training, and dismiss the followers at the end; None outside of torchrun."""
    with process_group() as ranks:
        try:
            yield ranks
        finally:
            if ranks:
                ranks.leave()
                with suppress(WorkersDied):
                    ranks.say(b"")


def announce(ranks: Ranks, run: RunDir, config: RunConfig, plan: TrainingPlan, cycle: int, state: TrainState) -> None:
    """Send the followers the plan, cycle and state of a training."""
    header = {
        "run": str(run.root.resolve()),
        "config": config.model_dump(),
        "round": plan.phase.number,
        "cycle": cycle,
        "seed": plan.seed,
        "step": state.step,
        "tokens": state.tokens,
    }
    ranks.say(json.dumps(header).encode() + b"\n" + safetensors.torch.save(state_tensors(state)))


def train_along(ranks: Ranks) -> None:
    """Train each cycle that the leader announces, until it dismisses the followers. Raise WorkersDied if it is gone."""
    tune_allocator()
    while message := ranks.hear():
        line, _, tensors = message.partition(b"\n")
        header = json.loads(line)
        run, config = RunDir(Path(header["run"])), RunConfig.model_validate(header["config"])
        phase = run.round(header["round"]) if header["round"] else run.supervised(config.supervised.max_digits)
        plan = plan_of(run, config, phase, header["seed"])
        state = start_training(initial_model(run, config), plan.trainer, header["tokens"])
        restore(state, safetensors.torch.load(tensors), header["step"])
        cycle = header["cycle"]
        steps, draws = plan.cycles[cycle], plan.draws(cycle)
        with suppress(FirstLeft):
            for _ in train_cycle(state, plan.batches(cycle), plan.trainer, steps, draws, ranks):
                pass
