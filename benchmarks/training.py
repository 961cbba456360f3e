"""Compare the trainer with the same step in plain eager torch, and measure where the time of a step goes.

The plain step is the one of textbooks. The fast answer and the simplification are separate rows, each with its prompt.
Shards run one after another, every operation on all cores. Gradients accumulate in `.grad`, the optimizers are torch's,
and glibc's allocator has its defaults. Weights and examples are the same for both. Allocator settings last for the life
of a process, so each measurement runs in a fresh process; the two take turns:

    python -m sector.benchmarks.training runs/first --digits 20 --steps 40 [--plain]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
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
from sector.engine.run.steps import OnProgress
from sector.engine.seeding import generator
from sector.engine.spans import recording
from sector.engine.tasks import find_task
from sector.engine.training.distill import TrainState, start_training, train_cycle, tune_allocator
from sector.engine.training.place_rows import lay_out
from sector.engine.training.supervised import label

_WARM_UP = 5


def compare(model: Path, digits: int, steps: int, repeats: int, on_progress: OnProgress) -> dict[str, Any]:
    """Return tokens per second of both steps (medians and spread), their ratio, and the shares of the trainer's time.

    Tokens are counted in the trainer's layout for both.

    shares: shares of a step's wall time by phase (`training_shares.py`), means over the repetitions.
    busy: the same shares of the time of all threads.
    in_phases: share of the wall time that the phases explain.
    """
    figures: dict[str, list[dict[str, Any]]] = {"sector": [], "plain": []}
    for turn in range(repeats):
        for index, name in enumerate(figures):
            on_progress(2 * turn + index, 2 * repeats, f"training, {name}")
            figures[name].append(_measure_in_fresh_process(model, digits, steps, plain=name == "plain"))
    rates = {name: [repetition["tokens_per_s"] for repetition in figures[name]] for name in figures}
    medians = {name: statistics.median(rates[name]) for name in rates}
    return {
        "digits": digits,
        "steps": steps,
        "tokens_per_s": medians["sector"],
        "plain_tokens_per_s": medians["plain"],
        "low": {name: min(rates[name]) for name in rates},
        "high": {name: max(rates[name]) for name in rates},
        "ratio_to_eager": medians["sector"] / medians["plain"],
        "shares": _means([repetition["shares"] for repetition in figures["sector"]]),
        "busy": _means([repetition["busy"] for repetition in figures["sector"]]),
        "in_phases": statistics.mean(repetition["in_phases"] for repetition in figures["sector"]),
    }


def measure(model: Path, digits: int, steps: int, plain: bool) -> dict[str, Any]:
    """Measure tokens per second over `steps` training steps at one length, after a warm-up; of the trainer also shares.

    plain: measure the plain step instead of the trainer.
    """
    if not plain:
        tune_allocator()
    weights = load_sector(model)
    config = RoundConfig().trainer
    draws = generator(0, "bench-training")
    examples = label(draw_problems(digits, config.num_shards * config.shard_rows, draws))
    shards = [examples[start : start + config.shard_rows] for start in range(0, len(examples), config.shard_rows)]
    state = start_training(weights, config)
    order = weights.config.digit_order
    training: Iterator[object]
    if plain:
        training = _plain_steps(state, shards, config, find_task(weights.config.task).layout(order))
    else:
        training = train_cycle(state, lambda _: shards, config, _WARM_UP + steps, seed=0)
    for _ in range(_WARM_UP):
        next(training)
    watch = Watch()
    with recording(watch.record):
        start = time.perf_counter()
        for _ in range(steps):
            next(training)
        seconds = time.perf_counter() - start
    num_tokens = sum(lay_out(shard, order, config, draws).ids.numel() for shard in shards)
    return {"tokens_per_s": steps * num_tokens / seconds, **({} if plain else _phases(watch.spans, seconds))}


def _phases(spans: list[Span], seconds: float) -> dict[str, Any]:
    """Return `shares`, `busy` and `in_phases`, as in `compare`, of spans within `seconds`."""
    wall, busy = wall_seconds(spans), dict.fromkeys(PHASES.values(), 0.0)
    for span in spans:
        busy[span.name] += span.seconds
    return {"shares": shares(wall), "busy": shares(busy), "in_phases": sum(wall.values()) / seconds}


def _means(records: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each figure over records."""
    return {name: statistics.mean(record[name] for record in records) for name in records[0]}


def _plain_steps(state: TrainState, shards: list[Examples], config: TrainerConfig, layout: Layout) -> Iterator[float]:
    """Train in plain eager torch, without end; yield the loss of each step."""
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
    """Return torch's Muon and AdamW, over the same parameters as the trainer's optimizers."""
    assert state.muon is not None, "only sector's own models are compared"
    matrices = [parameter for group in state.muon.param_groups for parameter in group["params"]]
    muon = torch.optim.Muon(matrices, lr=config.muon_learning_rate, weight_decay=config.weight_decay)
    return [muon, state.adamw]


def _plain_loss(state: TrainState, examples: Examples, config: TrainerConfig, layout: Layout) -> Tensor:
    """Return the weighted loss of fast answers and simplifications."""
    fast = _completion_loss(state, examples, Mode.ANSWER, layout.answer_ids(examples.answers), layout)
    simplifications = layout.simplification_ids(examples.rest, examples.digit)
    slow = _completion_loss(state, examples, Mode.THINK, simplifications, layout)
    return config.fast_weight * fast + (1 - config.fast_weight) * slow


def _completion_loss(state: TrainState, examples: Examples, mode: Mode, target: Tensor, layout: Layout) -> Tensor:
    """Return the cross-entropy of completions.

    target: `[B, C]` ids that follow the prompts.
    """
    ids = torch.cat([layout.prompt_ids(examples.problems, mode), target[:, :-1]], dim=1)
    first = ids.shape[1] - target.shape[1]
    assert isinstance(state.model, SectorForCausalLM), "only sector's own models are compared"
    hidden = state.model.hidden_states(ids)[:, first:]
    logits = state.model.class_logits(hidden, ids[:, first:])
    return F.cross_entropy(logits.flatten(0, 1), tokens.class_of(target).flatten())


def _measure_in_fresh_process(model: Path, digits: int, steps: int, plain: bool) -> dict[str, Any]:
    """Run `measure` in a process whose allocator has its defaults."""
    command = [sys.executable, "-P", "-m", "sector.benchmarks.training", str(model)]
    command += [f"--digits={digits}", f"--steps={steps}"]
    if plain:
        command.append("--plain")
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--digits", type=int, default=20)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args()
    print(json.dumps(measure(options.model, options.digits, options.steps, options.plain)))


if __name__ == "__main__":
    main()
