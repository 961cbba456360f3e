"""The model as the native engine computes it: plain torch, one core, no gradients.

The same function as `models.sector.SectorForCausalLM`, in fewer and cheaper operations:
- The weights of a norm are multiplied into the matrices after it.
- The two components of a rotated pair are adjacent, so that a pair is one complex number.
- Queries are scaled to give scores in bits.
- Heads are the first axis, as attention needs them.
- Queries, keys and values of the first layer depend on the id only, and come from a table.
- Of a prompt, the last layer computes only keys and values, which its branches attend to.

Legend: B rows, T tokens of a pass, N tokens of all rows, D hidden size, H heads, K head size, L kept tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sector.engine.language import tokens
from sector.engine.models.layers import Block, rope_table
from sector.engine.models.sector import SectorForCausalLM
from sector.engine.samplers.native_attention import BITS

# Tokens whose inner activations stay in the cache of a core between the two matrices of the feed-forward.
_MLP_TOKENS = 1024

# Maximum memory of the keys and values of a job.
_JOB_BYTES = 1 << 26

# Attention of a layer, from its index, queries `[H, B, T - skip, K]`, and keys and values `[H, B, T, 2K]`, which it
# stores: returns `[B * (T - skip), D]`.
Attend = Callable[[int, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class _Layer:
    """Matrices of a block; those after a norm include its weights.

    qkv: `[H, D, 3K]` to the query, the key and the value of each head.
    out, up, down: as in the block.
    """

    qkv: Tensor
    out: Tensor
    up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True)
class Kept:
    """Keys and values of the beginning of prefixes, kept between the calls of a chain.

    ids: `[B, L]` the tokens of the beginning.
    kv: their keys and values, in the form of the model.
    rows_dim: the dimension of kv that is B.
    is_read: whether kv is filled.
    """

    ids: Tensor
    kv: Tensor
    rows_dim: int
    is_read: bool = False

    def __getitem__(self, rows: slice) -> "Kept":
        start, stop, _ = rows.indices(len(self.ids))
        return replace(self, ids=self.ids[rows], kv=self.kv.narrow(self.rows_dim, start, stop - start))

    def shared(self, prefix: Tensor) -> int:
        """Return the number of kept tokens that all of these prefixes `[B, P]` begin with."""
        # The last token of a prefix is always read, so that a pass has at least one query.
        length = min(self.ids.shape[1], prefix.shape[1] - 1) if self.is_read else 0
        equal = (self.ids[:, :length] == prefix[:, :length]).all(dim=0)
        return int(equal.long().cumprod(dim=0).sum())


class NativeModel:
    """A copy of a model's weights in the form that the native engine computes with; see the module docstring."""

    @torch.inference_mode()
    def __init__(self, model: SectorForCausalLM) -> None:
        config = model.config
        self.heads, self.head_dim, self._eps = config.num_attention_heads, config.head_dim, config.rms_norm_eps
        self._legal = tokens.legal_table()
        self._rope = torch.complex(*rope_table(config).unbind(dim=1)).repeat(1, 2)
        self._embed = model.embed.weight.detach().clone()
        self._head = (model.head.weight * model.norm.weight).detach()
        self._layers = [_copy_layer(block, config.head_dim) for block in model.blocks]
        ids = torch.arange(tokens.VOCAB_SIZE)
        embedded = F.embedding(tokens.class_of(ids), self._embed)
        self._first_qkv = self._queries_keys_values(embedded, self._layers[0], self._rotation(ids))

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def job_rows(self, slots: int) -> int:
        """Return the largest count of rows of a job if each takes `slots` slots of the cache."""
        slot_bytes = 2 * self.num_layers * self.heads * self.head_dim * self._embed.element_size()
        return _JOB_BYTES // (slots * slot_bytes)

    def keep(self, ids: Tensor) -> Kept:
        """Allocate keys and values `[layers, H, B, L, 2K]` of ids `[B, L]`."""
        return Kept(ids, self._embed.new_empty(self.num_layers, self.heads, *ids.shape, 2 * self.head_dim), 2)

    def forward(self, ids: Tensor, attend: Attend, skip: int = 0) -> Tensor:
        """Run the model on ids `[B, T]`; return hidden states `[B, T - skip, D]` before the final norm.

        skip: the number of first tokens without a choice; in the last layer they get keys and values only.
        """
        flat = ids.flatten()
        rotation = self._rotation(flat)
        x = F.embedding(tokens.class_of(flat), self._embed)
        for index, layer in enumerate(self._layers):
            qkv = self._first_qkv.index_select(1, flat) if index == 0 else self._queries_keys_values(x, layer, rotation)
            q, kv = qkv.unflatten(1, ids.shape).split((self.head_dim, 2 * self.head_dim), dim=-1)
            if skip and index == len(self._layers) - 1:
                q, x = q[:, :, skip:], x.unflatten(0, ids.shape)[:, skip:].flatten(0, 1)
            x.addmm_(attend(index, q, kv), layer.out.T)
            self._add_mlp(x, layer)
        return x.unflatten(0, (len(ids), -1))

    def choose(self, hidden: Tensor, ids: Tensor, temperature: float, noise: Tensor | None) -> Tensor:
        """Choose the ids `[B, T]` that follow `ids [B, T]`, from their hidden states `[B, T, D]`.

        noise: `[B, T, NUM_CLASSES]` Gumbel noise if the temperature is above 0, else None.
        """
        illegal = ~self._legal[tokens.class_of(ids)]
        logits = F.linear(self._normed(hidden), self._head).masked_fill_(illegal, float("-inf"))
        if noise is not None:
            logits = logits / temperature + noise
        return tokens.next_ids(ids, logits.argmax(dim=-1))

    def _rotation(self, ids: Tensor) -> Tensor:
        """Return the rotations `[N, K]` complex of the pairs of a query and a key, at the places of ids `[N]`."""
        return self._rope[tokens.place_of(ids)]

    def _queries_keys_values(self, x: Tensor, layer: _Layer, rotation: Tensor) -> Tensor:
        """Return rotated queries and keys, and values, `[H, N, 3K]`, from `[N, D]` before the norm."""
        qkv = torch.bmm(self._normed(x).expand(self.heads, *x.shape), layer.qkv)
        pairs = qkv[..., : 2 * self.head_dim].unflatten(-1, (-1, 2))
        torch.view_as_complex(pairs).mul_(rotation)
        return qkv

    def _add_mlp(self, x: Tensor, layer: _Layer) -> None:
        """Add the feed-forward to `[N, D]`, in place."""
        for chunk in x.split(_MLP_TOKENS):
            chunk.addmm_(F.linear(self._normed(chunk), layer.up).relu_().square_(), layer.down.T)

    def _normed(self, x: Tensor) -> Tensor:
        """Compute the RMS norm without its weights, in a quarter of the time of `F.rms_norm` on a CPU."""
        return x * x.square().mean(dim=-1, keepdim=True).add_(self._eps).rsqrt_()


@torch.no_grad()
def _copy_layer(block: nn.Module, head_dim: int) -> _Layer:
    assert isinstance(block, Block)
    q, k, v = (block.attention.qkv.weight * block.attention_norm.weight).chunk(3)
    q = interleaved(q, head_dim) * (head_dim**-0.5 / BITS)
    heads_first = [part.unflatten(0, (-1, head_dim)) for part in (q, interleaved(k, head_dim), v)]
    return _Layer(
        torch.cat(heads_first, dim=1).transpose(1, 2).contiguous(),
        block.attention.out.weight.clone(),
        block.up.weight * block.mlp_norm.weight,
        block.down.weight.clone(),
    )


def interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of queries or keys `[H * K, D]` so that the two components of each rotated pair are adjacent.

    Then a pair is one complex number, which rotates in a fifth of the time. Scores do not depend on the order of K.
    """
    return weight.view(-1, 2, head_dim // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
