"""The teacher of a round: the weights that generate its examples, by the setting `round.teacher`.

`last`: the weights of the phase before. `supervised`: those of the supervised phase. `slow`: the exponential moving
average of the weights of all phases before.
"""

from collections.abc import Sequence

import torch

from sector.engine.config import RoundConfig
from sector.engine.models.checkpoint import Model
from sector.engine.run.phase import Phase


def load_teacher(settings: RoundConfig, before: Sequence[Phase]) -> Model:
    """Load the teacher of a round.

    before: phases before the round, in order, the supervised phase first.
    """
    if settings.teacher == "supervised":
        return before[0].load_checkpoint()
    if settings.teacher == "last":
        return before[-1].load_checkpoint()
    return _moving_average(before, settings.teacher_decay)


@torch.no_grad()
def _moving_average(phases: Sequence[Phase], decay: float) -> Model:
    """Return the exponential moving average of the weights after each phase, from the first one on."""
    teacher = phases[0].load_checkpoint()
    average = teacher.weights()
    for phase in phases[1:]:
        for name, weight in phase.load_checkpoint().weights().items():
            average[name].lerp_(weight, 1 - decay)
    return teacher
