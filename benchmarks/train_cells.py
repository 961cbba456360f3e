"""Measure training steps cell by cell, one JSON line per cell: a preset and a precision.

    python -m sector.benchmarks.train_cells [--presets tiny,base] [--precisions float32,bfloat16] [--digits 20] ...

GPU time is lent in short slices that may end at any time. So each cell is written as soon as it is measured, and a cell
that fails is a line that says why. A cell trains a new model on the GPU, or on the CPU if there is none: some steps at
6 digits, whose losses are compared with those of float32 on the CPU, and then timed steps at `--digits`.
"""

import argparse
import json
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from sector.benchmarks.cells import measured, names, timed_steps
from sector.benchmarks.machine import describe
from sector.benchmarks.memory import peak_bytes, reset_peak
from sector.engine.config import SupervisedConfig, TrainerConfig
from sector.engine.language.examples import Examples
from sector.engine.language.operands import draw_problems
from sector.engine.models.sector import SectorForCausalLM, best_device, new_model
from sector.engine.seeding import generator
from sector.engine.training.distill import start_training, train_cycle, tune_allocator
from sector.engine.training.supervised import label

_CURVE_DIGITS = 6
# Steps before the timed ones: allocations, and captures of graphs.
_WARM_UP = 5
# Nats by which a loss may differ from that of float32 on the CPU, at any step of the curve.
TOLERANCE = 0.02


class Bench:
    """The terms that all cells share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._expected: dict[str, list[float]] = {}

    def lines(self) -> Iterator[dict[str, object]]:
        """Yield a description of the machine, and then each cell."""
        yield describe()
        arguments = self._arguments
        for preset in arguments.presets:
            for precision in arguments.precisions:
                cell = {"part": "train", "preset": preset, "precision": precision}
                yield measured(cell, partial(self._figures, preset, precision))

    def _figures(self, preset: str, precision: str) -> dict[str, object]:
        """Return the figures of a cell."""
        return self._curve(preset, precision) | self._speed(preset, precision)

    def _curve(self, preset: str, precision: str) -> dict[str, object]:
        """Return how far the losses of the first steps are from those of float32 on the CPU."""
        steps = self._arguments.compare
        if not steps:
            return {}
        if preset not in self._expected:
            self._expected[preset] = self._losses(new_model(preset, 0), "float32")
        expected = torch.tensor(self._expected[preset])
        found = torch.tensor(self._losses(_new(preset), precision))
        difference = (found - expected).abs().max().item()
        return {
            "compared_steps": steps,
            "first_loss": found[0].item(),
            "loss": found[-1].item(),
            "loss_float32_cpu": expected[-1].item(),
            "largest_difference": difference,
            "within_tolerance": difference <= TOLERANCE,
        }

    def _losses(self, model: SectorForCausalLM, precision: str) -> list[float]:
        """Return the losses of the first steps."""
        config, count = self._config(precision), self._arguments.compare
        state = start_training(model, config)
        steps = train_cycle(state, lambda step: self._shards(_CURVE_DIGITS, step), config, count, 0)
        return [loss for _, loss in steps]

    def _config(self, precision: str) -> TrainerConfig:
        """Return the settings of the supervised phase, with as many rows as the arguments say."""
        settings = SupervisedConfig().trainer.model_dump()
        return TrainerConfig(**settings | {"precision": precision, "shard_rows": self._arguments.rows})

    def _shards(self, digits: int, step: int) -> list[Examples]:
        """Return the examples of a step."""
        rows, count = self._arguments.rows, SupervisedConfig().trainer.num_shards
        examples = label(draw_problems(digits, rows * count, generator(0, "train-cells", digits, step)))
        return [examples[slice(rows * shard, rows * (shard + 1))] for shard in range(count)]

    def _speed(self, preset: str, precision: str) -> dict[str, object]:
        """Return steps and tokens per second at `--digits`, and the peak of the memory."""
        arguments, config = self._arguments, self._config(precision)
        reset_peak(best_device())
        model = _new(preset)
        state = start_training(model, config)
        shards = self._shards(arguments.digits, 0)
        tokens, seconds = timed_steps(state, shards, config, _WARM_UP, arguments.steps)
        return {
            "digits": arguments.digits,
            "rows": len(shards) * arguments.rows,
            "steps": arguments.steps,
            "steps_per_s": arguments.steps / seconds,
            "tokens_per_s": tokens / seconds,
            "peak_bytes": peak_bytes(model.device),
        }


def _new(preset: str) -> SectorForCausalLM:
    """Return a new model on the device of the measurement."""
    model: nn.Module = new_model(preset, 0)
    model.to(best_device())
    assert isinstance(model, SectorForCausalLM)
    return model


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", type=names, default=["tiny", "base"])
    parser.add_argument("--precisions", type=names, default=["float32", "bfloat16"])
    parser.add_argument("--digits", type=int, default=20, help="digits of the timed steps")
    parser.add_argument("--rows", type=int, default=16, help="problems per shard; a step has four shards")
    parser.add_argument("--steps", type=int, default=100, help="timed steps")
    parser.add_argument("--compare", type=int, default=100, help="steps whose loss is compared; 0 compares nothing")
    return parser.parse_args()


def main() -> None:
    """Print the lines."""
    tune_allocator()
    for line in Bench(_arguments()).lines():
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
