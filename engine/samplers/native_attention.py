"""Attention over the parts of a row on a CPU: the beginning of a prompt, the rest of it, and branches behind it.

Softmax without the maximum: numerators and sums over several sets of keys then simply add up, and two of its passes
over the scores go away. Where scores lie too far apart for that in float32, which the sums tell, it is done in float64.

Scores are in bits: a power of two costs a CPU a third of an exponential. Heads come first, so that heads and rows are
one batch of plain products: with heads this small, fused attention spends its time between its blocks (LOG.md).

Legend: H heads, B rows, T tokens of a pass, Q of them that ask, L of the beginning, S keys, K head size, D = H * K.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sector.engine.errors import InputError

# What a score in bits is in units of the softmax.
BITS = math.log(2)
# The most attention scores computed at a time: 4 MiB.
SCORES = 1 << 20


def attend(q: Tensor, kv: Tensor, spans: Sequence[slice], beginning: Tensor | None) -> Tensor:
    """Queries `[H, B, Q, K]` of the last Q of T tokens, keys and values `[H, B, T, 2K]` of all -> `[B * Q, D]`.

    spans: the parts of a row, the prompt and the branches behind it. A token sees what comes before it in its own
    part, all of the prompt, and `beginning [H, B, L, 2K]`, the keys and values of tokens before it that were read
    earlier. Parts of which nothing is asked are keys only. InputError where no float holds the scores.
    """
    return _held(partial(_mix, spans), q, kv, beginning)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the query of one token a row sees of a cache of keys `[H, B, K, slots]` and values `[H, B, slots, K]`.

    keys: `[H * B, K]` and values: `[H * B, S]`: where the components of keys, and the values of the first S slots, lie.
    unseen: `[B, S]` which of these slots are not to be looked at; none of them if None.
    """

    keys: Tensor
    values: Tensor
    unseen: Tensor | None

    @staticmethod
    def up_to(last: Tensor, num_heads: int, head_dim: int, num_slots: int) -> "Seen":
        """Every slot up to the `last [B]` of each row."""
        first, most = (int(each) for each in last.aminmax())
        pairs = torch.arange(num_heads * len(last), dtype=torch.int32).unsqueeze(1)
        return Seen(
            pairs * head_dim + torch.arange(head_dim, dtype=torch.int32),
            pairs * num_slots + torch.arange(most + 1, dtype=torch.int32),
            # Rows in step with one another need no mask.
            None if first == most else torch.arange(most + 1) > last.unsqueeze(1),
        )


def attend_from_one(q: Tensor, keys: Tensor, values: Tensor, seen: Seen) -> Tensor:
    """The query `[H, B, 1, K]` of one token a row, keys and values of a cache (see `Seen`) -> `[B, D]`.

    InputError as in `attend`. Slots that are not seen may hold any finite numbers.
    """
    return _held(partial(_mix_one, seen), q, keys, values)


def _held(mix: Callable[..., tuple[Tensor, Tensor]], q: Tensor, *others: Tensor | None) -> Tensor:
    """What `mix` makes of tensors, in their own dtype if that holds the sums, else in float64; `[B * Q, D]`.

    InputError where float64 does not do either: no model that was trained has scores of hundreds of bits.
    """
    mixed, sums = mix(q, *others)
    if not _is_in_range(sums):
        mixed, sums = mix(*(None if tensor is None else tensor.double() for tensor in (q, *others)))
        if not _is_in_range(sums):
            raise InputError("the model's attention scores leave the range of float64; its weights are broken")
    heads_first = mixed.view(len(q), -1, mixed.shape[2])
    return heads_first.transpose(0, 1).flatten(1).to(q.dtype)


def _mix_one(seen: Seen, q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Attended values `[H * B, 1, K]` and the sums they were divided by, `[H * B, 1, 1]`."""
    scores = _weighted_sums(q.flatten(0, 2), keys.flatten(0, 2), seen.keys)[:, : seen.values.shape[1]].exp2()
    if seen.unseen is not None:
        scores.view(len(q), *seen.unseen.shape).masked_fill_(seen.unseen, 0.0)
    sums = scores.sum(dim=1, keepdim=True)
    return _weighted_sums(scores, values.flatten(0, 2), seen.values).div_(sums).unsqueeze(1), sums.unsqueeze(2)


def _weighted_sums(weights: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """Weights `[N, M]` of the rows `[N, M]` of a table `[R, W]` -> `[N, W]`.

    Products with one row each, which a batched product makes one by one: a bag of embeddings is made for that, and
    takes half the time.
    """
    return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)


def _is_in_range(sums: Tensor) -> bool:
    """Has nothing run over, and does nothing that was too small to be counted matter?"""
    low, high = sums.aminmax()
    limits = torch.finfo(sums.dtype)
    return bool(low > limits.tiny**0.5) and bool(high < limits.max**0.5)


def _mix(spans: Sequence[slice], q: Tensor, kv: Tensor, beginning: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attended values `[H * B, Q, K]` and the sums they were divided by, `[H * B, Q, 1]`."""
    asked, length = q.shape[2], kv.shape[2]
    begun = None if beginning is None else beginning.flatten(0, 1)
    q, kv = q.flatten(0, 1), kv.flatten(0, 1)
    mixed, sums = q.new_empty(q.shape), q.new_empty(*q.shape[:2], 1)
    steps = _steps(spans, asked, length)
    masks = {keys.stop - keys.start: future_mask(keys.stop - keys.start, q) for _, keys, causal in steps if causal}
    longest = asked * max(length, 0 if begun is None else begun.shape[1])
    rows = max(1, SCORES // longest)
    for start in range(0, len(q), rows):
        some = slice(start, start + rows)
        asking, out, total = q[some], mixed[some], sums[some]
        k, v = _keys_and_values(kv[some])
        for ask, keys, causal in steps:
            if causal:
                # Each query is in one part of its own: here, and first, its sums begin.
                scores = torch.baddbmm(masks[keys.stop - keys.start], asking[:, ask], k[..., keys]).exp2_()
                total[:, ask], out[:, ask] = scores.sum(dim=2, keepdim=True), torch.bmm(scores, v[:, keys])
            else:
                _add(total[:, ask], out[:, ask], torch.bmm(asking[:, ask], k[..., keys]), v[:, keys])
        if begun is not None:
            k, v = _keys_and_values(begun[some])
            _add(total, out, torch.bmm(asking, k), v)
        out.div_(total)
    return mixed, sums


def _keys_and_values(kv: Tensor) -> tuple[Tensor, Tensor]:
    """`[N, S, 2K]` -> `[N, K, S]` and `[N, S, K]`."""
    k, v = kv.chunk(2, dim=2)
    return k.transpose(1, 2), v


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


def future_mask(length: int, like: Tensor, before: int = 0) -> Tensor:
    """`[Q, before + Q]` minus infinity where a key comes after its query, else zero; all see the keys `before` them."""
    return like.new_full((length, before + length), float("-inf")).triu_(before + 1)
