"""The supervised phase's data: short problems with true answers and true simplifications (SECToR section 4.1)."""

from collections.abc import Callable

import torch

from sector.engine import oracle
from sector.engine.config import RunConfig
from sector.engine.examples import Examples
from sector.engine.problem import Problems, draw_problems
from sector.engine.seeding import generator


def label(problems: Problems) -> Examples:
    """True answers and true first simplifications of any problems."""
    answers = oracle.true_answers(problems)
    carries = oracle.true_carries(problems)
    # The remaining problem receives the carry into its last column.
    carry = carries[:, -2] if problems.digits > 1 else torch.zeros_like(problems.carry)
    rest = Problems(problems.a[:, :-1], problems.b[:, :-1], carry)
    return Examples(problems, answers, rest, answers[:, -1])


def curriculum(config: RunConfig) -> Callable[[int], Callable[[int], list[Examples]]]:
    """Batches of a cycle: fresh labelled problems, each shard of one length.

    The lengths open up from 1 to `max_digits` over the first share of the first cycle; all are equally likely then.
    """
    settings, trainer = config.supervised, config.supervised.trainer

    def cycle_batches(cycle: int) -> Callable[[int], list[Examples]]:
        ramp = settings.curriculum_share * settings.cycle_steps if cycle == 0 else 0

        def draw(step: int) -> list[Examples]:
            draws = generator(config.seed, "supervised", cycle, step)
            opened = settings.max_digits if step >= ramp else 1 + int(settings.max_digits * step / ramp)
            lengths = torch.randint(1, opened + 1, (trainer.num_shards,), generator=draws).tolist()
            return [label(draw_problems(length, trainer.shard_rows, draws, config.hard_share)) for length in lengths]

        return draw

    return cycle_batches


def kept_examples(config: RunConfig) -> list[Examples]:
    """The labelled examples that later rounds replay, one set a length."""
    return [
        label(
            draw_problems(
                digits, config.supervised.examples, generator(config.seed, "labelled", digits), config.hard_share
            )
        )
        for digits in range(1, config.supervised.max_digits + 1)
    ]
