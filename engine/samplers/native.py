"""The native engine: batched, cached decoding in plain torch, made for short contexts and small models.

One forward pass reads a prefix once for all its branches: the branches follow one another in the same row, and a mask
keeps each from seeing the others (a token's position is its place, so it does not matter where in the row it stands).
Drafts ride along in that pass; the first token that differs from the model's own choice is replaced by that choice,
and decoding goes on from there token by token, so that the output is the one of plain decoding (lossless).

The batch is cut into tiles that stay in the cache of one core, and each core works on its own tiles: for matrices this
small, that is faster than two cores sharing one operation.

Legend: B rows of a tile, P prefix tokens, T tokens of a pass, S slots of the cache, H heads, K head size, D hidden.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sector.engine import tokens
from sector.engine.checkpoint import weights_sha256
from sector.engine.model import Block, SectorForCausalLM, rope_table, rotate
from sector.engine.samplers.protocol import Branch, Sampling

TILE_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm: Tensor
    qkv: Tensor
    out: Tensor
    mlp_norm: Tensor
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

    def __init__(self, model: SectorForCausalLM, num_threads: int | None = None) -> None:
        self._pool = ThreadPoolExecutor(num_threads or os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,))
        self._legal = tokens.legal_table()
        self.load(model)

    def load(self, model: SectorForCausalLM) -> None:
        """Take a copy of the model's weights."""
        config = model.config
        self._heads, self._eps = config.num_attention_heads, config.rms_norm_eps
        self._rope = rope_table(config)
        self._embed = model.embed.weight.detach().clone()
        self._norm = model.norm.weight.detach().clone()
        self._head = model.head.weight.detach().clone()
        self._layers = [_copy_layer(block) for block in model.blocks]
        self.weights_sha256 = weights_sha256(model)

    def sample(self, prefix: Tensor, branches: Sequence[Branch], sampling: Sampling) -> list[Tensor]:
        """See `protocol.Sampler`."""
        count = len(prefix)
        if count == 0:
            return [prefix.new_empty(0, branch.length) for branch in branches]
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
        ids, slots, mask = _first_pass(prefix, branches, layout)
        cache = _Cache(len(self._layers), len(prefix), self._heads, layout[-1].start + layout[-1].length, self._embed)
        hidden = self._forward(ids, cache, slots, mask)
        outputs = []
        at = prefix.shape[1]
        for index, (branch, where) in enumerate(zip(branches, layout, strict=True)):
            span = slice(at, at + 1 + where.drafted)
            at = span.stop
            chosen = self._choose(hidden[:, span], ids[:, span], sampling, index, torch.arange(1 + where.drafted))
            output, done_until = _accept(chosen, branch)
            self._continue(output, done_until, cache, prefix.shape[1], where, sampling, index)
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
        rows = _unfinished(output, known)
        while len(rows):
            step = known[rows]
            ids = output[rows, step - 1].unsqueeze(1)
            slots = (where.start + step).unsqueeze(1)
            own = (slot_range >= where.start) & (slot_range <= slots)
            hidden = self._forward(ids, cache, slots, (shared | own)[:, None, None, :], rows)
            output[rows, step] = self._choose(hidden, ids, sampling[rows], branch, step.unsqueeze(1)).squeeze(1)
            known[rows] += 1
            rows = rows[_is_unfinished(output[rows], known[rows])]

    def _forward(self, ids: Tensor, cache: "_Cache", slots: Tensor, mask: Tensor, rows: Tensor | None = None) -> Tensor:
        """Ids `[B, T]` at `slots` (`[T]`, or `[B, 1]` for one token a row) -> `[B, T, D]` before the final norm."""
        batch, length = ids.shape
        cos, sin = self._rope[tokens.place_of(ids)].unsqueeze(2).unbind(dim=3)
        x = F.embedding(tokens.class_of(ids), self._embed)
        hidden = x.shape[-1]
        for index, layer in enumerate(self._layers):
            normed = F.rms_norm(x, (hidden,), layer.attention_norm, self._eps)
            qkv = F.linear(normed, layer.qkv).view(batch, length, 3 * self._heads, -1)
            qk, v = qkv.split([2 * self._heads, self._heads], dim=2)
            q, k = rotate(qk, cos, sin).transpose(1, 2).chunk(2, dim=1)
            k, v = cache.update(index, k, v.transpose(1, 2), slots, rows)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = x + F.linear(y.transpose(1, 2).reshape(batch, length, hidden), layer.out)
            normed = F.rms_norm(x, (hidden,), layer.mlp_norm, self._eps)
            x = x + F.linear(F.relu(F.linear(normed, layer.up)).square_(), layer.down)
        return x

    def _choose(self, hidden: Tensor, ids: Tensor, sampling: Sampling, branch: int, steps: Tensor) -> Tensor:
        """Hidden states `[B, T, D]` of `ids` -> the ids `[B, T]` chosen to follow them; `steps [B or 1, T]`."""
        normed = F.rms_norm(hidden, (hidden.shape[-1],), self._norm, self._eps)
        logits = F.linear(normed, self._head).masked_fill(~self._legal[tokens.class_of(ids)], float("-inf"))
        if sampling.temperature > 0:
            noise = sampling.gumbel(branch, sampling.rows.unsqueeze(1), steps, tokens.NUM_CLASSES)
            logits = logits / sampling.temperature + noise
        return tokens.next_ids(ids, logits.argmax(dim=-1))


