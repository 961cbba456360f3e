"""Gradient checkpointing for models of text: a layer keeps its input alone, and is computed again in the backward pass.

transformers' own switch works in training mode only, in which dropout is on (`TextModel.train`). So the layers that it
marks are wrapped here, for the time of a training.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from sector.engine.errors import InputError


def layers_of(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """Return the layers that can be computed again. Raise InputError if the architecture marks none."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise InputError("trainer.recompute: no layer of this architecture supports it; leave it out")
    return layers


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Compute the layers of a model again in backward passes within a context. Raise InputError as `layers_of`."""
    layers = layers_of(model)
    for layer in layers:
        # Nothing is drawn at random in a forward pass, so states of random streams need not be kept.
        again = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
        layer.__dict__["forward"] = again
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]
