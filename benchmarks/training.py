"""The trainer beside the same step in plain eager torch: same weights, same examples; and where its time goes.

The plain step is the textbook's: the fast answer and the simplification are rows of their own, each behind a prompt of
its own; shards one after another, every operation on all cores; gradients accumulate in `.grad`; torch's own
optimizers; glibc's allocator as it is. Allocator settings last for a process, so each measurement runs in a fresh one,
taking turns:

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

from sector.benchmarks.training_shares import PHASES, Span, Watch, shares, wall_seconds
from sector.engine.config import RoundConfig, TrainerConfig
from sector.engine.language import tokens
from sector.engine.language.examples import Examples
from sector.engine.language.layout import Layout, Mode
from sector.engine.language.operands import draw_problems
from sector.engine.models.checkpoint import load_sector
from sector.engine.models.sector import SectorForCausalLM
from sector.engine.seeding import generator
from sector.engine.spans import recording
from sector.engine.tasks import find_task
from sector.engine.training.distill import TrainState, lay_out, start_training, train_cycle, tune_allocator
from sector.engine.training.supervised import label

_WARM_UP = 5


def compare(
    model: Path, digits: int, steps: int, repeats: int, on_progress: Callable[[int, int, str], None]
) -> dict[str, Any]:
    """Tokens per second of both, medians and spread, their ratio, and where the time of our step goes.

    Tokens are counted in our layout for both. shares: of the step's wall time by phase (`training_shares.py`), means
    over the repetitions. busy: the same of the time of all threads. in_phases: the share of the wall time that
    phases explain.
    """
    done: dict[str, list[dict[str, Any]]] = {"sector": [], "plain": []}
    for turn in range(repeats):
        for index, (name, own) in enumerate(done.items()):
            on_progress(2 * turn + index, 2 * repeats, f"training, {name}")
            own.append(_in_fresh_process(model, digits, steps, plain=name == "plain"))
    rates = {name: [each["tokens_per_s"] for each in own] for name, own in done.items()}
    ours, plain = (statistics.median(own) for own in rates.values())
    return {
        "digits": digits,
        "steps": steps,
        "tokens_per_s": ours,
        "plain_tokens_per_s": plain,
        "low": {name: min(own) for name, own in rates.items()},
        "high": {name: max(own) for name, own in rates.items()},
        "ratio_to_eager": ours / plain,
        "shares": _means([each["shares"] for each in done["sector"]]),
        "busy": _means([each["busy"] for each in done["sector"]]),
        "in_phases": statistics.mean(each["in_phases"] for each in done["sector"]),
    }


def measure(model: Path, digits: int, steps: int, plain: bool) -> dict[str, Any]:
    """Tokens per second over `steps` training steps at one length, after a warm-up; of our own, shares too."""
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
    watch = Watch()
    with recording(watch.record):
        start = time.perf_counter()
        for _ in range(steps):
            next(step)
        seconds = time.perf_counter() - start
    count = sum(lay_out(shard, order, config, draws).ids.numel() for shard in shards)
    return {"tokens_per_s": steps * count / seconds, **({} if plain else _phases(watch.spans, seconds))}


def _phases(spans: list[Span], seconds: float) -> dict[str, Any]:
    """What the spans of so many seconds say, as in `compare`."""
    wall, busy = wall_seconds(spans), dict.fromkeys(PHASES.values(), 0.0)
    for span in spans:
        busy[span.name] += span.seconds
    return {"shares": shares(wall), "busy": shares(busy), "in_phases": sum(wall.values()) / seconds}


def _means(records: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.mean(each[name] for each in records) for name in records[0]}


def _our_steps(state: TrainState, shards: list[Examples], config: TrainerConfig, steps: int) -> Any:
    yield from train_cycle(state, lambda _: shards, config, steps + _WARM_UP, seed=0)


def _plain_steps(state: TrainState, shards: list[Examples], config: TrainerConfig, layout: Layout) -> Any:
    state.model.train()
    parameters, optimizers = list(state.model.parameters()), _plain_optimizers(state, config)
    while True:
        state.model.zero_grad()
        total = 0.0
        for examples in shards:
            loss = _plain_loss(state, examples, config, layout) / len(shards)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
        yield total


def _plain_optimizers(state: TrainState, config: TrainerConfig) -> list[torch.optim.Optimizer]:
    """Torch's Muon and AdamW over the parameters that ours are over."""
    assert state.muon is not None, "the step is compared for our own models"
    matrices = [parameter for group in state.muon.param_groups for parameter in group["params"]]
    muon = torch.optim.Muon(matrices, lr=config.muon_learning_rate, weight_decay=config.weight_decay)
    return [muon, state.adamw]


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


def _in_fresh_process(model: Path, digits: int, steps: int, plain: bool) -> dict[str, Any]:
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
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--digits", type=int, default=20)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--plain", action="store_true")
    taken = parser.parse_args()
    print(json.dumps(measure(taken.model, taken.digits, taken.steps, taken.plain)))


if __name__ == "__main__":
    main()
