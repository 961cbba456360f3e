"""The model for the trainer: the function of `SectorForCausalLM`, with forward and backward passes by hand.

Autograd keeps each intermediate and visits it again; at these sizes that takes longer than the matrix products. Here
norms and the residual are fused with the products beside them, attention skips masked pieces, and the last layer
computes only keys and values of a prompt. Gradients are the same except for rounding.

In the shape descriptions B is the rows, T the tokens of a row, P the tokens of its prompt, Q its queries, S the keys
that they attend to, N the tokens of all rows, H the heads, K the size of a head, D = H * K the hidden size and I the
inner size.

In bfloat16 all `[N, D]` and larger tensors are bfloat16, and sums over them, softmax and rotations float32 inside.
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
from sector.engine.models.layers import Block
from sector.engine.models.sector import SectorForCausalLM
from sector.engine.samplers.native_attention import future_mask
from sector.engine.training.precision import accumulating

# The longest row that attends in one piece, in tokens.
_SHORT = 64


def branch_states(model: SectorForCausalLM, ids: Tensor, places: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return the states `[B, T - P, D]` after the final norm of the tokens behind the prompts of ids `[B, T]`.

    places: `[B, T]` rotary positions.
    lengths: tokens of the prompt, then of each branch behind it.

    A token attends to the prompt and to the earlier tokens of its own branch.
    """
    config = model.config
    rotation = model.rope().to(accumulating(model.dtype))[places.flatten()].unsqueeze(1).unbind(dim=2)
    x = _embedded(model, tokens.class_of(ids)).flatten(0, 1)
    parts, last_parts = _parts(lengths, 0, x), _parts(lengths, lengths[0], x)
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
    normed = _Norm.apply(x, model.norm.weight, config.rms_norm_eps) if _is_narrow(x) else model.norm(x)
    return normed.unflatten(0, (len(ids), -1))


def _embedded(model: SectorForCausalLM, classes: Tensor) -> Tensor:
    """Return the embeddings `[B, T, D]` of classes `[B, T]`.

    In bfloat16 they are a product with ones and zeros: its backward pass adds up in float32, that of an embedding in
    bfloat16, row by row.
    """
    weight = model.embed.weight
    if not _is_narrow(weight):
        embedded: Tensor = model.embed(classes)
        return embedded
    ones = classes.unsqueeze(-1) == torch.arange(len(weight), device=classes.device)
    return ones.to(weight.dtype) @ weight


def _is_narrow(x: Tensor) -> bool:
    """Return whether the type of x is too narrow to add up in, as bfloat16 is."""
    return x.dtype != accumulating(x.dtype)


class _Norm(Function):
    """RMS norm `[N, D]` -> `[N, D]` that makes no float32 copy of its input; weight: `[D]`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed, scale = _normed(x, eps)
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_norm_backward(grad.clone(), *ctx.saved_tensors), None


class _Project(Function):
    """Norm, product and rotation: states `[N, D]` -> queries, keys and values `[3, H, N, K]`.

    weight: `[D]` weight of the norm.
    qkv: `[3D, D]` matrix of queries, keys and values.
    cos, sin: `[N, 1, K/2]` rotation of each token.
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
        grad_qkv = grad.new_empty(len(normed), grad.shape[0] * grad.shape[1], grad.shape[3])
        _rotate(grad.flatten(0, 1).transpose(0, 1), cos, -sin, grad_qkv)
        flat = grad_qkv.flatten(1)
        grad_x, grad_weight = _norm_backward(flat @ qkv, normed, scale, weight)
        return grad_x, grad_weight, flat.T @ (normed * weight), None, None, None


