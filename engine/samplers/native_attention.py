"""Attention over the parts of a row on a CPU: the beginning of a prompt, the rest of it, and the branches after it.

The softmax does not subtract the maximum. So numerators and sums over several sets of keys add up, and two passes over
the scores are saved. If the sums show that float32 does not hold the scores, attention is computed in float64.

Scores are in bits, since a power of two costs a CPU a third of an exponential. Heads are the first axis, so that heads
and rows form one batch of plain products: with heads this small, the overhead of fused attention dominates (log.md).

Legend: H heads, B rows, T tokens of a pass, Q of them with queries, L tokens of the beginning, S keys, K head size,
D = H * K.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sector.engine.errors import InputError

# One bit of a score in units of the softmax.
BITS = math.log(2)
# Maximum of attention scores computed at a time: 4 MiB.
SCORES = 1 << 20


def attend(q: Tensor, kv: Tensor, spans: Sequence[slice], beginning: Tensor | None) -> Tensor:
    """Return the attended values `[B * Q, D]` of the last Q of T tokens.

    A token attends to the earlier tokens of its part, to all of the prompt, and to the beginning. Raise InputError if
    float64 does not hold the scores.

    q: `[H, B, Q, K]` queries.
    kv: `[H, B, T, 2K]` keys and values of all T tokens.
    spans: the parts of a row, the prompt and the branches after it; parts before the last Q tokens are keys only.
    beginning: `[H, B, L, 2K]` keys and values of the tokens before the T tokens, read in an earlier call.
    """
    return _in_range(partial(_mix, spans), q, kv, beginning)


@dataclass(frozen=True, slots=True)
class Seen:
    """Slots that the query of one token per row attends to, of a cache of keys `[H, B, K, slots]` and values
    `[H, B, slots, K]`.

    keys: `[H * B, K]` indices of the components of the keys, in the cache flattened to rows of `slots` numbers.
    values: `[H * B, S]` indices of the values of the first S slots, in the cache flattened to rows of K numbers.
    unseen: `[B, S]` bool, the slots that are masked; None if there are none.
    """

    keys: Tensor
    values: Tensor
    unseen: Tensor | None

    @staticmethod
    def up_to(last: Tensor, num_heads: int, head_dim: int, num_slots: int) -> "Seen":
        """Return all slots up to the slot `last [B]` of each row."""
        lowest, highest = (int(slot) for slot in last.aminmax())
        pairs = torch.arange(num_heads * len(last), dtype=torch.int32).unsqueeze(1)
        return Seen(
            pairs * head_dim + torch.arange(head_dim, dtype=torch.int32),
            pairs * num_slots + torch.arange(highest + 1, dtype=torch.int32),
            # Rows at the same slot need no mask.
            None if lowest == highest else torch.arange(highest + 1) > last.unsqueeze(1),
        )


def attend_from_one(q: Tensor, keys: Tensor, values: Tensor, seen: Seen) -> Tensor:
    """Return the attended values `[B, D]` of one token per row; raise InputError as in `attend`.

    q: `[H, B, 1, K]` queries.
    keys, values: the cache, see `Seen`. Masked slots may hold any finite numbers.
    """
    return _in_range(partial(_mix_one, seen), q, keys, values)


def _in_range(mix: Callable[..., tuple[Tensor, Tensor]], q: Tensor, *others: Tensor | None) -> Tensor:
    """Run `mix` in the dtype of its tensors, or in float64 if the sums leave their range; return `[B * Q, D]`.

    Raise InputError if they leave the range of float64, too. No trained model has scores of hundreds of bits.
    """
    mixed, sums = mix(q, *others)
    if not _is_in_range(sums):
        mixed, sums = mix(*(None if tensor is None else tensor.double() for tensor in (q, *others)))
        if not _is_in_range(sums):
            raise InputError(
                "the model's attention scores leave the range of float64; its weights are broken; "
                "restore them, or train again"
            )
    heads_first = mixed.view(len(q), -1, mixed.shape[2])
    return heads_first.transpose(0, 1).flatten(1).to(q.dtype)


def _mix_one(seen: Seen, q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return attended values `[H * B, 1, K]` and the sums that divided them, `[H * B, 1, 1]`."""
    scores = _weighted_sums(q.flatten(0, 2), keys.flatten(0, 2), seen.keys)[:, : seen.values.shape[1]].exp2()
    if seen.unseen is not None:
        scores.view(len(q), *seen.unseen.shape).masked_fill_(seen.unseen, 0.0)
    sums = scores.sum(dim=1, keepdim=True)
    return _weighted_sums(scores, values.flatten(0, 2), seen.values).div_(sums).unsqueeze(1), sums.unsqueeze(2)


