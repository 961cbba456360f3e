"""Stepwise decoding: one pass reads the prompts, then each step gives every unfinished sequence its next token.

A step is a few kernels per layer (`kernels/decode_attention.py`, `kernels/digit_sampler.py`). Its whole state is on the
device: the last token of each sequence, and its position in the cache and in the random stream. So on a GPU a step is
captured once as a CUDA graph and replayed, and the host reads only every few steps which sequences are unfinished. All
branches of all rows are decoded together: a row of the cache holds the prefix, followed by the slots of each branch.

Drafts are read with the prompts. The first token that differs from the model's own choice is replaced by that choice,
and steps continue from there, so that the output equals that of plain decoding.

A graph reads and writes the memory it was captured with. So the cache is allocated once and viewed in a few shapes
(slots per row: powers of two), states have a few sizes (`_bucket`), and weights are replaced in place (`gpu.py`). A
state may have room for more sequences than there are. The rest of it is idle and writes to a spare output.

With bfloat16 weights, operands and cache are bfloat16; the residual stream, norms, softmax and logits are float32.

Legend: B rows, P prefix tokens, J branches, T tokens of the first pass, U of them after the prefix, Q sequences (B
times J, fewer as they finish), S slots of a row, L layers, H heads, K head size, D hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sector.engine.models.sector import rotate
from sector.engine.samplers.protocol import accept
from sector.kernels.completion import Model, Request
from sector.kernels.decode_attention import Positions, decode_attention
from sector.kernels.digit_sampler import Head, Sampled, sample_digits
from sector.kernels.philox import Stream

# Steps between two reads of which sequences are unfinished: a read waits for the device, about as long as a step.
LOOK_EVERY = 8

_MIN_SLOTS = 64
_MIN_SEQUENCES = 32
# Tokens that a pass reads: their activations take some 5 GB at the preset base. With `_MIN_SLOTS` this keeps rows below
# 65,536, the limit of the grids of fused attention.
_MAX_TOKENS = 1 << 20
# The first launch of a kernel compiles, loads and allocates workspace, which must not happen during capture.
_WARM_UPS = 2


class _Field(IntEnum):
    """Fields of the state of a sequence, an int64 each.

    ID: its last token, not yet read.
    ROW: its row of the cache; -1 if it is idle or finished.
    START: the first slot of its branch, as in `Positions`.
    PREFIX: the number of slots of its prefix, as in `Positions`.
    LIMIT: the maximum of its new tokens.
    COUNTER: its row in the random stream.
    STAGE: its stage in the random stream.
    SLOT: the slot of its last token, as in `Positions`.
    STEP: the number of its new tokens so far.
    OUT: the index of the next token in the output.
    """

    ID = 0
    ROW = 1
    START = 2
    PREFIX = 3
    LIMIT = 4
    COUNTER = 5
    STAGE = 6
    # The following three grow by one per step.
    SLOT = 7
    STEP = 8
    OUT = 9


@dataclass(frozen=True, slots=True)
class _Context:
    """A view of the memory for rows of S slots.

    cache: `[L, 2, rows, H, S, K]` keys and values.
    output: `[rows * S + 1]` generated ids; the last one is the spare output of idle sequences.
    idle: `[fields, 1]` the state of an idle sequence.
    """

    cache: Tensor
    output: Tensor
    idle: Tensor

    @property
    def num_slots(self) -> int:
        return self.cache.shape[4]


@dataclass(frozen=True, slots=True)
class _Step:
    """A step for up to Q sequences.

    state: `[fields, Q]` the sequences.
    run: gives each sequence its next token.
    """

    state: Tensor
    run: Callable[[], None]


@dataclass(frozen=True, slots=True)
class _FirstPass:
    """Tokens of the first pass: the prefix, then the mark and the draft of each branch.

    ids: `[B, T]`.
    spans: slots of the prefix and of each branch.
    mask: `[1, 1, T, T]` bool, the tokens (last axis) that each token attends to.
    stages, steps: `[U]` positions in the random stream of the choices after marks and drafts.
    """

    ids: Tensor
    spans: list[slice]
    mask: Tensor
    stages: Tensor
    steps: Tensor


class Stepwise:
    """Stepwise decoding with the weights of `model`, which may change in place.

    cache_bytes: memory for keys and values; at most half of the free memory of a GPU.
    """

    def __init__(self, model: Model, cache_bytes: int) -> None:
        weights, table = model.weights, model.table
        self._model = model
        self._head = Head(weights.norm, weights.head, model.eps)
        device, dtype = weights.qkv.device, weights.qkv.dtype
        all_ids = torch.arange(table.num_local * (table.max_place + 1), device=device)
        self._classes = table.class_of(all_ids)
        self._seed = torch.zeros(1, dtype=torch.int64, device=device)
        if device.type == "cuda":
            cache_bytes = min(cache_bytes, torch.cuda.mem_get_info(device)[0] // 2)
        self._memory = torch.empty(cache_bytes // dtype.itemsize, dtype=dtype, device=device)
        self._contexts: dict[int, _Context] = {}
        self._steps: dict[tuple[int, int, float], _Step] = {}
        self._graph_memory = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def capacity(self, prefix_length: int, lengths: Sequence[int]) -> int:
        """Return the maximum of rows of a request of this shape."""
        return self._context(prefix_length + sum(lengths)).cache.shape[2]

    def complete(self, request: Request, drafts: Sequence[Tensor | None]) -> list[Tensor]:
        """Return J completions `[B, length]` int64, with PAD after the end; B is at most `capacity`.

        drafts: one per branch, `[B, any]` ids that its completions are likely to begin with, or None.
        """
        (batch, prefix_length), lengths = request.prefix.shape, request.lengths
        context = self._context(prefix_length + sum(lengths))
        self._seed.fill_(_signed(request.seed))
        outputs = [
            part.view(batch, -1)
            for part in context.output[: batch * sum(lengths)].split([batch * length for length in lengths])
        ]
        first = _first_pass(request, drafts)
        chosen = self._choose(self._read(first, context), first, request)
        parts = chosen.split([span.stop - span.start for span in first.spans[1:]], dim=1)
        pad_id = self._model.table.pad_id
        counts = [
            accept(output, part, draft, pad_id) for output, part, draft in zip(outputs, parts, drafts, strict=True)
        ]
        sequences = self._unfinished(_sequences(request, outputs, counts))
        while sequences.shape[1]:
            step = self._step(context, sequences.shape[1], request.temperature)
            _fill(step.state, sequences, context.idle)
            for _ in range(min(LOOK_EVERY, int((sequences[_Field.LIMIT] - sequences[_Field.STEP]).max()))):
                step.run()
            sequences = step.state[:, step.state[_Field.ROW] >= 0]
        return [output.clone() for output in outputs]

    def _context(self, slots: int) -> _Context:
        slots = max(_MIN_SLOTS, 1 << (slots - 1).bit_length())
        if slots not in self._contexts:
            (layers, _, hidden), heads = self._model.weights.up.shape, self._model.num_heads
            row_size = 2 * layers * slots * hidden
            rows = min(_MAX_TOKENS // slots, len(self._memory) // row_size)
            if rows == 0:
                needed = row_size * self._memory.element_size()
                raise ValueError(f"a row of {slots} tokens needs {needed:,} bytes of cache, more than there are")
            cache = self._memory[: rows * row_size].view(layers, 2, rows, heads, slots, hidden // heads)
            output = torch.empty(rows * slots + 1, dtype=torch.int64, device=cache.device)
            idle = output.new_zeros(len(_Field), 1)
            idle[_Field.ID] = self._model.table.pad_id
            idle[_Field.ROW] = -1
            idle[_Field.OUT] = rows * slots
            self._contexts[slots] = _Context(cache, output, idle)
        return self._contexts[slots]

    def _step(self, context: _Context, count: int, temperature: float) -> _Step:
        """Return the step for `count` sequences; the sequences of a new step are idle."""
        size = _bucket(count)
        key = context.num_slots, size, temperature
        if key not in self._steps:
            state = context.idle.repeat(1, size)
            advance = partial(self._advance, state, context, temperature)
            self._steps[key] = _Step(state, self._captured(advance) if state.is_cuda else advance)
        return self._steps[key]

    def _captured(self, advance: Callable[[], None]) -> Callable[[], None]:
        """Capture `advance` as a CUDA graph. Its sequences are idle, so the warm-up has no effect on outputs."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                advance()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._graph_memory):
            advance()
        return graph.replay

    def _read(self, first: _FirstPass, context: _Context) -> Tensor:
        """Cache keys and values of the first pass; return the hidden states `[B, U, D]` of marks and drafts."""
        weights, (batch, length) = self._model.weights, first.ids.shape
        rope = weights.rope[first.ids // self._model.table.num_local]
        cos, sin = rope.unsqueeze(2).unbind(dim=3)
        x = self._embed(first.ids)
        sizes = [span.stop - span.start for span in first.spans]
        for layer, (keys, values) in enumerate(context.cache):
            # The last layer skips the queries of the prefix: no token is chosen after them.
            start = sizes[0] if layer == len(weights.qkv) - 1 else 0
            qkv = F.linear(self._normed(x, weights.attention_norm[layer]), weights.qkv[layer])
            q, k, v = qkv.view(batch, length, 3, self._model.num_heads, -1).unbind(dim=2)
            q, k = (rotate(part, cos, sin).to(v.dtype) for part in (q, k))
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            for span, new_k, new_v in zip(first.spans, k.split(sizes, dim=2), v.split(sizes, dim=2), strict=True):
                keys[:batch, :, span], values[:batch, :, span] = new_k, new_v
            y = F.scaled_dot_product_attention(q[:, :, start:], k, v, attn_mask=first.mask[:, :, start:])
            y = y.transpose(1, 2).flatten(2)
            x = self._feed_forward(x[:, start:] + F.linear(y, weights.out[layer]), layer)
        return x

    def _choose(self, hidden: Tensor, first: _FirstPass, request: Request) -> Tensor:
        """Choose the ids `[B, U]` that follow, from the hidden states `[B, U, D]` of the first pass."""
        (batch, count), rows = hidden.shape[:2], request.rows
        positions = torch.broadcast_tensors(rows.unsqueeze(1), first.stages, first.steps)
        stream = Stream(self._seed, *(position.flatten().contiguous() for position in positions))
        ids = first.ids[:, -count:].flatten().contiguous()
        sampled = sample_digits(hidden.flatten(0, 1), ids, self._head, self._model.table, request.temperature, stream)
        return sampled.ids.view(batch, count)

    def _unfinished(self, sequences: Tensor) -> Tensor:
        """Return the unfinished ones of the sequences `[fields, Q]`."""
        table = self._model.table
        classes = self._classes[sequences[_Field.ID]]
        room = sequences[_Field.STEP] < sequences[_Field.LIMIT]
        return sequences[:, room & (classes != table.eos) & (classes != table.pad)]

    def _advance(self, state: Tensor, context: _Context, temperature: float) -> None:
        """Take one step. It may not read from the device, since on a GPU it is captured."""
        weights, table = self._model.weights, self._model.table
        ids, rows, out = state[_Field.ID], state[_Field.ROW], state[_Field.OUT]
        at = Positions(rows, state[_Field.SLOT], state[_Field.START], state[_Field.PREFIX])
        places = ids // table.num_local
        x = self._embed(ids)
        for layer, (keys, values) in enumerate(context.cache):
            qkv = F.linear(self._normed(x, weights.attention_norm[layer]), weights.qkv[layer])
            y = decode_attention(qkv, places, weights.rope, keys, values, at, out=qkv.new_empty(x.shape))
            x = self._feed_forward(x + F.linear(y, weights.out[layer]), layer)
        stream = Stream(self._seed, state[_Field.COUNTER], state[_Field.STAGE], state[_Field.STEP])
        sampled = Sampled(ids, x.new_empty(len(x)), torch.empty_like(ids, dtype=torch.bool))
        sample_digits(x, ids, self._head, table, temperature, stream, out=sampled)
        context.output.scatter_(0, out, ids)
        state[_Field.SLOT :].add_(1)
        # Finished sequences, at their end or at their limit, are idle from here on.
        ended = sampled.stopped | (state[_Field.STEP] >= state[_Field.LIMIT])
        rows.masked_fill_(ended, -1)
        out.masked_fill_(ended, len(context.output) - 1)

    def _embed(self, ids: Tensor) -> Tensor:
        """Embed ids `[...]` -> `[..., D]` float32."""
        return F.embedding(self._classes[ids], self._model.weights.embed).float()

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """Normalise `[..., D]` float32, and convert it to the dtype of the weights."""
        return F.rms_norm(x, weight.shape, weight.float(), self._model.eps).to(weight.dtype)

    def _feed_forward(self, x: Tensor, layer: int) -> Tensor:
        """Return the residual stream `[..., D]` after the feed-forward of a layer."""
        weights = self._model.weights
        features = F.relu(F.linear(self._normed(x, weights.mlp_norm[layer]), weights.up[layer])).square_()
        return x + F.linear(features, weights.down[layer])


def _first_pass(request: Request, drafts: Sequence[Tensor | None]) -> _FirstPass:
    prefix_length, device = request.prefix.shape[1], request.prefix.device
    parts, spans = [request.prefix], [slice(0, prefix_length)]
    start = prefix_length
    for branch, (length, draft) in enumerate(zip(request.lengths, drafts, strict=True)):
        part = request.marks[:, branch : branch + 1]
        if draft is not None:
            # The last token of a completion need not be read: no token is chosen after it.
            part = torch.cat([part, draft[:, : length - 1]], dim=1)
        parts.append(part)
        spans.append(slice(start, start + part.shape[1]))
        start += length
    sizes = torch.tensor([part.shape[1] for part in parts])
    # The part of each token: 0 is the prefix, 1 the first branch.
    part_index = torch.arange(len(parts)).repeat_interleave(sizes)
    visible = (part_index[None, :] == 0) | (part_index[None, :] == part_index[:, None])
    return _FirstPass(
        ids=torch.cat(parts, dim=1),
        spans=spans,
        mask=visible.tril()[None, None].to(device),
        stages=(request.stage + part_index[prefix_length:] - 1).to(device),
        steps=torch.cat([torch.arange(part.shape[1]) for part in parts[1:]]).to(device),
    )


def _sequences(request: Request, outputs: list[Tensor], counts: list[Tensor]) -> Tensor:
    """Return the state `[fields, J * B]` of all sequences. Branches follow one another in the cache and in the output.

    outputs: `[B, length]` ids, one per branch.
    counts: `[B]` the number of ids generated so far, one per branch.
    """
    batch, prefix_length = request.prefix.shape
    rows = torch.arange(batch, device=request.prefix.device)
    start, first_out = prefix_length, 0
    branches = []
    for branch, (length, output, count) in enumerate(zip(request.lengths, outputs, counts, strict=True)):
        values: dict[_Field, int | Tensor] = {
            _Field.ID: output.gather(1, count.unsqueeze(1) - 1).squeeze(1),
            _Field.ROW: rows,
            _Field.START: start,
            _Field.PREFIX: prefix_length,
            _Field.LIMIT: length,
            _Field.COUNTER: request.rows,
            _Field.STAGE: request.stage + branch,
            _Field.SLOT: start + count,
            _Field.STEP: count,
            _Field.OUT: first_out + length * rows + count,
        }
        sequences = rows.new_empty(len(_Field), batch)
        for field, value in values.items():
            sequences[field] = value
        branches.append(sequences)
        start, first_out = start + length, first_out + length * batch
    return torch.cat(branches, dim=1)


def _fill(state: Tensor, sequences: Tensor, idle: Tensor) -> None:
    """Copy sequences `[fields, <= Q]` into a state `[fields, Q]`, and fill it up with `idle [fields, 1]`."""
    count = sequences.shape[1]
    state[:, :count] = sequences
    state[:, count:] = idle


def _bucket(count: int) -> int:
    """Return a size of at least `count`: a power of two, or 1.5 times one, so that at most a third is idle."""
    power = max(_MIN_SEQUENCES, 1 << (count - 1).bit_length())
    smaller = power * 3 // 4
    return smaller if _MIN_SEQUENCES <= count <= smaller else power


def _signed(seed: int) -> int:
    """Return 64 bits as a signed number."""
    return (seed + 2**63) % 2**64 - 2**63
