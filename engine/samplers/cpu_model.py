"""The model as the native engine computes it: plain torch, one core, no gradients.

The same function as `model.SectorForCausalLM`, in fewer and cheaper operations. Norms lose their weights to the
matrices behind them; the two components of a rotated pair stand side by side, so that a pair is one complex number;
queries give scores in bits; queries, keys and values of the first layer depend on nothing but the id and come from a
table; the last layer computes of a prompt what branches read of it, keys and values.

Legend: B rows, T tokens of a pass, D hidden size, H heads, K head size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sector.engine import tokens
from sector.engine.model import Block, SectorForCausalLM, rope_table
from sector.engine.samplers.attention import BITS

# Tokens whose inner activations stay in the cache of a core from one matrix to the next.
_MLP_TOKENS = 1024

# What a layer does with queries `[B, T - skip, D]`, and keys and values `[B, T, 2D]`: remember these, and attend.
Attend = Callable[[int, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class _Layer:
    """Matrices of a block; those behind a norm have its weights multiplied in."""

    qkv: Tensor
    out: Tensor
    up: Tensor
    down: Tensor


class CpuModel:
    """A copy of a model's weights, made to be run; see the module docstring."""

    @torch.inference_mode()
    def __init__(self, model: SectorForCausalLM) -> None:
        config = model.config
        self.heads, self._eps = config.num_attention_heads, config.rms_norm_eps
        self._legal = tokens.legal_table()
        self._rope = torch.complex(*rope_table(config).unbind(dim=1))
        self._embed = model.embed.weight.detach().clone()
        self._head = (model.head.weight * model.norm.weight).detach()
        self._layers = [_copy_layer(block, config.head_dim) for block in model.blocks]
        ids = torch.arange(tokens.VOCAB_SIZE)
        embedded = F.embedding(tokens.class_of(ids), self._embed)
        self._first_qkv = self._projected(embedded, self._layers[0].qkv, self._rotation(ids), rotated=2)

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    @property
    def size(self) -> int:
        """D."""
        return self._embed.shape[1]

    def forward(self, ids: Tensor, attend: Attend, skip: int = 0) -> Tensor:
        """Ids `[B, T]` -> `[B, T - skip, D]` before the final norm.

        skip: the first tokens of which nothing is chosen. The last layer needs their keys and values, and no more.
        """
        rotation = self._rotation(ids)
        x = F.embedding(tokens.class_of(ids), self._embed)
        for index, layer in enumerate(self._layers):
            skipped = skip if index == len(self._layers) - 1 else 0
            if index == 0:
                qkv = F.embedding(ids, self._first_qkv)
                q, kv = qkv[:, skipped:, : self.size], qkv[..., self.size :]
            elif skipped:
                q = self._projected(x[:, skipped:], layer.qkv[: self.size], rotation[:, skipped:], rotated=1)
                kv = self._projected(x, layer.qkv[self.size :], rotation, rotated=1)
            else:
                q, kv = self._projected(x, layer.qkv, rotation, rotated=2).split((self.size, 2 * self.size), dim=-1)
            if skipped:
                x = x[:, skipped:].contiguous()
            _add_product(x, attend(index, q, kv), layer.out)
            self._add_mlp(x, layer)
        return x

    def choose(self, hidden: Tensor, ids: Tensor, temperature: float, noise: Tensor | None) -> Tensor:
        """Hidden states `[B, T, D]` of `ids [B, T]` -> the ids `[B, T]` chosen to follow them.

        noise: Gumbel noise `[B, T, NUM_CLASSES]`, for a temperature above 0.
        """
        illegal = ~self._legal[tokens.class_of(ids)]
        logits = F.linear(self._normed(hidden), self._head).masked_fill_(illegal, float("-inf"))
        if noise is not None:
            logits = logits / temperature + noise
        return tokens.next_ids(ids, logits.argmax(dim=-1))

    def _rotation(self, ids: Tensor) -> Tensor:
        """`[..., 1, K / 2]` complex: how far the pairs of a head turn at the places of ids."""
        return self._rope[tokens.place_of(ids)].unsqueeze(-2)

    def _projected(self, x: Tensor, weight: Tensor, rotation: Tensor, rotated: int) -> Tensor:
        """Norm, product, and rotation of the first `rotated` of the D-wide outputs (queries, keys)."""
        product = F.linear(self._normed(x), weight)
        pairs = product[..., : rotated * self.size].unflatten(-1, (rotated * self.heads, -1, 2))
        torch.view_as_complex(pairs).mul_(rotation)
        return product

    def _add_mlp(self, x: Tensor, layer: _Layer) -> None:
        """In place."""
        for some in x.view(-1, self.size).split(_MLP_TOKENS):
            _add_product(some, F.linear(self._normed(some), layer.up).relu_().square_(), layer.down)

    def _normed(self, x: Tensor) -> Tensor:
        """RMS norm without its weights; a quarter of the time of `F.rms_norm` on a CPU."""
        return x * x.square().mean(dim=-1, keepdim=True).add_(self._eps).rsqrt_()


def _add_product(x: Tensor, y: Tensor, weight: Tensor) -> None:
    """Add `y @ weight.T` to x, in place, without a pass of its own."""
    x.view(-1, x.shape[-1]).addmm_(y.view(-1, y.shape[-1]), weight.T)


@torch.no_grad()
def _copy_layer(block: nn.Module, head_dim: int) -> _Layer:
    assert isinstance(block, Block)
    q, k, v = (block.attention.qkv.weight * block.attention_norm.weight).chunk(3)
    q = q * (head_dim**-0.5 / BITS)
    return _Layer(
        torch.cat([_interleaved(q, head_dim), _interleaved(k, head_dim), v]),
        block.attention.out.weight.clone(),
        block.up.weight * block.mlp_norm.weight,
        block.down.weight.clone(),
    )


def _interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of queries or keys `[H * K, D]` with the two components of each rotated pair side by side.

    Then a pair is one complex number, which rotates in a fifth of the time; scores do not depend on the order of K.
    """
    return weight.view(-1, 2, head_dim // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
