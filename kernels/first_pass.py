"""The first pass of a call, kernel by kernel: it reads prefixes, marks and drafts at once, and accepts drafts.

It writes keys and values to the cache, and the accepted tokens to the output. Decoding goes on from there.

All rows have the same layout: the tokens of the prefix, then the mark and the draft of each branch. The first tokens of
a prefix need not be read if the cache holds them.

Legend: B rows, J branches, T tokens of a row, U of them after the prefix, D hidden size, L layers, H heads, S slots of
a row, K head size, O tokens of the output.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from sector.kernels.acceptance import accept
from sector.kernels.completion import Model
from sector.kernels.digit_sampler import Head, sample_digits
from sector.kernels.embedding import embed
from sector.kernels.layer import add_norm, rotate_to_cache, square_of_relu_
from sector.kernels.pass_attention import Spans, pass_attention
from sector.kernels.philox import Stream


@dataclass(frozen=True, slots=True)
class PassLayout:
    """Layout of the first pass over prefixes and branches, for all calls with the same lengths.

    sizes: count of tokens to read of the prefix, and of each branch.
    limits: count of slots of each branch, and of its tokens in the output.
    spans: the slots that each token attends to, and its own.
    branches: `[U]` int64, the branch of each mark and drafted token.
    steps: `[U]` int64, the step of the choice after it in the random stream.
    lengths: `[2, J]` int64: the limits, and their sum over all branches before each.
    """

    sizes: list[int]
    limits: list[int]
    spans: Spans
    branches: Tensor
    steps: Tensor
    lengths: Tensor


def first_pass(
    model: Model,
    ids: Tensor,
    layout: PassLayout,
    cache: Tensor,
    output: Tensor,
    temperature: float = 0.0,
    stream: Stream | None = None,
) -> Tensor:
    """Return the count of accepted tokens of each branch `[J, B]` int64.

    ids: `[B, T]` int64.
    cache: `[L, 2, >= B, H, S, K]` keys and values, without NaN; row b of the batch is row b of the cache.
    output: `[O]` int64. It gets the accepted tokens, with PAD behind them: the rows of the first branch one after
        another, then those of the second.
    temperature: 0 is greedy and needs no stream.
    stream: `[B * U]` positions in the random stream.
    """
    x, update = _read(model, ids, layout, cache)
    # The choices after marks and drafts, and the ids that they follow.
    count = len(layout.steps)
    tokens = ids[:, -count:].flatten().contiguous()
    head = Head(model.weights.norm, model.weights.head, model.eps)
    sampled = sample_digits(x, tokens, head, model.table, temperature, stream, update=update)
    return _accept(model, ids, sampled.ids.view(-1, count), layout, output)


def feed_forward(model: Model, x: Tensor, attended: Tensor, layer: int) -> Tensor:
    """Add attended values `[N, D]` to the residual stream x `[N, D]`, and return the update by the feed-forward."""
    weights = model.weights
    normed = add_norm(x, F.linear(attended, weights.out[layer]), weights.mlp_norm[layer], model.eps)
    return F.linear(square_of_relu_(F.linear(normed, weights.up[layer])), weights.down[layer])


def branch_outputs(output: Tensor, rows: int, limits: list[int]) -> list[Tensor]:
    """Return the part `[rows, limit]` of the output `[O]` for each branch."""
    parts = output[: rows * sum(limits)].split([rows * limit for limit in limits])
    return [part.view(rows, -1) for part in parts]


def _read(model: Model, ids: Tensor, layout: PassLayout, cache: Tensor) -> tuple[Tensor, Tensor]:
    """Cache keys and values of the tokens `[B, T]`.

    Return the states `[B * U, D]` of marks and drafts before the last update, and this update.
    """
    weights, (batch, length) = model.weights, ids.shape
    x, places = embed(ids.flatten(), weights.embed, model.table)
    places, update = places.view(batch, length), None
    for layer, (keys, values) in enumerate(cache):
        normed = add_norm(x, update, weights.attention_norm[layer], model.eps)
        qkv = F.linear(normed, weights.qkv[layer]).view(batch, length, -1)
        spans = layout.spans
        queries = rotate_to_cache(qkv, places, spans.slots, weights.rope, keys, values)
        if layer == len(weights.qkv) - 1:
            # The last layer skips the queries of the prefix: no token is chosen after them.
            start = layout.sizes[0]
            queries, spans = queries[:, start:], spans.since(start)
            x = x.view(batch, length, -1)[:, start:].flatten(0, 1).contiguous()
        attended = pass_attention(queries, keys, values, spans)
        update = feed_forward(model, x, attended.flatten(0, 1), layer)
    assert update is not None, "there is at least one layer"
    return x, update


def _accept(model: Model, ids: Tensor, chosen: Tensor, layout: PassLayout, output: Tensor) -> Tensor:
    """Accept the choices `[B, U]` after the tokens of `ids [B, T]`; return their counts `[J, B]`."""
    outputs = branch_outputs(output, len(ids), layout.limits)
    counts = ids.new_empty(len(outputs), len(ids))
    reads = [part.split(layout.sizes[1:], dim=1) for part in (ids[:, layout.sizes[0] :], chosen)]
    for branch_output, read, choices, count in zip(outputs, *reads, counts, strict=True):
        # Behind the mark are the drafted tokens.
        draft = read[:, 1:] if read.shape[1] > 1 else None
        accept(branch_output, choices, draft, model.table.token.pad_id, count)
    return counts
