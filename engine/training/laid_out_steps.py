"""The shards of the steps of a training cycle, laid out on the CPU."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from sector.engine.config import TrainerConfig
from sector.engine.language.examples import Examples, with_zeros
from sector.engine.language.tokens import MAX_DIGITS
from sector.engine.models.checkpoint import Model, task_and_layout
from sector.engine.models.text import TextModel
from sector.engine.seeding import generator
from sector.engine.spans import span
from sector.engine.training import place_rows, text_rows
from sector.engine.training.shard import Shard

DrawExamples = Callable[[int], Sequence[Examples]]
"""Function from a step to the examples of its shards, one item per shard."""


def laid_out_steps(
    model: Model, draw_examples: DrawExamples, steps: range, config: TrainerConfig, seed: int
) -> Iterator[list[Shard]]:
    """Yield the shards of each step, on the CPU; each when it is asked for."""
    return map(partial(_lay_out_step, model, draw_examples, config, seed), steps)


def _lay_out_step(
    model: Model, draw_examples: DrawExamples, config: TrainerConfig, seed: int, step: int
) -> list[Shard]:
    with span("lay out"):
        draws = generator(seed, "augment", step)
        return [_lay_out(model, examples, config, draws) for examples in draw_examples(step)]


def _lay_out(model: Model, examples: Examples, config: TrainerConfig, draws: torch.Generator) -> Shard:
    if most := min(config.zeros, MAX_DIGITS - examples.problems.digits):
        examples = with_zeros(examples, int(torch.randint(0, most + 1, (), generator=draws)))
    if isinstance(model, TextModel):
        return text_rows.lay_out(examples, task_and_layout(model)[1], draws)
    return place_rows.lay_out(examples, model.config.digit_order, config, draws)
