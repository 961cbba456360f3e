"""Measure training steps of a model of text of a given shape, with random weights: one JSON line per set of settings.

    python -m sector.benchmarks.text_cells [--shape smollm2-135m] [--cells float32,bfloat16,...] [--digits 9] ...

The batch is that of the supervised phase of a pretrained model. A cell runs on the GPU, or on the CPU if there is none.
It is written as soon as it is measured, and a cell that fails, for lack of memory for example, is a line that says why.
The peak on a CPU includes memory that the allocator keeps from earlier cells: measure one cell a process there.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from sector.benchmarks.cells import measured, names_of, number, printed, timed_steps
from sector.benchmarks.machine import describe
from sector.benchmarks.memory import peak_bytes, reset_peak
from sector.benchmarks.random_model import SHAPES, random_model
from sector.engine.config import TrainerConfig, run_config
from sector.engine.language.examples import Examples
from sector.engine.language.operands import draw_problems
from sector.engine.models.adapter import AdaptedModel
from sector.engine.models.checkpoint import trained_parameters
from sector.engine.models.sector import best_device
from sector.engine.models.text import TextModel
from sector.engine.seeding import generator
from sector.engine.training.distill import start_training, tune_allocator
from sector.engine.training.supervised import label

# Settings of training by the name of a cell.
CELLS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"precision": "bfloat16"},
    "micro_batch": {"precision": "bfloat16", "micro_batch": 4},
    "recompute": {"precision": "bfloat16", "micro_batch": 4, "recompute": True},
    "average": {"precision": "bfloat16", "average": 0.999},
    "lora": {"precision": "bfloat16", "lora_rank": 16},
    "lora_recompute": {"precision": "bfloat16", "micro_batch": 4, "recompute": True, "lora_rank": 16},
}
# Steps before the timed ones, in which optimizers allocate their moments.
_WARM_UP = 2


def lines(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a description of the machine, and then each cell."""
    yield describe()
    for name in arguments.cells:
        cell = {"part": "train_text", "shape": arguments.shape, "cell": name, "settings": CELLS[name]}
        yield measured(cell, partial(_figures, arguments, CELLS[name]))


def _config(arguments: argparse.Namespace, settings: dict[str, Any]) -> TrainerConfig:
    """Return the settings of the supervised phase of a pretrained model, with those of a cell."""
    base = run_config({"pretrained": arguments.shape}).supervised.trainer.model_dump()
    return TrainerConfig.model_validate(base | {"shard_rows": arguments.rows} | settings)


def _figures(arguments: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """Return tokens per second and the peak of the memory of training steps."""
    config = _config(arguments, settings)
    reset_peak(best_device())
    model = _new(arguments.shape, config)
    state, shards = start_training(model, config), _shards(arguments, config)
    tokens, seconds = timed_steps(state, shards, config, _WARM_UP, arguments.steps)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained_parameters": sum(parameter.numel() for parameter in trained_parameters(model)),
        "digits": arguments.digits,
        "rows": config.num_shards * config.shard_rows,
        "steps": arguments.steps,
        "tokens_per_s": tokens / seconds,
        "peak_bytes": peak_bytes(model.device),
    }


def _new(shape: str, config: TrainerConfig) -> TextModel:
    """Return a model of a shape with random weights, on the device of the measurement."""
    model = random_model(shape)
    model.to(best_device())
    return AdaptedModel(model, config.lora_rank, (), 0, Path(shape)) if config.lora_rank else model


def _shards(arguments: argparse.Namespace, config: TrainerConfig) -> list[Examples]:
    draws = generator(0, "text-cells", arguments.digits)
    examples = label(draw_problems(arguments.digits, config.shard_rows * config.num_shards, draws))
    return [examples[start : start + config.shard_rows] for start in range(0, len(examples), config.shard_rows)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--cells", type=names_of(CELLS), default=list(CELLS), help=f"of {', '.join(CELLS)}")
    parser.add_argument("--digits", type=number, default=9)
    parser.add_argument("--rows", type=number, default=32, help="problems per shard; a step has two shards")
    parser.add_argument("--steps", type=number, default=20, help="timed steps")
    return parser.parse_args()


def main() -> None:
    """Print the lines."""
    tune_allocator()
    printed(lines(_arguments()))


if __name__ == "__main__":
    main()