class _Cache:
    """Keys and values `[layers, B, H, S, K]` of one tile."""

    def __init__(self, layers: int, batch: int, heads: int, num_slots: int, like: Tensor) -> None:
        shape = (layers, batch, heads, num_slots, like.shape[1] // heads)
        self.num_slots = num_slots
        # Zeros, not empty: masked slots are read, and 0 * NaN is NaN.
        self._k, self._v = like.new_zeros(shape), like.new_zeros(shape)

    def update(self, layer: int, k: Tensor, v: Tensor, slots: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Write `[B, H, T, K]` at slots `[T]` of all rows, or at `[B, 1]` of some; return what those rows hold."""
        cached_k, cached_v = self._k[layer], self._v[layer]
        if rows is None:
            cached_k[:, :, slots], cached_v[:, :, slots] = k, v
            return cached_k, cached_v
        cached_k[rows, :, slots[:, 0]], cached_v[rows, :, slots[:, 0]] = k[:, :, 0], v[:, :, 0]
        if len(rows) == len(cached_k):
            return cached_k, cached_v
        return cached_k[rows], cached_v[rows]


def _copy_layer(block: nn.Module) -> _Layer:
    assert isinstance(block, Block)
    attention = block.attention
    return _Layer(
        *(
            module.weight.detach().clone()
            for module in (
                block.attention_norm,
                attention.qkv,
                attention.out,
                block.mlp_norm,
                block.up,
                block.down,
            )
        )
    )


def _lay_out(prefix_length: int, branches: Sequence[Branch]) -> list[_Slots]:
    layout, at = [], prefix_length
    for branch in branches:
        drafted = 0 if branch.draft is None else min(branch.draft.shape[1], branch.length - 1)
        layout.append(_Slots(at, drafted, branch.length))
        at += branch.length
    return layout


def _first_pass(prefix: Tensor, branches: Sequence[Branch], layout: list[_Slots]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids `[B, T]` of prefix, marks and drafts, their slots `[T]`, and the mask `[1, 1, T, S]` between them."""
    parts, slots = [prefix], [torch.arange(prefix.shape[1])]
    branch_of = [torch.full((prefix.shape[1],), -1)]
    slot_branch = torch.full((layout[-1].start + layout[-1].length,), -1)
    for index, (branch, where) in enumerate(zip(branches, layout, strict=True)):
        parts.append(branch.mark)
        if branch.draft is not None:
            parts.append(branch.draft[:, : where.drafted])
        slots.append(torch.arange(where.start, where.start + 1 + where.drafted))
        branch_of.append(torch.full((1 + where.drafted,), index))
        slot_branch[where.start : where.start + where.length] = index
    all_slots, owner = torch.cat(slots), torch.cat(branch_of)
    causal = all_slots[:, None] >= torch.arange(len(slot_branch))[None, :]
    mask = causal & ((slot_branch[None, :] == -1) | (slot_branch[None, :] == owner[:, None]))
    return torch.cat(parts, dim=1), all_slots, mask[None, None]


def _accept(chosen: Tensor, branch: Branch) -> tuple[Tensor, Tensor]:
    """The model's choices `[B, drafted+1]` behind mark and draft -> output `[B, length]` and known tokens `[B]`.

    A choice stands as long as every drafted token before it was the model's own choice.
    """
    count, offered = chosen.shape
    output = chosen.new_full((count, branch.length), tokens.PAD_ID)
    if branch.draft is None:
        stands = torch.ones(count, 1, dtype=torch.bool)
    else:
        agrees = chosen[:, :-1] == branch.draft[:, : offered - 1]
        stands = F.pad(agrees.long().cumprod(dim=1), (1, 0), value=1).bool()
    output[:, :offered] = torch.where(stands, chosen, tokens.PAD_ID)
    return output, stands.sum(dim=1)


def _unfinished(output: Tensor, known: Tensor) -> Tensor:
    return _is_unfinished(output, known).nonzero().squeeze(1)


def _is_unfinished(output: Tensor, known: Tensor) -> Tensor:
    last = output.gather(1, known.unsqueeze(1) - 1).squeeze(1)
    ended = tokens.is_eos(last) | (last == tokens.PAD_ID)
    return ~ended & (known < output.shape[1])
