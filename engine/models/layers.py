"""Layers of sector's own models: attention with rotation by place, and blocks.

In the shape descriptions B is the batch, T the tokens of a row, S the tokens attended to, D the hidden size, H the
heads, K the size of a head and P the places.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from sector.engine.language import tokens
from sector.engine.models.sector_config import SectorConfig

# Training moves the digits behind a random column away by at most this number of places (`place_rows.py`): settings
# choose up to which (`TrainerConfig.max_gap`).
MAX_GAP = tokens.MAX_DIGITS


def rope_table(config: SectorConfig) -> Tensor:
    """Return the `[P, 2, K/2]` cosines and sines of all places in training and inference."""
    places = torch.arange(tokens.MAX_PLACE + MAX_GAP + 1, dtype=torch.float64)
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    angles = places[:, None] * config.rope_max_frequency * config.rope_theta**-exponents
    return torch.stack([angles.cos(), angles.sin()], dim=1).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `[B, T, H, K]` by the angles of `[B, T, 1, K/2]` cosines and sines; the halves of K are components."""
    real, imaginary = x.chunk(2, dim=-1)
    return torch.cat([real * cos - imaginary * sin, imaginary * cos + real * sin], dim=-1)


class Attention(nn.Module):
    """Multi-head attention with rotation by place."""

    def __init__(self, config: SectorConfig, layer_index: int) -> None:
        super().__init__()
        self.layer_index = layer_index
        self.head_dim = config.head_dim
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        past_key_values: Cache | None = None,
        show: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute attention: states `[B, T, D]` -> `[B, T, D]`, and the weights `[B, H, T, S]` if `show`, else None.

        rope: cosines and sines of the tokens, `[B, T, 1, K/2]` each.
        mask: `[1 or B, 1 or H, T, S]` bool, or float to add to the scores; None is plain causal attention.
        """
        batch, length, hidden = x.shape
        heads = hidden // self.head_dim
        qkv = self.qkv(x).view(batch, length, 3 * heads, self.head_dim)
        qk, v = qkv.split([2 * heads, heads], dim=2)
        # The table is float32 for weights of any type.
        q, k = rotate(qk, *rope).to(v.dtype).transpose(1, 2).chunk(2, dim=1)
        v = v.transpose(1, 2)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_index)
        if mask is not None and mask.is_floating_point():
            # A row of -inf only has no softmax.
            mask = mask.clamp(min=torch.finfo(q.dtype).min).to(q.dtype)
        # A single new token attends to the whole cache.
        is_causal = mask is None and (past_key_values is None or length > 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
        weights = attention_weights(q, k, mask) if show else None
        return self.out(y.transpose(1, 2).reshape(batch, length, hidden)), weights


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Return the attention weights `[B, H, T, S]` of queries `[B, H, T, K]` and keys `[B, H, S, K]`."""
    scores = (q @ k.transpose(2, 3)).float() * q.shape[3] ** -0.5
    if mask is None:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril(k.shape[2] - q.shape[2])
    scores = scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=3).to(q.dtype)


class Block(GradientCheckpointingLayer):
    """Pre-norm attention and feed-forward."""

    def __init__(self, config: SectorConfig, layer_index: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention = Attention(config, layer_index)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        past_key_values: Cache | None = None,
        show: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the block: states `[B, T, D]` -> `[B, T, D]`, and the attention weights; see `Attention.forward`."""
        attended, weights = self.attention(self.attention_norm(x), rope, mask, past_key_values, show)
        x = x + attended
        return x + self.down(F.relu(self.up(self.mlp_norm(x))).square()), weights
