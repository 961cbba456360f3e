"""The trainer beside the same step in plain eager torch: same weights, same examples, same optimizers.

The plain step is the textbook's: the fast answer and the simplification are rows of their own, each behind a prompt of
its own; shards one after another, every operation on all cores; gradients accumulate in `.grad`; glibc's allocator as
it is. Allocator settings last for a process, so each measurement runs in a fresh one, taking turns:

    python -m sector.benchmarks.training runs/first --digits 20 --steps 40 [--plain]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sector.engine import tokens
from sector.engine.checkpoint import load_sector
from sector.engine.config import RoundConfig, TrainerConfig
from sector.engine.distill import TrainState, lay_out, start_training, train_cycle, tune_allocator
from sector.engine.examples import Examples
from sector.engine.model import SectorForCausalLM
from sector.engine.problem import draw_problems
from sector.engine.seeding import generator
from sector.engine.supervised import label
from sector.engine.task import Layout, Mode
from sector.engine.tasks import find_task

_WARM_UP = 5


def compare(model: Path, digits: int, steps: int, repeats: int, on_progress: Callable[[int, int, str], None]) -> Any:
    """Tokens per second of both, medians and spread, and their ratio. Tokens are counted in our layout for both."""
    rates: dict[str, list[float]] = {"sector": [], "plain": []}
    for turn in range(repeats):
        for index, (name, own) in enumerate(rates.items()):
            on_progress(2 * turn + index, 2 * repeats, f"training, {name}")
            own.append(_in_fresh_process(model, digits, steps, plain=name == "plain"))
    medians = {name: statistics.median(own) for name, own in rates.items()}
    return {
        "digits": digits,
        "steps": steps,
        "tokens_per_s": medians,
        "low": {name: min(own) for name, own in rates.items()},
        "high": {name: max(own) for name, own in rates.items()},
        "ratio": medians["sector"] / medians["plain"],
    }


def measure(model: Path, digits: int, steps: int, plain: bool) -> float:
    """Tokens per second over `steps` training steps at one length, after a warm-up."""
    if not plain:
        tune_allocator()
    weights = load_sector(model)
    config = RoundConfig().trainer
    draws = generator(0, "bench-training")
    examples = label(draw_problems(digits, config.num_shards * config.shard_rows, draws))
    shards = [examples[start : start + config.shard_rows] for start in range(0, len(examples), config.shard_rows)]
    state = start_training(weights, config)
    order = weights.config.digit_order
    step = (
        _plain_steps(state, shards, config, find_task(weights.config.task).layout(order))
        if plain
        else _our_steps(state, shards, config, steps)
    )
    for _ in range(_WARM_UP):
        next(step)
    start = time.perf_counter()
    for _ in range(steps):
        next(step)
    seconds = time.perf_counter() - start
    count = sum(lay_out(shard, order, config, draws).ids.numel() for shard in shards)
    return steps * count / seconds


def _our_steps(state: TrainState, shards: list[Examples], config: TrainerConfig, steps: int) -> Any:
    yield from train_cycle(state, lambda _: shards, config, steps + _WARM_UP, seed=0)


def _plain_steps(state: TrainState, shards: list[Examples], config: TrainerConfig, layout: Layout) -> Any:
    state.model.train()
    parameters = list(state.model.parameters())
    while True:
        state.model.zero_grad()
        total = 0.0
        for examples in shards:
            loss = _plain_loss(state, examples, config, layout) / len(shards)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        for optimizer in state.optimizers:
            optimizer.step()
        yield total


def _plain_loss(state: TrainState, examples: Examples, config: TrainerConfig, layout: Layout) -> Tensor:
    fast = _completion_loss(state, examples, Mode.ANSWER, layout.answer_ids(examples.answers), layout)
    thought = layout.simplification_ids(examples.rest, examples.digit)
    slow = _completion_loss(state, examples, Mode.THINK, thought, layout)
    return config.fast_weight * fast + (1 - config.fast_weight) * slow


def _completion_loss(state: TrainState, examples: Examples, mode: Mode, target: Tensor, layout: Layout) -> Tensor:
    """Cross-entropy of a completion `[B, C]` behind its prompt."""
    ids = torch.cat([layout.prompt_ids(examples.problems, mode), target[:, :-1]], dim=1)
    first = ids.shape[1] - target.shape[1]
    assert isinstance(state.model, SectorForCausalLM), "the step is compared for our own models"
    hidden = state.model.hidden_states(ids)[:, first:]
    logits = state.model.class_logits(hidden, ids[:, first:])
    return F.cross_entropy(logits.flatten(0, 1), tokens.class_of(target).flatten())


def _in_fresh_process(model: Path, digits: int, steps: int, plain: bool) -> float:
    command = [
        sys.executable,
        "-P",
        "-m",
        "sector.benchmarks.training",
        str(model),
        f"--digits={digits}",
        f"--steps={steps}",
    ]
    done = subprocess.run([*command, *["--plain"] * plain], check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["tokens_per_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--digits", type=int, default=20)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--plain", action="store_true")
    taken = parser.parse_args()
    print(json.dumps({"tokens_per_s": measure(taken.model, taken.digits, taken.steps, taken.plain)}))


if __name__ == "__main__":
    main()
