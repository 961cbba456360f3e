"""Wider heads of attention with the same answers, for engines that take only some sizes of head.

A head of size K becomes one of size M, a multiple of K: the added components of queries, keys and values are zero.
Scores are divided by the root of M instead of K, so queries are multiplied by the root of M / K. Rotary positions turn
pair i of K / 2 by the frequency theta^(-2i / K), so it becomes pair i * M / K of M / 2.
"""

import math

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from sector.engine.errors import InputError
from sector.engine.models.text import TextModel

# Sizes of head that the attention of vLLM takes on a CPU, in all releases that were tested.
HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)

# Kinds of matrix by the name of their module: their rows, or columns, are components of heads.
_ROTATED = ("q_proj", "k_proj")
_PROJECTED = (*_ROTATED, "v_proj")
_RETURNED = "o_proj"
# Modules that normalize over the components of a head, whose mean the zeros would change.
_NORMALIZED = ("q_norm", "k_norm")


def head_size(model: TextModel) -> int:
    """Return K, the size of a head."""
    config = model.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(size)


def wide_size(model: TextModel) -> int:
    """Return M, the smallest of `HEAD_SIZES` that is a multiple of K; K itself if it is one of them.

    Raise InputError if there is none, if the architecture is not like that of Llama, or if it stretches its rotary
    positions.
    """
    size = head_size(model)
    wide = next((each for each in HEAD_SIZES if each % size == 0), None)
    if wide == size:
        return size
    # Other kinds of positions have frequencies of another formula.
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    is_plain = rope.get("rope_type", "default") == "default" and rope.get("partial_rotary_factor", 1.0) == 1.0
    modules = {_module_of(name) for name in model.network.state_dict()}
    is_known = modules.issuperset((*_PROJECTED, _RETURNED)) and modules.isdisjoint(_NORMALIZED)
    if wide is None:
        raise InputError(f"{model.name}: vLLM on a CPU takes no heads of {size} components; choose --engine native")
    if not is_plain or not is_known:
        raise InputError(f"{model.name}: heads of {size} components cannot become {wide} wide; choose --engine native")
    return wide


def wide_weights(model: TextModel) -> dict[str, Tensor]:
    """Return the weights of a network with wide heads, by name. Raise InputError as `wide_size` does."""
    size, wide, state = head_size(model), wide_size(model), model.network.state_dict()
    return state if wide == size else {name: _widened(name, tensor, size, wide) for name, tensor in state.items()}


def with_wide_heads(model: TextModel) -> TextModel:
    """Return a model of the same function with wide heads; itself if it has them. Raise InputError as `wide_size`."""
    wide = wide_size(model)
    if wide == head_size(model):
        return model
    config = model.config.get_text_config()
    widened = type(config).from_dict({**config.to_dict(), "head_dim": wide})
    # Random weights are drawn first, and must not move the stream of random numbers.
    with torch.random.fork_rng(devices=[]):
        network = AutoModelForCausalLM.from_config(widened, dtype=model.dtype).to(model.device)
    network.load_state_dict(wide_weights(model))
    return TextModel(network, model.tokenizer, model.name)


def _module_of(name: str) -> str:
    """Return the name of the module that has a weight."""
    return name.split(".")[-2] if "." in name else ""


def _widened(name: str, tensor: Tensor, size: int, wide: int) -> Tensor:
    """Return a weight with zeros for the added components; other weights as they are."""
    module = _module_of(name)
    if module == _RETURNED and name.endswith("weight"):
        return _spread(tensor.T, size, wide, is_rotated=False).T
    if module not in _PROJECTED:
        return tensor
    spread = _spread(tensor, size, wide, module in _ROTATED)
    return spread * math.sqrt(wide / size) if module == "q_proj" else spread


def _spread(tensor: Tensor, size: int, wide: int, is_rotated: bool) -> Tensor:
    """Return rows `[H * K, ...]` as rows `[H * M, ...]`; rows of a pair of a rotation stay a pair of its frequency."""
    heads = tensor.unflatten(0, (-1, size))
    spread = heads.new_zeros(heads.shape[0], wide, *heads.shape[2:])
    spread[:, _places(size, wide) if is_rotated else torch.arange(size)] = heads
    return spread.flatten(0, 1)


def _places(size: int, wide: int) -> Tensor:
    """Return the new component `[K]` of each component of a head whose halves are turned together."""
    pairs = torch.arange(size // 2) * (wide // size)
    return torch.cat([pairs, pairs + wide // 2])
