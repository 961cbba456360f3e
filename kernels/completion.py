"""Completion, from the ids of prefixes to the ids of every branch: the types, the checks and the plain-torch reference.

A model is weights and a table of tokens. A request is prefixes and the marks that begin their branches. Branches of one
prefix do not attend to each other. `megakernel.py` computes all of it in one launch.

Legend: B rows of the batch, P prefix tokens, J branches, T tokens of a pass, S tokens in the cache, D hidden size,
L layers, H heads, K head size, F features of the feed-forward, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from sector.kernels._triton import expect
from sector.kernels.layer import rotate
from sector.kernels.philox import uniforms
from sector.kernels.token_table import TokenTable

# Keys and values `[B, H, S, K]`, one pair per layer.
_Cache: TypeAlias = list[tuple[Tensor, Tensor]]


class Weights(NamedTuple):
    """Tensors of a model, layers stacked. All have one dtype except `rope`. Linear weights are [out, in], as in torch.

    embed, head: `[C, D]`.
    attention_norm, mlp_norm: `[L, D]`.
    norm: `[D]`.
    qkv: `[L, 3D, D]`.
    out: `[L, D, D]`.
    up: `[L, F, D]`.
    down: `[L, D, F]`.
    rope: `[places, 2, K/2]` float32 cosines and sines.
    """

    embed: Tensor
    attention_norm: Tensor
    qkv: Tensor
    out: Tensor
    mlp_norm: Tensor
    up: Tensor
    down: Tensor
    norm: Tensor
    head: Tensor
    rope: Tensor


@dataclass(frozen=True, slots=True)
class Model:
    """A model as the kernels take it.

    weights: its tensors.
    table: its tokens.
    num_heads: H, which cannot be read off a shape.
    eps: epsilon of the RMS norms.
    """

    weights: Weights
    table: TokenTable
    num_heads: int
    eps: float


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """Prefixes to complete, and how to sample.

    prefix: `[B, P]` int64 ids.
    marks: `[B, J]` int64 ids; each begins one completion.
    lengths: the maximum of new tokens of each of the J branches.
    rows: `[B]` int64 counters of the random stream.
    stage: stage of the random stream; branch j draws from stage + j.
    seed: key of the random stream.
    temperature: 0 is greedy.
    """

    prefix: Tensor
    marks: Tensor
    lengths: Sequence[int]
    rows: Tensor
    stage: int = 0
    seed: int = 0
    temperature: float = 0.0

    def __getitem__(self, rows: slice) -> "CompletionRequest":
        return replace(self, prefix=self.prefix[rows], marks=self.marks[rows], rows=self.rows[rows])


def check_request(model: Model, request: CompletionRequest, logits: Tensor | None) -> None:
    """Raise ValueError unless the tensors have the shapes, dtypes and device that a completion needs."""
    weights, table, device = model.weights, model.table, request.prefix.device
    classes, hidden = table.token.num_classes, weights.norm.shape[0]
    layers, features = weights.up.shape[:2]
    dtype = weights.qkv.dtype
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"weights must be float32 or bfloat16, not {dtype}")
    shapes: dict[str, tuple[int | None, ...]] = {
        "embed": (classes, hidden),
        "attention_norm": (layers, hidden),
        "qkv": (layers, 3 * hidden, hidden),
        "out": (layers, hidden, hidden),
        "mlp_norm": (layers, hidden),
        "up": (layers, features, hidden),
        "down": (layers, hidden, features),
        "norm": (hidden,),
        "head": (classes, hidden),
    }
    for name, shape in shapes.items():
        expect(name, getattr(weights, name), shape, dtype, device)
    expect("rope", weights.rope, (None, 2, hidden // model.num_heads // 2), torch.float32, device)
    if len(weights.rope) <= table.token.max_place:
        raise ValueError(f"rope must reach place {table.token.max_place}, not {len(weights.rope) - 1}")
    if request.temperature < 0:
        raise ValueError(f"temperature must not be negative, got {request.temperature}")
    expect("table.legal", table.legal, (classes,), torch.int32, device)
    expect("prefix", request.prefix, (None, None), torch.int64, device)
    if request.prefix.shape[1] == 0:
        raise ValueError("prefix must have at least one token")
    batch, branches = len(request.prefix), len(request.lengths)
    expect("marks", request.marks, (batch, branches), torch.int64, device)
    expect("rows", request.rows, (batch,), torch.int64, device)
    if not branches or min(request.lengths) < 1:
        raise ValueError(f"lengths must be at least 1, one per branch, not {list(request.lengths)}")
    if logits is not None:
        expect("logits", logits, (branches, batch, max(request.lengths), classes), torch.float32, device)


def complete_reference(model: Model, request: CompletionRequest, logits: Tensor | None = None) -> list[Tensor]:
    """Compute `complete` in plain torch, in float32."""
    table = model.table
    model = replace(model, weights=Weights(*(tensor.float() for tensor in model.weights)))
    if logits is not None:
        logits.fill_(float("nan"))
    prefix_cache: _Cache = []
    _reference_pass(model, request.prefix, prefix_cache)
    outputs = []
    for branch, length in enumerate(request.lengths):
        cache = list(prefix_cache)
        ids = request.marks[:, branch]
        output = request.prefix.new_full((len(ids), length), table.token.pad_id)
        live = torch.ones_like(ids, dtype=torch.bool)
        for step in range(length):
            hidden = _reference_pass(model, ids[:, None], cache)[:, 0]
            step_logits, classes = _reference_choice(model, request, hidden, ids, branch, step)
            ids = table.next_ids(ids, classes)
            output[live, step] = ids[live]
            if logits is not None:
                logits[branch, live, step] = step_logits[live]
            live = live & (classes != table.token.eos) & (classes != table.token.pad)
            if not live.any():
                break
        outputs.append(output)
    return outputs


def _reference_pass(model: Model, ids: Tensor, cache: _Cache) -> Tensor:
    """Return hidden states `[B, T, D]`, before the final norm, of ids `[B, T]` that follow the tokens in the cache.

    Appends their keys and values to the cache.
    """
    weights, table, (batch, length) = model.weights, model.table, ids.shape
    cos, sin = weights.rope[ids // table.token.num_local].unsqueeze(1).unbind(dim=3)
    x = weights.embed[table.class_of(ids)]
    past = cache[0][0].shape[2] if cache else 0
    visible = torch.ones(length, past + length, dtype=torch.bool, device=ids.device).tril(past)
    for layer in range(len(weights.qkv)):
        normed = F.rms_norm(x, x.shape[-1:], weights.attention_norm[layer], model.eps)
        qkv = F.linear(normed, weights.qkv[layer]).view(batch, length, 3, model.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if past:
            k, v = torch.cat([cache[layer][0], k], dim=2), torch.cat([cache[layer][1], v], dim=2)
            cache[layer] = (k, v)
        else:
            cache.append((k, v))
        scores = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).masked_fill(~visible, float("-inf"))
        y = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, length, -1)
        x = x + F.linear(y, weights.out[layer])
        normed = F.rms_norm(x, x.shape[-1:], weights.mlp_norm[layer], model.eps)
        x = x + F.linear(F.relu(F.linear(normed, weights.up[layer])).square(), weights.down[layer])
    return x


def _reference_choice(
    model: Model, request: CompletionRequest, hidden: Tensor, ids: Tensor, branch: int, step: int
) -> tuple[Tensor, Tensor]:
    """Return logits `[B, C]`, -inf where illegal, and chosen classes `[B]`.

    hidden: `[B, D]` states of the tokens `ids [B]`.
    """
    normed = F.rms_norm(hidden, hidden.shape[-1:], model.weights.norm, model.eps)
    logits = F.linear(normed, model.weights.head).masked_fill(~model.table.may_follow(ids), float("-inf"))
    if request.temperature == 0:
        return logits, logits.argmax(dim=1)
    steps = torch.full_like(ids, step)
    noise = uniforms(request.seed, request.rows, request.stage + branch, steps, logits.shape[1])
    return logits, (logits / request.temperature - (-noise.log()).log()).argmax(dim=1)
