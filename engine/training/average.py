"""Exponential moving average of weights (Polyak averaging): steadier than the weights of the last step.

The average begins with the weights of the first step. Its decay grows with the steps, so that it leaves them soon.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def new_average(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return an average that has seen these parameters alone."""
    return [parameter.detach().clone() for parameter in parameters]


@torch.no_grad()
def follow(average: list[Tensor], parameters: Sequence[Tensor], decay: float, step: int) -> None:
    """Move an average towards parameters, in place.

    step: steps done since the average began.
    """
    decay = min(decay, step / (step + 9))
    torch._foreach_lerp_(average, list(parameters), 1 - decay)


@torch.no_grad()
def take_over(average: list[Tensor], parameters: Sequence[Tensor]) -> None:
    """Set parameters to their average."""
    torch._foreach_copy_(list(parameters), average)
