"""Attention over the parts of a row on a CPU: the beginning of a prompt, the rest of it, and branches behind it.

Softmax without the maximum: numerators and sums over several sets of keys then simply add up, and two of its passes
over the scores go away. Where scores lie too far apart for that in float32, which the sums tell, it is done in float64.

Scores are in bits: a power of two costs a CPU a third of an exponential. A head at a time, and as many rows as leave
their scores in the cache of a core: with heads this small, fused attention spends its time between its blocks, and
batches over heads theirs with copies (LOG.md).

Legend: B rows, T tokens of a pass, Q of them that ask, L of the beginning, H heads, K head size, D = H * K.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sector.engine.errors import InputError

# What a score in bits is in units of the softmax.
BITS = math.log(2)
# Attention scores computed at a time: half a MiB.
SCORES = 1 << 17


def attend(q: Tensor, kv: Tensor, spans: Sequence[slice], beginning: Tensor | None, heads: int) -> Tensor:
    """Queries `[B, Q, D]` of the last Q of T tokens, keys and values `[B, T, 2D]` of all -> `[B, Q, D]`.

    spans: the parts of a row, the prompt and the branches behind it. A token sees what comes before it in its own
    part, all of the prompt, and `beginning [B, L, 2D]`, the keys and values of tokens before it that were read
    earlier. Parts of which nothing is asked are keys only.
    """
    mixed, sums = _mix(q, kv, spans, beginning, heads)
    if not _is_in_range(sums):
        wide = None if beginning is None else beginning.double()
        mixed, sums = _mix(q.double(), kv.double(), spans, wide, heads)
        _check_range(sums)
    return mixed.to(q.dtype)


def attend_from_one(q: Tensor, keys: Tensor, values: Tensor, unseen: Tensor | None) -> Tensor:
    """The query `[B, 1, D]` of one token, keys `[B, H, K, S]` and values `[B, H, S, K]` -> `[B, 1, D]`.

    unseen: `[B, S]` keys not to be looked at; none of them if None.
    """
    mixed, sums = _mix_one(q, keys, values, unseen)
    if not _is_in_range(sums):
        mixed, sums = _mix_one(q.double(), keys.double(), values.double(), unseen)
        _check_range(sums)
    return mixed.to(q.dtype)


def _mix_one(q: Tensor, keys: Tensor, values: Tensor, unseen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attended values `[B, 1, D]` and the sums they were divided by, `[B * H, 1, 1]`."""
    batch, heads, size, length = keys.shape
    scores = torch.bmm(q.reshape(batch * heads, 1, size), keys.flatten(0, 1))
    if unseen is not None:
        scores.view(batch, heads, length).masked_fill_(unseen.unsqueeze(1), float("-inf"))
    scores.exp2_()
    sums = scores.sum(dim=2, keepdim=True)
    return torch.bmm(scores, values.flatten(0, 1)).div_(sums).view(batch, 1, -1), sums


def _is_in_range(sums: Tensor) -> bool:
    """Has nothing run over, and does nothing that was too small to be counted matter?"""
    low, high = sums.aminmax()
    limits = torch.finfo(sums.dtype)
    return bool(low > limits.tiny**0.5) and bool(high < limits.max**0.5)


def _check_range(sums: Tensor) -> None:
    """InputError where float64 does not do either: no model that was trained has scores of hundreds of bits."""
    if not _is_in_range(sums):
        raise InputError("the model's attention scores leave the range of float64; its weights are broken")


def _mix(q: Tensor, kv: Tensor, spans: Sequence[slice], beginning: Tensor | None, heads: int) -> tuple[Tensor, Tensor]:
    """Attended values `[B, Q, D]` and the sums they were divided by, `[H, B, Q, 1]`."""
    batch, asked, _ = q.shape
    q, kv = q.unflatten(2, (heads, -1)), kv.unflatten(2, (2 * heads, -1))
    mixed = q.new_empty(q.shape)
    sums = q.new_empty(heads, batch, asked, 1)
    steps = _steps(spans, asked, kv.shape[1])
    masks = {length: _future(length, q) for length in {own.stop - own.start for _, own, causal in steps if causal}}
    begun = None if beginning is None else beginning.unflatten(2, (2 * heads, -1))
    longest = max(asked * (0 if begun is None else begun.shape[1]), *(_area(ask, keys) for ask, keys, _ in steps))
    rows = max(1, SCORES // longest)
    for start in range(0, batch, rows):
        some = slice(start, start + rows)
        for head in range(heads):
            ask_all, total, out = q[some, :, head], sums[head, some], mixed[some, :, head]
            k, v = kv[some, :, head], kv[some, :, heads + head]
            for ask, keys, causal in steps:
                if causal:
                    # Each query is in one part of its own: here, and first, its sums begin.
                    mask = masks[keys.stop - keys.start]
                    scores = torch.baddbmm(mask, ask_all[:, ask], k[:, keys].transpose(1, 2)).exp2_()
                    total[:, ask], out[:, ask] = scores.sum(dim=2, keepdim=True), torch.bmm(scores, v[:, keys])
                else:
                    _add(total[:, ask], out[:, ask], torch.bmm(ask_all[:, ask], k[:, keys].transpose(1, 2)), v[:, keys])
            if begun is not None:
                k, v = begun[some, :, head], begun[some, :, heads + head]
                _add(total, out, torch.bmm(ask_all, k.transpose(1, 2)), v)
            out.div_(total)
    return mixed.flatten(2), sums


def _steps(spans: Sequence[slice], asked: int, length: int) -> list[tuple[slice, slice, bool]]:
    """(queries, keys, does a query see its own past only?): parts with themselves, then branches with their prompt."""
    skipped = length - asked
    steps = [(slice(span.start - skipped, span.stop - skipped), span, True) for span in spans if span.start >= skipped]
    prompt = spans[0]
    if prompt.stop < length:
        steps.append((slice(prompt.stop - skipped, asked), prompt, False))
    return steps


def _add(total: Tensor, out: Tensor, scores: Tensor, v: Tensor) -> None:
    """Count other keys in."""
    scores.exp2_()
    total += scores.sum(dim=2, keepdim=True)
    out += torch.bmm(scores, v)


def _area(ask: slice, keys: slice) -> int:
    return (ask.stop - ask.start) * (keys.stop - keys.start)


def _future(length: int, like: Tensor) -> Tensor:
    """`[T, T]` minus infinity where a key comes after its query, else zero."""
    return torch.full((length, length), float("-inf"), dtype=like.dtype).triu(1)
