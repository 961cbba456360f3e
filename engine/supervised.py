"""The supervised phase's data: short problems with true answers and true simplifications (SECToR section 4.1)."""

from collections.abc import Callable

import torch

from sector.engine import oracle
from sector.engine.config import RunConfig
from sector.engine.examples import Examples
from sector.engine.seeding import generator
from sector.engine.task import Batch
from sector.engine.tasks import find_task


def label(problems: Batch) -> Examples:
    """True answers and true first simplifications of any problems."""
    step = oracle.truth_of(problems).simplifications(problems)
    return Examples(problems, oracle.true_answers(problems), step.rest, step.digit)


def curriculum(config: RunConfig) -> Callable[[int], Callable[[int], list[Examples]]]:
    """Batches of a cycle: fresh labelled problems, each shard of one length.

    The lengths open up from 1 to `max_digits` over the first share of the first cycle; all are equally likely then.
    """
    settings, trainer, task = config.supervised, config.supervised.trainer, find_task(config.task)

    def cycle_batches(cycle: int) -> Callable[[int], list[Examples]]:
        ramp = settings.curriculum_share * settings.cycle_steps if cycle == 0 else 0

        def draw(step: int) -> list[Examples]:
            draws = generator(config.seed, "supervised", cycle, step)
            opened = settings.max_digits if step >= ramp else 1 + int(settings.max_digits * step / ramp)
            lengths = torch.randint(1, opened + 1, (trainer.num_shards,), generator=draws).tolist()
            return [label(task.draw(length, trainer.shard_rows, draws, config.hard_share)) for length in lengths]

        return draw

    return cycle_batches


def kept_examples(config: RunConfig) -> list[Examples]:
    """The labelled examples that later rounds replay, one set a length."""
    task = find_task(config.task)
    return [
        label(
            task.draw(digits, config.supervised.examples, generator(config.seed, "labelled", digits), config.hard_share)
        )
        for digits in range(1, config.supervised.max_digits + 1)
    ]
