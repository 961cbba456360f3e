"""Training in bfloat16: a copy of a model for the forward and the backward pass, beside its float32 weights.

The optimizers update the float32 weights, whose small changes bfloat16 would round away. The copy takes them over after
each update. The activations are bfloat16; norms, softmax and loss accumulate in float32.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sector.engine.config import Precision
from sector.engine.models.checkpoint import Model, trained_parameters
from sector.engine.models.text import TextModel


@dataclass(frozen=True, slots=True)
class Working:
    """The model that computes gradients.

    model: the model itself in float32, else its copy.
    refresh: takes over the weights after an update.
    """

    model: Model
    refresh: Callable[[], None]


# Copies outlive a training cycle, because CUDA graphs read their memory.
_COPIES: WeakKeyDictionary[nn.Module, Model] = WeakKeyDictionary()


def working_model(model: Model, precision: Precision) -> Working:
    """Return the model that computes the gradients: `model` itself in float32, else a copy in that precision."""
    if precision == "float32":
        return Working(model, lambda: None)
    copy = _COPIES.get(model)
    if copy is None or copy.device != model.device:
        copy = _COPIES[model] = _copied(model, getattr(torch, precision))
    targets: list[Tensor] = list(trained_parameters(copy))
    sources: list[Tensor] = list(trained_parameters(model))

    @torch.no_grad()
    def refresh() -> None:
        torch._foreach_copy_(targets, sources)

    refresh()
    return Working(copy, refresh)


def _copied(model: Model, dtype: torch.dtype) -> Model:
    """Return a copy of a model with parameters of a dtype. Buffers keep theirs: angles of rotations need float32."""
    shared: dict[int, object] = {
        id(parameter): nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad)
        for parameter in model.parameters()
    }
    if isinstance(model, TextModel):
        shared |= {id(part): part for part in (model.tokenizer, model.alphabet)}
    return deepcopy(model, shared)


def accumulating(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which values of a dtype are added up: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def flat_gradient(parts: tuple[Tensor, ...]) -> Tensor:
    """Return gradients of parameters as one vector `[P]`, at least float32."""
    flat = torch.cat([part.flatten() for part in parts])
    return flat.to(accumulating(flat.dtype))
