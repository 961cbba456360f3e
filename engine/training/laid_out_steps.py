"""The shards of the steps of a training cycle, laid out before they are needed.

A GPU computes a step of a small model faster than one core lays out the next, so processes lay out steps ahead of it.
On a CPU all cores compute, and the next step is laid out when it is asked for.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch.utils.data import DataLoader, Dataset

from sector.engine.config import TrainerConfig
from sector.engine.language.examples import Examples, with_zeros
from sector.engine.models.checkpoint import Model, task_and_layout
from sector.engine.models.text import TextModel
from sector.engine.seeding import generator
from sector.engine.spans import span
from sector.engine.threads import num_cores
from sector.engine.training import place_rows, text_rows
from sector.engine.training.shard import Shard

DrawExamples = Callable[[int], Sequence[Examples]]
"""Function from a step to the examples of its shards, one item per shard."""

# Processes that lay out steps beside a GPU: four are faster than an H200. The other cores are for other runs.
_MOST_PROCESSES, _CORES_A_PROCESS = 4, 4
_STEPS_AHEAD = 4


def laid_out_steps(
    model: Model,
    draw_examples: DrawExamples,
    steps: range,
    config: TrainerConfig,
    seed: int,
    processes: int | None = None,
) -> Iterator[list[Shard]]:
    """Yield the shards of each step, on the CPU.

    processes: processes that work ahead; None chooses.
    """
    lay_out_step = partial(_lay_out_step, model, draw_examples, config, seed)
    if processes is None:
        processes = _num_processes(model.device)
    if not processes or not steps:
        return map(lay_out_step, steps)
    loader = DataLoader(
        _Steps(lay_out_step, steps),
        batch_size=None,
        num_workers=processes,
        prefetch_factor=_STEPS_AHEAD,
        # A fork shares the examples, and starts at once.
        multiprocessing_context="fork",
        # The loader draws a seed that is not used: not from the random numbers of this process.
        generator=torch.Generator(),
    )
    return iter(loader)


def _num_processes(device: torch.device) -> int:
    """Return the number of processes that lay out steps for a device."""
    if device.type == "cpu" or not torch.cuda.is_available():
        return 0
    return min(_MOST_PROCESSES, num_cores() // _CORES_A_PROCESS)


class _Steps(Dataset[list[Shard]]):
    """Steps as a data set."""

    def __init__(self, lay_out_step: Callable[[int], list[Shard]], steps: range) -> None:
        self._lay_out_step, self._steps = lay_out_step, steps

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> list[Shard]:
        return self._lay_out_step(self._steps[index])


def _lay_out_step(
    model: Model, draw_examples: DrawExamples, config: TrainerConfig, seed: int, step: int
) -> list[Shard]:
    """Return the shards of a step."""
    with span("lay out"):
        draws = generator(seed, "augment", step)
        return [_lay_out(model, examples, config, draws) for examples in draw_examples(step)]


def _lay_out(model: Model, examples: Examples, config: TrainerConfig, draws: torch.Generator) -> Shard:
    """Return examples of one length as a shard for a model."""
    if isinstance(model, TextModel):
        if config.zeros:
            examples = with_zeros(examples, int(torch.randint(0, config.zeros + 1, (), generator=draws)))
        return text_rows.lay_out(examples, task_and_layout(model)[1], draws)
    return place_rows.lay_out(examples, model.config.digit_order, config, draws)
