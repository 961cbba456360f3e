"""Measure training steps cell by cell, one JSON line per cell: a preset, a precision, and CUDA graphs or none.

    python -m sector.benchmarks.train_cells [--presets tiny,text-tiny] [--precisions float32] [--digits 6,20] ...

GPU time is lent in short slices that may end at any time. So each cell is written as soon as it is measured, and a cell
that fails is a line that says why. A cell trains a new model on the GPU, or on the CPU if there is none: some steps at
6 digits, whose losses are compared with those of float32 on the CPU, and then timed steps at each length of
`--digits`. A preset of text is trained without CUDA graphs, too, with `--ways graphs,eager`.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from sector.benchmarks.cells import measured, names_of, number, numbers, printed, timed_steps
from sector.benchmarks.machine import describe
from sector.benchmarks.memory import peak_bytes, reset_peak
from sector.engine.config import RunConfig, TrainerConfig, run_config
from sector.engine.errors import InputError
from sector.engine.language.examples import Examples
from sector.engine.language.operands import draw_problems
from sector.engine.models.checkpoint import Model
from sector.engine.models.ordinary import TEXT_PRESETS
from sector.engine.models.sector import best_device
from sector.engine.models.sector_config import PRESETS
from sector.engine.run.plan import new_sector_model, start_of_text
from sector.engine.seeding import generator
from sector.engine.training.distill import start_training, train_cycle, tune_allocator
from sector.engine.training.supervised import label

_CURVE_DIGITS = 6
# Steps before the timed ones: allocations, and captures of graphs.
_WARM_UP = 5
_PRECISIONS = ["float32", "bfloat16"]
# Nats by which a loss may differ from that of float32 on the CPU, at any step of the curve.
TOLERANCE = 0.02


class TrainCells:
    """The terms that all cells share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        # Losses of float32 on the CPU, by preset.
        self._expected: dict[str, Tensor] = {}

    def lines(self) -> Iterator[dict[str, object]]:
        """Yield a description of the machine, and then each cell."""
        yield describe()
        arguments = self._arguments
        for preset, precision, way in product(arguments.presets, arguments.precisions, arguments.ways):
            for digits in arguments.digits:
                cell = {"part": "train", "preset": preset, "precision": precision, "way": way, "digits": digits}
                yield measured(cell, partial(self._figures, preset, precision, way, digits))

    def _figures(self, preset: str, precision: str, way: str, digits: int) -> dict[str, object]:
        run = run_config({"preset": preset})
        config = self._config(run, precision, way)
        # The curve does not depend on the digits of the timed steps.
        curve = self._curve(run, config) if digits == self._arguments.digits[0] else {}
        return curve | self._speed(run, config, digits)

    def _config(self, run: RunConfig, precision: str, way: str) -> TrainerConfig:
        """Return the settings of the supervised phase, with as many rows as the arguments say."""
        settings: dict[str, Any] = {"precision": precision, "shard_rows": self._arguments.rows}
        if way == "eager":
            if not run.is_text:
                raise InputError("only presets of text train without CUDA graphs; leave out --ways")
            # Whole shards, but added up, which no graph does.
            settings["micro_batch"] = self._arguments.rows
        return TrainerConfig(**run.supervised.trainer.model_dump() | settings)

    def _curve(self, run: RunConfig, config: TrainerConfig) -> dict[str, object]:
        """Return how far the losses of the first steps are from those of float32 on the CPU."""
        steps = self._arguments.compare
        if not steps:
            return {}
        if run.preset not in self._expected:
            on_cpu = self._config(run, "float32", "graphs")
            self._expected[run.preset] = self._losses(_new(run, torch.device("cpu")), on_cpu)
        expected = self._expected[run.preset]
        found = self._losses(_new(run, best_device()), config)
        difference = (found - expected).abs().max().item()
        return {
            "compared_steps": steps,
            "first_loss": found[0].item(),
            "loss": found[-1].item(),
            "loss_float32_cpu": expected[-1].item(),
            "largest_difference": difference,
            "within_tolerance": difference <= TOLERANCE,
        }

    def _losses(self, model: Model, config: TrainerConfig) -> Tensor:
        """Return the losses of the first steps."""
        state = start_training(model, config)
        steps = train_cycle(
            state, lambda step: self._shards(config, _CURVE_DIGITS, step), config, self._arguments.compare, 0
        )
        return torch.tensor([loss for _, loss in steps])

    def _shards(self, config: TrainerConfig, digits: int, step: int) -> list[Examples]:
        rows, count = config.shard_rows, config.num_shards
        examples = label(draw_problems(digits, rows * count, generator(0, "train-cells", digits, step)))
        return [examples[slice(rows * shard, rows * (shard + 1))] for shard in range(count)]

    def _speed(self, run: RunConfig, config: TrainerConfig, digits: int) -> dict[str, object]:
        """Return steps and tokens per second, and the peak of the memory."""
        steps = self._arguments.steps
        reset_peak(best_device())
        model = _new(run, best_device())
        shards = self._shards(config, digits, 0)
        tokens, seconds = timed_steps(start_training(model, config), shards, config, _WARM_UP, steps)
        return {
            "rows": config.num_shards * config.shard_rows,
            "steps": steps,
            "steps_per_s": steps / seconds,
            "tokens_per_s": tokens / seconds,
            "peak_bytes": peak_bytes(model.device),
        }


def _new(run: RunConfig, device: torch.device) -> Model:
    """Return a new model of the preset of a run on a device."""
    model = start_of_text(run) if run.is_text else new_sector_model(run)
    return model.to(device)  # type: ignore[arg-type]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", type=names_of([*PRESETS, *TEXT_PRESETS]), default=["tiny", "base"])
    parser.add_argument("--precisions", type=names_of(_PRECISIONS), default=_PRECISIONS)
    parser.add_argument("--ways", type=names_of(["graphs", "eager"]), default=["graphs"], help="graphs, eager")
    parser.add_argument("--digits", type=numbers, default=[20], help="digits of the timed steps")
    parser.add_argument("--rows", type=number, default=16, help="problems per shard; a step has four shards")
    parser.add_argument("--steps", type=number, default=100, help="timed steps")
    parser.add_argument("--compare", type=int, default=100, help="steps whose loss is compared; 0 compares nothing")
    return parser.parse_args()


def main() -> None:
    """Print the lines."""
    tune_allocator()
    printed(TrainCells(_arguments()).lines())


if __name__ == "__main__":
    main()
