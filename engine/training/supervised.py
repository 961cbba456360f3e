"""Data of the supervised phase: short problems with true answers and simplifications (SECToR section 4.1)."""

from collections.abc import Callable

import torch

from sector.engine.config import RunConfig
from sector.engine.language.examples import Examples
from sector.engine.language.layout import Batch
from sector.engine.seeding import generator
from sector.engine.tasks import find_task, true_answers, truth_of


def label(problems: Batch) -> Examples:
    """Return problems with their true answers and true first simplifications."""
    step = truth_of(problems).simplifications(problems)
    return Examples(problems, true_answers(problems), step.rest, step.digit)


def curriculum(config: RunConfig) -> Callable[[int], Callable[[int], list[Examples]]]:
    """Return a function from a cycle to a function from a step to new labelled examples, one item per shard.

    A shard has problems of one length. The largest length grows from 1 to `max_digits` over the first
    `curriculum_share` of the first cycle. All lengths up to it are equally likely.
    """
    settings, trainer, task = config.supervised, config.supervised.trainer, find_task(config.task)

    def cycle_batches(cycle: int) -> Callable[[int], list[Examples]]:
        ramp = settings.curriculum_share * settings.cycle_steps if cycle == 0 else 0

        def draw(step: int) -> list[Examples]:
            draws = generator(config.seed, "supervised", cycle, step)
            longest = settings.max_digits if step >= ramp else 1 + int(settings.max_digits * step / ramp)
            lengths = torch.randint(1, longest + 1, (trainer.num_shards,), generator=draws).tolist()
            lessons = [
                (step * trainer.num_shards + shard) % task.num_lessons(length) for shard, length in enumerate(lengths)
            ]
            return [
                label(task.draw_lesson(length, lesson, trainer.shard_rows, draws, config.hard_share))
                for length, lesson in zip(lengths, lessons, strict=True)
            ]

        return draw

    return cycle_batches


def kept_examples(config: RunConfig) -> list[Examples]:
    """Return the labelled examples that later rounds replay, one set for each length and lesson."""
    task, settings = find_task(config.task), config.supervised

    def draw(digits: int, lesson: int) -> Batch:
        # The first lesson of a length draws as if there were no others.
        names = ("labelled", digits, lesson) if lesson else ("labelled", digits)
        draws = generator(config.seed, *names)
        return task.draw_lesson(digits, lesson, settings.examples, draws, config.hard_share)

    return [
        label(draw(digits, lesson))
        for digits in range(1, settings.max_digits + 1)
        for lesson in range(task.num_lessons(digits))
    ]