class _Attend(Function):
    """Attention: queries, keys and values `[3, H * B, T, K]` -> attended values `[H * B, Q, K]`.

    parts: the parts of a row that have queries.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, parts: "list[_Part]") -> Tensor:
        q, k, v = qkv
        out = q.new_empty(len(q), parts[-1].queries.stop, q.shape[2])
        shares = []
        for part in parts:
            scores = torch.baddbmm(part.mask, q[:, part.tokens], part.keys_of(k).transpose(1, 2), alpha=_score_scale(q))
            shares.append(scores.softmax(dim=2))
            out[:, part.queries] = torch.bmm(shares[-1], part.keys_of(v))
        ctx.save_for_backward(qkv, out, *shares)
        ctx.parts = parts
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, out, *shares = ctx.saved_tensors
        q, k, v = qkv
        grad_qkv = torch.zeros_like(qkv)
        grad_q, grad_k, grad_v = grad_qkv
        # The gradient of a softmax needs the mean of the gradients of its shares, which is this product.
        means = (grad * out).sum(dim=2, keepdim=True, dtype=accumulating(grad.dtype))
        for part, share in zip(ctx.parts, shares, strict=True):
            part_grad = grad[:, part.queries]
            grad_scores = torch.bmm(part_grad, part.keys_of(v).transpose(1, 2)).sub_(means[:, part.queries])
            grad_scores.mul_(share).mul_(_score_scale(q))
            grad_q[:, part.tokens] = torch.bmm(grad_scores, part.keys_of(k))
            grad_part_k = torch.bmm(grad_scores.transpose(1, 2), q[:, part.tokens])
            grad_part_v = torch.bmm(share.transpose(1, 2), part_grad)
            for keys, columns in part.pieces:
                grad_k[:, keys] += grad_part_k[:, columns]
                grad_v[:, keys] += grad_part_v[:, columns]
        return grad_qkv, None


class _Mlp(Function):
    """Feed-forward: norm, both products and the residual, `[N, D]` -> `[N, D]`.

    weight: `[D]` weight of the norm.
    up: `[I, D]` first matrix.
    down: `[D, I]` second matrix.
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
        grad_inner = torch.addmm(grad.new_zeros(()), grad, down, beta=0, alpha=2).mul_(inner)
        grad_x, grad_weight = _norm_backward(grad_inner @ up, normed, scale, weight)
        return grad_x.add_(grad), grad_weight, grad_inner.T @ (normed * weight), grad.T @ (inner * inner), None


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a row in attention.

    tokens: tokens of the part, in the row.
    queries: the same tokens, among the queries.
    pieces: pieces of the row that the part attends to, each with its columns of the scores.
    mask: `[Q, S]` 0 for keys that a query attends to, minus infinity for others.
    """

    tokens: slice
    queries: slice
    pieces: list[tuple[slice, slice]]
    mask: Tensor

    def keys_of(self, x: Tensor) -> Tensor:
        """Return the keys or values `[H * B, S, K]` of `x [H * B, T, K]` that the part attends to."""
        first, *others = (x[:, piece] for piece, _ in self.pieces)
        return torch.cat([first, *others], dim=1) if others else first


def _parts(lengths: Sequence[int], skip: int, like: Tensor) -> list[_Part]:
    """Return the parts of a row that have queries.

    lengths: tokens of the prompt, then of each branch.
    skip: tokens without queries at the beginning of a row: 0, or the prompt.
    like: tensor of the type and device of the masks.

    A short row is one part with one mask, because there an operation costs more than the products that it saves.
    """
    prompt, total = lengths[0], sum(lengths)
    if total <= _SHORT:
        everything = slice(0, total)
        mask = future_mask(total, like)
        for branch in _spans(lengths)[1:]:
            mask[branch, prompt : branch.start] = float("-inf")
        return [_Part(slice(skip, total), slice(0, total - skip), [(everything, everything)], mask[skip:])]
    return [
        _Part(part, slice(part.start - skip, part.stop - skip), *_pieces(part, prompt, like))
        for part in _spans(lengths)
        if part.start >= skip and part.stop > part.start
    ]


def _pieces(part: slice, prompt: int, like: Tensor) -> tuple[list[tuple[slice, slice]], Tensor]:
    """Return the pieces and the mask of a part: its tokens up to each query, and the prompt if it is a branch."""
    length = part.stop - part.start
    if part.start <= prompt:
        # The prompt, and the branch that follows it without a gap.
        everything = slice(0, part.stop)
        return [(everything, everything)], future_mask(length, like, part.start)
    before = slice(0, prompt)
    return [(before, before), (part, slice(prompt, prompt + length))], future_mask(length, like, prompt)


def _spans(lengths: Sequence[int]) -> list[slice]:
    """Return the slices of a row that parts of these lengths take."""
    return [slice(stop - length, stop) for length, stop in zip(lengths, accumulate(lengths), strict=True)]


def _score_scale(q: Tensor) -> float:
    """Return the factor of the scores of queries `[..., K]`."""
    return float(q.shape[-1]) ** -0.5


def _normed(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the RMS norm of `[N, D]` without its weight, and the factors `[N, 1]` that it multiplied by."""
    scale = (x * x).mean(dim=1, keepdim=True, dtype=accumulating(x.dtype)).add_(eps).rsqrt_()
    # Without `out` the product of bfloat16 and float32 would be float32.
    return torch.mul(x, scale, out=torch.empty_like(x)), scale


def _norm_backward(grad: Tensor, normed: Tensor, scale: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of a norm's input `[N, D]` and weight `[D]`; overwrite `grad`, that of its output."""
    grad_weight = (grad * normed).sum(dim=0)
    grad.mul_(weight)
    along = (grad * normed).mean(dim=1, keepdim=True, dtype=accumulating(grad.dtype))
    return grad.addcmul_(normed, along, value=-1).mul_(scale), grad_weight


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Write to `out` the values of x and its rotated queries and keys, all `[N, 3H, K]`; see `sector.rotate`."""
    pairs = 2 * x.shape[1] // 3
    real, imaginary = x[:, :pairs].chunk(2, dim=2)
    out_real, out_imaginary = out[:, :pairs].chunk(2, dim=2)
    torch.mul(real, cos, out=out_real).addcmul_(imaginary, sin, value=-1)
    torch.mul(imaginary, cos, out=out_imaginary).addcmul_(real, sin)
    out[:, pairs:] = x[:, pairs:]