def _weighted_sums(weights: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """Return `[N, W]` sums of the rows `[N, M]` of a table `[R, W]`, times `weights [N, M]`.

    `embedding_bag` takes half the time of a batched product, which would compute these vector products one by one.
    """
    return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)


def _is_in_range(sums: Tensor) -> bool:
    """Return whether no sum has overflowed, and none is so small that terms were lost to underflow."""
    low, high = sums.aminmax()
    limits = torch.finfo(sums.dtype)
    return bool(low > limits.tiny**0.5) and bool(high < limits.max**0.5)


def _mix(spans: Sequence[slice], q: Tensor, kv: Tensor, beginning: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return attended values `[H * B, Q, K]` and the sums that divided them, `[H * B, Q, 1]`."""
    num_queries, length = q.shape[2], kv.shape[2]
    beginning = None if beginning is None else beginning.flatten(0, 1)
    q, kv = q.flatten(0, 1), kv.flatten(0, 1)
    mixed, sums = q.new_empty(q.shape), q.new_empty(*q.shape[:2], 1)
    steps = _steps(spans, num_queries, length)
    masks = {keys.stop - keys.start: future_mask(keys.stop - keys.start, q) for _, keys, causal in steps if causal}
    num_scores = num_queries * max(length, 0 if beginning is None else beginning.shape[1])
    block = max(1, SCORES // num_scores)
    for start in range(0, len(q), block):
        rows = slice(start, start + block)
        block_q, out, total = q[rows], mixed[rows], sums[rows]
        k, v = _keys_and_values(kv[rows])
        for queries, keys, causal in steps:
            if causal:
                # Each query is in exactly one causal step, which comes first and so initialises its sums.
                scores = torch.baddbmm(masks[keys.stop - keys.start], block_q[:, queries], k[..., keys]).exp2_()
                total[:, queries], out[:, queries] = scores.sum(dim=2, keepdim=True), torch.bmm(scores, v[:, keys])
            else:
                _add(total[:, queries], out[:, queries], torch.bmm(block_q[:, queries], k[..., keys]), v[:, keys])
        if beginning is not None:
            k, v = _keys_and_values(beginning[rows])
            _add(total, out, torch.bmm(block_q, k), v)
        out.div_(total)
    return mixed, sums


def _keys_and_values(kv: Tensor) -> tuple[Tensor, Tensor]:
    """Split `[N, S, 2K]` into keys `[N, K, S]` and values `[N, S, K]`."""
    k, v = kv.chunk(2, dim=2)
    return k.transpose(1, 2), v


def _steps(spans: Sequence[slice], num_queries: int, length: int) -> list[tuple[slice, slice, bool]]:
    """Return (queries, keys, whether causal) of each product: parts with themselves, then branches with the prompt."""
    skipped = length - num_queries
    steps = [(slice(span.start - skipped, span.stop - skipped), span, True) for span in spans if span.start >= skipped]
    prompt = spans[0]
    if prompt.stop < length:
        steps.append((slice(prompt.stop - skipped, num_queries), prompt, False))
    return steps


def _add(total: Tensor, out: Tensor, scores: Tensor, v: Tensor) -> None:
    """Add more keys: their weights to `total`, and their weighted values to `out`."""
    scores.exp2_()
    total += scores.sum(dim=2, keepdim=True)
    out += torch.bmm(scores, v)


def future_mask(length: int, like: Tensor, before: int = 0) -> Tensor:
    """Return `[Q, before + Q]`: minus infinity where a key comes after its query, else zero.

    All queries attend to the first `before` keys.
    """
    return like.new_full((length, before + length), float("-inf")).triu_(before + 1)
