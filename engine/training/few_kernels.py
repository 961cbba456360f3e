"""The network of a model of text for CUDA graphs: few kernels, the same bits each time, and no wait of the host.

transformers asks the host how to mask a shard, which no graph can hold, so masks are made here, once a graph. The fused
attention of torch adds up gradients of long rows in any order, so attention is plain products here. RMS norms are one
kernel and not seven.

In the shape descriptions B is the rows, T the tokens of a row, H the heads, G the heads of keys and values, and K the
size of a head.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sector.engine.config import TrainerConfig
from sector.engine.models.text import TextModel, attention_windows

_NAME = "sector_products"
# Architectures of transformers whose norms are RMS norms, and whose forward pass asks the host nothing but masks.
_KNOWN = ("llama", "qwen2", "qwen3", "smollm3")
# Kinds of rotary positions whose angles do not depend on the tokens of a shard; the host computes others anew.
_FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")
# The kernels of a larger model take longer than their launches, and graphs would keep the memory of its activations.
_MOST_PARAMETERS = 1 << 28


def why_eager(model: TextModel, config: TrainerConfig) -> str:
    """Return why shards of a model are not computed by CUDA graphs on a GPU; '' if they are."""
    network = model.config
    if config.micro_batch:
        return "trainer.micro_batch adds up gradients piece by piece"
    if config.recompute:
        return "trainer.recompute saves the memory that a graph keeps"
    if network.model_type not in _KNOWN:
        return f"the architecture {network.model_type} is none of {', '.join(_KNOWN)}"
    rotation = (getattr(network, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotation not in _FIXED_ROTATIONS:
        return f"the host computes rotary positions of the kind {rotation}"
    if (count := sum(parameter.numel() for parameter in model.parameters())) > _MOST_PARAMETERS:
        return f"{count:,} parameters are more than {_MOST_PARAMETERS:,}"
    return ""


@contextmanager
def few_kernels(network: nn.Module) -> Iterator[None]:
    """Run norms and attention of a network with few kernels within a context; masks are those of `masks`."""
    config: Any = network.config
    before = config._attn_implementation
    norms = [module for module in network.modules() if type(module).__name__.endswith("RMSNorm")]
    config._attn_implementation = _NAME
    for norm in norms:
        norm.__dict__["forward"] = partial(_normed, norm)
    try:
        yield
    finally:
        config._attn_implementation = before
        for norm in norms:
            del norm.__dict__["forward"]


def masks(model: TextModel, length: int) -> Tensor | Mapping[str, Tensor]:
    """Return the masks of rows of `length` tokens: `[1, 1, T, T]`, by the kind of a layer if there are several."""
    place = torch.arange(length, device=model.device)
    distance = place.unsqueeze(1) - place
    windows = attention_windows(model.network)
    by_kind = {kind: _added(distance, window or length, model.dtype) for kind, window in windows.items()}
    return by_kind if len(by_kind) > 1 else next(iter(by_kind.values()))


def _added(distance: Tensor, window: int, dtype: torch.dtype) -> Tensor:
    """Return `[1, 1, T, T]`: 0 where a token sees another at a distance `[T, T]`, else the smallest number."""
    unseen = (distance < 0) | (distance >= window)
    zeros = torch.zeros(distance.shape, dtype=dtype, device=distance.device)
    return zeros.masked_fill(unseen, torch.finfo(dtype).min)[None, None]


def _normed(norm: Any, states: Tensor) -> Tensor:
    return F.rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attend as `transformers.AttentionInterface` does, without dropout.

    query: `[B, H, T, K]`.
    key, value: `[B, G, T, K]`.
    mask: `[1, 1, T, T]`, which is added to the scores.

    Return the attended values `[B, T, H, K]`.
    """
    batch, heads, length, _size = query.shape
    groups, share = batch * key.shape[1], heads // key.shape[1]
    # The heads of a group stand behind one another, as more queries of one head.
    queries, keys, values = (tensor.reshape(groups, -1, tensor.shape[3]) for tensor in (query, key, value))
    added = mask[0].expand(share, -1, -1).reshape(1, share * length, -1)
    scores = torch.baddbmm(added, queries, keys.transpose(1, 2), alpha=scaling)
    attended = torch.bmm(scores.softmax(dim=2), values)
    return attended.view(batch, heads, length, -1).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(_NAME, _attend)
