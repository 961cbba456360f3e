"""The native engine: batched, cached decoding in plain torch, made for short contexts and small models.

One forward pass reads a prefix once for all its branches: the branches follow one another in the same row, and each
attends to the prefix and to itself (a token's position is its place, so it does not matter where in the row it stands).
Drafts ride along in that pass; the first token that differs from the model's own choice is replaced by that choice,
and decoding goes on from there token by token, so that the output is the one of plain decoding (lossless).

The batch is cut into tiles that stay in the cache of one core, and each core works on its own tiles: for matrices this
small, that is faster than two cores sharing one operation.

Legend: B rows of a tile, P prefix tokens, T tokens of a pass, S slots of the cache, H heads, K head size, D hidden.
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sector.engine import tokens
from sector.engine.checkpoint import weights_sha256
from sector.engine.model import Block, SectorForCausalLM, rope_table
from sector.engine.ranges import named
from sector.engine.samplers.drafts import accept
from sector.engine.samplers.protocol import Branch, Sampling, Savings

TILE_TOKENS = 6144
# Attention scores computed at a time: half a MiB.
SCORES = 1 << 17
# What a score in bits is in units of the softmax.
BITS = math.log(2)
DEFAULT_SAVINGS = Savings()


@dataclass(frozen=True, slots=True)
class _Layer:
    """Matrices of a block; those behind a norm have its weights multiplied in, and queries give scores in bits.

    A power of two costs a CPU a third of an exponential.
    """

    qkv: Tensor
    out: Tensor
    up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True)
class _Slots:
    """Where one branch lives in the row: its mark at `start`, its tokens behind it."""

    start: int
    drafted: int
    length: int


class NativeSampler:
    """Plain-torch engine; see the module docstring."""

    name = "native"
    device = torch.device("cpu")

    def __init__(
        self, model: SectorForCausalLM, num_threads: int | None = None, savings: Savings = DEFAULT_SAVINGS
    ) -> None:
        self._savings = savings
        self._pool = ThreadPoolExecutor(num_threads or os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,))
        self._legal = tokens.legal_table()
        self.load(model)

    def load(self, model: SectorForCausalLM) -> None:
        """Take a copy of the model's weights."""
        config = model.config
        self._heads, self._eps = config.num_attention_heads, config.rms_norm_eps
        cos, sin = rope_table(config).unbind(dim=1)
        self._rope = torch.complex(cos, sin)
        self._embed = model.embed.weight.detach().clone()
        self._head = (model.head.weight * model.norm.weight).detach()
        self._layers = [_copy_layer(block, config.head_dim) for block in model.blocks]
        self._first_qkv = self._read_every_id()
        self.weights_sha256 = weights_sha256(model)

    def sample(self, prefix: Tensor, branches: Sequence[Branch], sampling: Sampling) -> list[Tensor]:
        """See `protocol.Sampler`."""
        count = len(prefix)
        if count == 0:
            return [prefix.new_empty(0, branch.length) for branch in branches]
        if not self._savings.drafts:
            branches = [replace(branch, draft=None) for branch in branches]
        if self._savings.shared_prefix:
            return self._sample_branches(prefix, branches, sampling)
        return [
            output
            for index, branch in enumerate(branches)
            for output in self._sample_branches(prefix, [branch], replace(sampling, stage=sampling.stage + index))
        ]

    @torch.inference_mode()
    def _read_every_id(self) -> Tensor:
        """`[V, 3D]` queries, keys and values of the first layer, rotated: they depend on nothing but the id."""
        ids = torch.arange(tokens.VOCAB_SIZE).unsqueeze(0)
        embedded = F.embedding(tokens.class_of(ids), self._embed)
        return self._rotated(F.linear(self._normed(embedded), self._layers[0].qkv), ids).squeeze(0)

    def _sample_branches(self, prefix: Tensor, branches: Sequence[Branch], sampling: Sampling) -> list[Tensor]:
        """Complete all branches of a prefix together, tile by tile."""
        count = len(prefix)
        width = prefix.shape[1] + sum(1 + branch.length for branch in branches)
        # At least two tiles a core, so that both cores end at about the same time.
        tile = max(1, min(TILE_TOKENS // width, -(-count // (2 * self._pool._max_workers))))
        tiles = [slice(start, start + tile) for start in range(0, count, tile)]
        parts = list(self._pool.map(lambda rows: self._sample_tile(prefix, branches, sampling, rows), tiles))
        return [torch.cat(outputs) for outputs in zip(*parts, strict=True)]

    @torch.inference_mode()
    def _sample_tile(self, prefix: Tensor, branches: Sequence[Branch], sampling: Sampling, rows: slice) -> list[Tensor]:
        prefix, sampling = prefix[rows], sampling[rows]
        branches = [
            Branch(branch.mark[rows], branch.length, None if branch.draft is None else branch.draft[rows])
            for branch in branches
        ]
        layout = _lay_out(prefix.shape[1], branches)
        ids, slots = _first_pass(prefix, branches, layout)
        num_slots = layout[-1].start + layout[-1].length
        cache = _Cache(len(self._layers), len(prefix), self._heads, num_slots, self._embed)
        with named("prefix"):
            hidden = self._forward(ids, partial(cache.fill, spans=slots), skip=prefix.shape[1])
        ids = ids[:, prefix.shape[1] :]
        outputs = []
        at = 0
        for index, (branch, where) in enumerate(zip(branches, layout, strict=True)):
            span = slice(at, at + 1 + where.drafted)
            at = span.stop
            chosen = self._choose(hidden[:, span], ids[:, span], sampling, index, torch.arange(1 + where.drafted))
            output = chosen.new_empty(len(prefix), branch.length)
            known = accept(output, chosen, branch.draft, tokens.PAD_ID)
            with named("decode"):
                self._continue(output, known, cache, prefix.shape[1], where, sampling, index)
            outputs.append(output)
        return outputs

    def _continue(
        self,
        output: Tensor,
        known: Tensor,
        cache: "_Cache",
        prefix_length: int,
        where: _Slots,
        sampling: Sampling,
        branch: int,
    ) -> None:
        """Decode on, in place: `output [B, length]` holds `known [B]` tokens of each row, the last one not yet read."""
        slot_range = torch.arange(cache.num_slots)
        shared = slot_range < prefix_length
        unfinished = _is_unfinished(output, known)
        rows = unfinished.nonzero().squeeze(1)
        while len(rows):
            # Rows that wait for the others repeat their last step; what comes of it is not kept.
            step = known[rows].clamp(max=output.shape[1] - 1)
            ids = output[rows, step - 1].unsqueeze(1)
            slots = where.start + step
            own = (slot_range >= where.start) & (slot_range <= slots.unsqueeze(1))
            seen = (shared | own)[:, None, None, :]
            hidden = self._forward(ids, partial(cache.append, rows=rows, slots=slots, seen=seen))
            chosen = self._choose(hidden, ids, sampling[rows], branch, step.unsqueeze(1)).squeeze(1)
            output[rows, step] = torch.where(unfinished[rows], chosen, output[rows, step])
            known[rows] += unfinished[rows]
            unfinished = _is_unfinished(output, known)
            if self._savings.drop_finished or not unfinished.any():
                rows = unfinished.nonzero().squeeze(1)

    def _forward(self, ids: Tensor, attend: "_Attend", skip: int = 0) -> Tensor:
        """Ids `[B, T]` -> `[B, T - skip, D]` before the final norm.

        skip: the first tokens of which nothing is chosen. The last layer needs their keys and values, and no more.
        """
        batch, length = ids.shape
        x = F.embedding(tokens.class_of(ids), self._embed)
        qkv = F.embedding(ids, self._first_qkv)
        for index, layer in enumerate(self._layers):
            if index > 0:
                qkv = self._rotated(F.linear(self._normed(x), layer.qkv), ids)
            q, k, v = qkv.view(batch, length, 3 * self._heads, -1).transpose(1, 2).chunk(3, dim=1)
            if index == len(self._layers) - 1:
                q, x = q[:, :, skip:], x[:, skip:]
            x = x + F.linear(attend(index, q, k, v), layer.out)
            x = x + F.linear(F.linear(self._normed(x), layer.up).relu_().square_(), layer.down)
        return x

    def _rotated(self, qkv: Tensor, ids: Tensor) -> Tensor:
        """Rotate the queries and keys in `[B, T, 3D]` by the places of ids `[B, T]`, in place."""
        size = qkv.shape[-1] // 3
        pairs = torch.view_as_complex(qkv[..., : 2 * size].unflatten(-1, (2 * self._heads, -1, 2)))
        pairs.mul_(self._rope[tokens.place_of(ids)].unsqueeze(2))
        return qkv

    def _normed(self, x: Tensor) -> Tensor:
        """RMS norm without its weights; a quarter of the time of `F.rms_norm` on a CPU."""
        return x * x.square().mean(dim=-1, keepdim=True).add_(self._eps).rsqrt_()

    def _choose(self, hidden: Tensor, ids: Tensor, sampling: Sampling, branch: int, steps: Tensor) -> Tensor:
        """Hidden states `[B, T, D]` of `ids` -> the ids `[B, T]` chosen to follow them; `steps [B or 1, T]`."""
        logits = F.linear(self._normed(hidden), self._head).masked_fill(
            ~self._legal[tokens.class_of(ids)], float("-inf")
        )
        if sampling.temperature > 0:
            noise = sampling.gumbel(branch, sampling.rows.unsqueeze(1), steps, tokens.NUM_CLASSES)
            logits = logits / sampling.temperature + noise
        return tokens.next_ids(ids, logits.argmax(dim=-1))


# What a layer does with queries, keys and values `[B, H, T, K]`: remember, and attend -> `[B, T, D]`.
_Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class _Cache:
    """Keys and values `[layers, B, H, S, K]` of one tile."""

    def __init__(self, layers: int, batch: int, heads: int, num_slots: int, like: Tensor) -> None:
        shape = (layers, batch, heads, num_slots, like.shape[1] // heads)
        self.num_slots = num_slots
        # Zeros, not empty: masked slots are read, and 0 * NaN is NaN.
        self._k, self._v = like.new_zeros(shape), like.new_zeros(shape)

    def fill(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, spans: Sequence[slice]) -> Tensor:
        """The first pass: the prefix and the branches behind it, which go to these slots and do not see each other.

        Queries may be of the last tokens only.
        """
        at, skipped, attended = 0, k.shape[2] - q.shape[2], []
        prefix = spans[0].stop
        for span in spans:
            part = slice(at, at + span.stop - span.start)
            at = part.stop
            own_k, own_v = k[:, :, part], v[:, :, part]
            self._k[layer][:, :, span], self._v[layer][:, :, span] = own_k, own_v
            if part.start < skipped:
                continue
            if part.start > 0:
                own_k, own_v = torch.cat([k[:, :, :prefix], own_k], dim=2), torch.cat([v[:, :, :prefix], own_v], dim=2)
            attended.append(_attend_causally(q[:, :, part.start - skipped : part.stop - skipped], own_k, own_v))
        return torch.cat(attended, dim=1)

    def append(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, rows: Tensor, slots: Tensor, seen: Tensor
    ) -> Tensor:
        """One token more at a slot `[B]` of each of some rows, which attends to the slots `seen [B, 1, 1, S]`."""
        cached_k, cached_v = self._k[layer], self._v[layer]
        cached_k[rows, :, slots], cached_v[rows, :, slots] = k[:, :, 0], v[:, :, 0]
        if len(rows) != len(cached_k):
            cached_k, cached_v = cached_k[rows], cached_v[rows]
        return F.scaled_dot_product_attention(q, cached_k, cached_v, attn_mask=seen, scale=BITS).flatten(1).unsqueeze(1)


def _attend_causally(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries `[B, H, T, K]` of the last T of S tokens, and keys and values of all -> `[B, T, D]`.

    Scores are in bits. A head at a time and as many rows as leave their scores in the cache of a core: with heads this
    small, fused attention spends its time between its blocks, and batches over heads theirs with copies (LOG.md).
    """
    batch, heads, length, size = q.shape
    num_keys = k.shape[2]
    unseen = torch.ones(length, num_keys, dtype=torch.bool).triu(num_keys - length + 1)
    bias = torch.zeros(length, num_keys).masked_fill(unseen, float("-inf"))
    attended = q.new_empty(batch, length, heads, size)
    rows = max(1, SCORES // (length * num_keys))
    for start in range(0, batch, rows):
        some = slice(start, start + rows)
        for head in range(heads):
            scores = torch.bmm(q[some, head], k[some, head].transpose(1, 2)).add_(bias)
            scores.sub_(scores.amax(dim=-1, keepdim=True)).exp2_()
            mixed = torch.bmm(scores, v[some, head])
            attended[some, :, head] = mixed.div_(scores.sum(dim=-1, keepdim=True))
    return attended.flatten(2)


@torch.no_grad()
def _copy_layer(block: nn.Module, head_dim: int) -> _Layer:
    assert isinstance(block, Block)
    q, k, v = (block.attention.qkv.weight * block.attention_norm.weight).chunk(3)
    q = q * (head_dim**-0.5 / math.log(2))
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


def _lay_out(prefix_length: int, branches: Sequence[Branch]) -> list[_Slots]:
    layout, at = [], prefix_length
    for branch in branches:
        drafted = 0 if branch.draft is None else min(branch.draft.shape[1], branch.length - 1)
        layout.append(_Slots(at, drafted, branch.length))
        at += branch.length
    return layout


def _first_pass(prefix: Tensor, branches: Sequence[Branch], layout: list[_Slots]) -> tuple[Tensor, list[slice]]:
    """Ids `[B, T]` of prefix, marks and drafts, and the slots of each part."""
    parts, spans = [prefix], [slice(0, prefix.shape[1])]
    for branch, where in zip(branches, layout, strict=True):
        parts.append(branch.mark)
        if branch.draft is not None:
            parts.append(branch.draft[:, : where.drafted])
        spans.append(slice(where.start, where.start + 1 + where.drafted))
    return torch.cat(parts, dim=1), spans


def _is_unfinished(output: Tensor, known: Tensor) -> Tensor:
    """`[B]` which rows go on: not ended, and not full."""
    last = output.gather(1, known.unsqueeze(1) - 1).squeeze(1)
    ended = tokens.is_eos(last) | (last == tokens.PAD_ID)
    return ~ended & (known < output.shape[1])
