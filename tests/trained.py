"""A training in one piece, or one that was saved and resumed."""

from copy import deepcopy

from torch import Tensor

from sector.engine.config import TrainerConfig
from sector.engine.models.checkpoint import Model
from sector.engine.training.distill import restore, start_training, state_tensors, train_cycle
from sector.engine.training.laid_out_steps import DrawExamples


def trained(
    model: Model, config: TrainerConfig, draw_examples: DrawExamples, steps: int, stop: int | None = None
) -> tuple[list[float], dict[str, Tensor]]:
    """Train a copy; return losses and state.

    stop: a step at which the training is saved, and resumed by another copy.
    """
    state = start_training(deepcopy(model), config)
    losses = []
    for step, loss in train_cycle(state, draw_examples, config, steps, seed=7):
        losses.append(loss)
        if step == stop:
            break
    if stop:
        tensors = {name: tensor.clone() for name, tensor in state_tensors(state).items()}
        state = start_training(deepcopy(model), config)
        restore(state, tensors, stop)
        losses += [loss for _, loss in train_cycle(state, draw_examples, config, steps, seed=7)]
    return losses, state_tensors(state)
