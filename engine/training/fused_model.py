"""The model as the trainer computes it: the function of `model.SectorForCausalLM`, forward and backward by hand.

Autograd keeps every intermediate and walks over it again; at sizes like these that takes longer than the products. Here
norms and the residual go with the products beside them, attention skips what a mask would hide, and the last layer
computes of a prompt what the branches read of it, keys and values. Gradients are the same but for rounding.

Legend: B rows, T tokens of a row, P of them the prompt, Q of them that ask, S keys, N tokens of all rows, H heads, K
head size, D = H * K the hidden size, I the inner size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from sector.engine.language import tokens
from sector.engine.models.sector import Block, SectorForCausalLM
from sector.engine.samplers.native_attention import future_mask

# The most tokens of a row that attends in one piece.
_SHORT = 64


def branch_states(model: SectorForCausalLM, ids: Tensor, places: Tensor, lengths: Sequence[int]) -> Tensor:
    """Ids `[B, T]` -> `[B, T - P, D]` after the final norm: the tokens behind the prompt.

    places: `[B, T]` rotary positions. lengths: of the prompt, then of each branch behind it. A token sees the prompt
    and what comes before it in its own part.
    """
    config = model.config
    rotation = model.rope().to(model.dtype)[places.flatten()].unsqueeze(1).unbind(dim=2)
    parts, last_parts = _parts(lengths, 0, rotation[0]), _parts(lengths, lengths[0], rotation[0])
    x = model.embed(tokens.class_of(ids)).flatten(0, 1)
    for block in model.blocks:
        assert isinstance(block, Block)
        attention = block.attention
        qkv = _Project.apply(x, block.attention_norm.weight, attention.qkv.weight, *rotation, config.rms_norm_eps)
        is_last = block is model.blocks[-1]
        if is_last:
            x = x.unflatten(0, ids.shape)[:, lengths[0] :].flatten(0, 1)
        attended = _Attend.apply(qkv.unflatten(2, ids.shape).flatten(1, 2), last_parts if is_last else parts)
        heads_first = attended.unflatten(0, (-1, len(ids)))
        x = torch.addmm(x, heads_first.permute(1, 2, 0, 3).reshape(x.shape), attention.out.weight.T)
        x = _Mlp.apply(x, block.mlp_norm.weight, block.up.weight, block.down.weight, config.rms_norm_eps)
    return model.norm(x).unflatten(0, (len(ids), -1))


class _Project(Function):
    """Norm, product and rotation: `[N, D]` -> queries, keys and values `[3, H, N, K]`.

    weight: `[D]` of the norm. qkv: `[3D, D]`. cos, sin: `[N, 1, K/2]`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        normed, scale = _normed(x, eps)
        flat = F.linear(normed * weight, qkv).unflatten(1, (-1, 2 * cos.shape[2]))
        out = flat.new_empty(flat.shape[1], len(x), flat.shape[2])
        _rotate(flat, cos, sin, out.transpose(0, 1))
        ctx.save_for_backward(normed, scale, weight, qkv, cos, sin)
        return out.unflatten(0, (3, -1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        normed, scale, weight, qkv, cos, sin = ctx.saved_tensors
        back = grad.new_empty(len(normed), grad.shape[0] * grad.shape[1], grad.shape[3])
        _rotate(grad.flatten(0, 1).transpose(0, 1), cos, -sin, back)
        flat = back.flatten(1)
        to_x, to_weight = _norm_backward(flat @ qkv, normed, scale, weight)
        return to_x, to_weight, flat.T @ (normed * weight), None, None, None


class _Attend(Function):
    """Queries, keys and values `[3, H * B, T, K]` -> attended values `[H * B, Q, K]` of the tokens that ask.

    parts: those of a row that ask.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, parts: "list[_Part]") -> Tensor:
        q, k, v = qkv
        out = q.new_empty(len(q), parts[-1].asked.stop, q.shape[2])
        shares = []
        for part in parts:
            scores = torch.baddbmm(part.mask, q[:, part.own], part.seen(k).transpose(1, 2), alpha=_score_scale(q))
            shares.append(scores.softmax(dim=2))
            out[:, part.asked] = torch.bmm(shares[-1], part.seen(v))
        ctx.save_for_backward(qkv, out, *shares)
        ctx.parts = parts
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, out, *shares = ctx.saved_tensors
        q, k, v = qkv
        back = torch.zeros_like(qkv)
        to_q, to_k, to_v = back
        # The gradient of a softmax needs the mean of those of its shares: their product with what came out.
        means = (grad * out).sum(dim=2, keepdim=True)
        for part, share in zip(ctx.parts, shares, strict=True):
            own = grad[:, part.asked]
            to_scores = torch.bmm(own, part.seen(v).transpose(1, 2)).sub_(means[:, part.asked])
            to_scores.mul_(share).mul_(_score_scale(q))
            to_q[:, part.own] = torch.bmm(to_scores, part.seen(k))
            to_seen_k = torch.bmm(to_scores.transpose(1, 2), q[:, part.own])
            to_seen_v = torch.bmm(share.transpose(1, 2), own)
            for keys, columns in part.pieces:
                to_k[:, keys] += to_seen_k[:, columns]
                to_v[:, keys] += to_seen_v[:, columns]
        return back, None


class _Mlp(Function):
    """Norm, both products and the residual: `[N, D]` -> `[N, D]`.

    weight: `[D]` of the norm. up: `[I, D]`. down: `[D, I]`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, up: Tensor, down: Tensor, eps: float) -> Tensor:
        normed, scale = _normed(x, eps)
        inner = F.linear(normed * weight, up).relu_()
        ctx.save_for_backward(normed, scale, inner, weight, up, down)
        return torch.addmm(x, inner * inner, down.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        normed, scale, inner, weight, up, down = ctx.saved_tensors
        # The slope of relu squared is twice relu.
        to_inner = torch.addmm(grad.new_zeros(()), grad, down, beta=0, alpha=2).mul_(inner)
        to_x, to_weight = _norm_backward(to_inner @ up, normed, scale, weight)
        return to_x.add_(grad), to_weight, to_inner.T @ (normed * weight), grad.T @ (inner * inner), None


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a row as it attends.

    own: its tokens. asked: where they lie among the queries. pieces: of the row that it sees, and which columns of its
    scores belong to each. mask: `[Q, S]` minus infinity where it does not look, else zero.
    """

    own: slice
    asked: slice
    pieces: list[tuple[slice, slice]]
    mask: Tensor

    def seen(self, x: Tensor) -> Tensor:
        """Of `[H * B, T, K]` what it sees, `[H * B, S, K]`."""
        first, *others = (x[:, piece] for piece, _ in self.pieces)
        return torch.cat([first, *others], dim=1) if others else first


def _parts(lengths: Sequence[int], skip: int, like: Tensor) -> list[_Part]:
    """The parts that ask: all, or those behind the prompt if that is skipped.

    Short rows are one part, mask and all: there each operation costs more than what it computes.
    """
    prompt, total = lengths[0], sum(lengths)
    if total <= _SHORT:
        everything = slice(0, total)
        mask = future_mask(total, like)
        for own in _spans(lengths)[1:]:
            mask[own, prompt : own.start] = float("-inf")
        return [_Part(slice(skip, total), slice(0, total - skip), [(everything, everything)], mask[skip:])]
    return [
        _Part(own, slice(own.start - skip, own.stop - skip), *_view(own, prompt, like))
        for own in _spans(lengths)
        if own.start >= skip and own.stop > own.start
    ]


def _view(own: slice, prompt: int, like: Tensor) -> tuple[list[tuple[slice, slice]], Tensor]:
    """What a part sees and its mask: itself up to where it stands, and the prompt if it is a branch."""
    length = own.stop - own.start
    if own.start <= prompt:
        # The prompt, and the branch that follows it without a gap.
        everything = slice(0, own.stop)
        return [(everything, everything)], future_mask(length, like, own.start)
    before = slice(0, prompt)
    return [(before, before), (own, slice(prompt, prompt + length))], future_mask(length, like, prompt)


def _spans(lengths: Sequence[int]) -> list[slice]:
    return [slice(stop - length, stop) for length, stop in zip(lengths, accumulate(lengths), strict=True)]


def _score_scale(q: Tensor) -> float:
    return float(q.shape[-1]) ** -0.5


def _normed(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """RMS norm without its weights, and what `[N, D]` was multiplied by, `[N, 1]`."""
    scale = (x * x).mean(dim=1, keepdim=True).add_(eps).rsqrt_()
    return x * scale, scale


def _norm_backward(grad: Tensor, normed: Tensor, scale: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients `[N, D]` of what was normed and `[D]` of the weights, from that of the result, which is used up."""
    to_weight = (grad * normed).sum(dim=0)
    grad.mul_(weight)
    along = (grad * normed).mean(dim=1, keepdim=True)
    return grad.addcmul_(normed, along, value=-1).mul_(scale), to_weight


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Rotate queries and keys, copy values: `[N, 3H, K]` to a tensor of that shape; see `model.rotate`."""
    pairs = 2 * x.shape[1] // 3
    real, imaginary = x[:, :pairs].chunk(2, dim=2)
    out_real, out_imaginary = out[:, :pairs].chunk(2, dim=2)
    torch.mul(real, cos, out=out_real).addcmul_(imaginary, sin, value=-1)
    torch.mul(imaginary, cos, out=out_imaginary).addcmul_(real, sin)
    out[:, pairs:] = x[:, pairs:]
