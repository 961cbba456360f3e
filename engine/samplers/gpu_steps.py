"""Stepwise decoding: prompts are read in one pass, then every unfinished sequence gets a token a step.

A step is a few kernels a layer (`kernels/decode_attention.py`, `kernels/digit_sampler.py`) and takes its whole state
from the device: what a sequence has said, where it stands in the cache and in the random stream. So on a GPU a step is
captured once as a CUDA graph and replayed, and the host looks only every few steps at who is left. All branches of all
rows go side by side: a row of the cache holds the prefix and, behind it, the slots of each branch.

Drafts are read with the prompts. The first token that differs from the model's own choice is replaced by that choice,
and steps go on from there, so that what comes out is what plain decoding yields.

A graph reads and writes the memory it was captured with. So the cache is allocated once and seen through a few shapes
(slots a row: powers of two), states have a few sizes (`_bucket`), and weights are replaced in place (`gpu.py`). A
state has room for more sequences than there are; those left over are idle, and what they say goes to a spare place.

With bfloat16 weights, operands and cache are bfloat16; the residual stream, norms, softmax and logits are float32.

Legend: B rows, P prefix tokens, J branches, T tokens of the first pass, U of them behind the prefix, Q sequences (B
times J and fewer as they finish), S slots of a row, L layers, H heads, K head size, D hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sector.engine.models.sector import rotate
from sector.engine.samplers.drafts import accept
from sector.kernels.completion import Model, Request
from sector.kernels.decode_attention import Positions, decode_attention
from sector.kernels.digit_sampler import Head, Sampled, sample_digits
from sector.kernels.philox import Stream

# Steps between two looks at who is left: a look waits for the device, which costs about as much as a step.
LOOK_EVERY = 8

_MIN_SLOTS = 64
_MIN_SEQUENCES = 32
# Tokens read at once: what they need besides the cache is then some 5 GB at the preset base. With `_MIN_SLOTS` this
# keeps rows below 65,536, where grids of fused attention end.
_MAX_TOKENS = 1 << 20
# What the first launch of a kernel does (compile, load, ask for workspace) must not happen during capture.
_WARM_UPS = 2


class _Field(IntEnum):
    """What is known of a sequence, an int64 each.

    ID: its last token, not yet read. ROW: of the cache, -1 when finished. SLOT, START, PREFIX: as in `Positions`.
    STEP: tokens known. OUT: where the next one goes. LIMIT: the most tokens. COUNTER, STAGE: of its random stream.
    """

    ID = 0
    ROW = 1
    START = 2
    PREFIX = 3
    LIMIT = 4
    COUNTER = 5
    STAGE = 6
    # These three go up by one a step.
    SLOT = 7
    STEP = 8
    OUT = 9


@dataclass(frozen=True, slots=True)
class _Context:
    """The cache as rows of some size: `[L, 2, rows, H, S, K]`, and `[rows * S + 1]` generated ids, the last spare.

    idle: `[fields, 1]` a sequence that is none.
    """

    cache: Tensor
    output: Tensor
    idle: Tensor

    @property
    def num_slots(self) -> int:
        return self.cache.shape[4]


@dataclass(frozen=True, slots=True)
class _Step:
    """`run` gives every sequence in `state` `[fields, Q]` its next token."""

    state: Tensor
    run: Callable[[], None]


@dataclass(frozen=True, slots=True)
class _FirstPass:
    """What the first pass reads: the prefix, then of each branch its mark and its draft.

    ids: `[B, T]`. spans: slots, one span a part. mask: `[1, 1, T, T]`, which token sees which. stages, steps: `[U]`, of
    the choices behind marks and drafts.
    """

    ids: Tensor
    spans: list[slice]
    mask: Tensor
    stages: Tensor
    steps: Tensor


class Stepwise:
    """Completes requests with the weights of `model`, which may change in place.

    cache_bytes: memory for keys and values, or less on a GPU of which half is less.
    """

    def __init__(self, model: Model, cache_bytes: int) -> None:
        weights, table = model.weights, model.table
        self._model = model
        self._head = Head(weights.norm, weights.head, model.eps)
        device, dtype = weights.qkv.device, weights.qkv.dtype
        every_id = torch.arange(table.num_local * (table.max_place + 1), device=device)
        self._classes = table.class_of(every_id)
        self._seed = torch.zeros(1, dtype=torch.int64, device=device)
        if device.type == "cuda":
            cache_bytes = min(cache_bytes, torch.cuda.mem_get_info(device)[0] // 2)
        self._memory = torch.empty(cache_bytes // dtype.itemsize, dtype=dtype, device=device)
        self._contexts: dict[int, _Context] = {}
        self._steps: dict[tuple[int, int, float], _Step] = {}
        self._graph_memory = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def capacity(self, prefix_length: int, lengths: Sequence[int]) -> int:
        """Rows that a request of this shape may have."""
        return self._context(prefix_length + sum(lengths)).cache.shape[2]

    def complete(self, request: Request, drafts: Sequence[Tensor | None]) -> list[Tensor]:
        """J completions `[B, length]` int64, PAD behind the end; B is at most `capacity`.

        drafts: of each branch, `[B, any]` ids that completions are likely to begin with.
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
        known = [accept(*each, self._model.table.pad_id) for each in zip(outputs, parts, drafts, strict=True)]
        sequences = self._unfinished(_sequences(request, outputs, known))
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
            row = 2 * layers * slots * hidden
            rows = min(_MAX_TOKENS // slots, len(self._memory) // row)
            if rows == 0:
                needed = row * self._memory.element_size()
                raise ValueError(f"a row of {slots} tokens needs {needed:,} bytes of cache, more than there are")
            cache = self._memory[: rows * row].view(layers, 2, rows, heads, slots, hidden // heads)
            output = torch.empty(rows * slots + 1, dtype=torch.int64, device=cache.device)
            idle = output.new_zeros(len(_Field), 1)
            idle[_Field.ID] = self._model.table.pad_id
            idle[_Field.ROW] = -1
            idle[_Field.OUT] = rows * slots
            self._contexts[slots] = _Context(cache, output, idle)
        return self._contexts[slots]

    def _step(self, context: _Context, count: int, temperature: float) -> _Step:
        """The step for `count` sequences, all idle if it is new."""
        size = _bucket(count)
        key = context.num_slots, size, temperature
        if key not in self._steps:
            state = context.idle.repeat(1, size)
            advance = partial(self._advance, state, context, temperature)
            self._steps[key] = _Step(state, self._captured(advance) if state.is_cuda else advance)
        return self._steps[key]

    def _captured(self, advance: Callable[[], None]) -> Callable[[], None]:
        """`advance` as a CUDA graph. Its sequences are idle, so that warming up changes nothing that counts."""
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
        """Put keys and values of the first pass into the cache; `[B, U, D]` hidden states of marks and drafts."""
        weights, (batch, length) = self._model.weights, first.ids.shape
        rope = weights.rope[first.ids // self._model.table.num_local]
        cos, sin = rope.unsqueeze(2).unbind(dim=3)
        x = self._embed(first.ids)
        sizes = [span.stop - span.start for span in first.spans]
        # Nobody reads what the last layer makes of a prefix.
        needed = [0] * (len(weights.qkv) - 1) + sizes[:1]
        for layer, ((keys, values), start) in enumerate(zip(context.cache, needed, strict=True)):
            qkv = F.linear(self._normed(x, weights.attention_norm[layer]), weights.qkv[layer])
            q, k, v = qkv.view(batch, length, 3, self._model.num_heads, -1).unbind(dim=2)
            q, k = (rotate(each, cos, sin).to(v.dtype) for each in (q, k))
            q, k, v = (each.transpose(1, 2) for each in (q, k, v))
            for span, new_k, new_v in zip(first.spans, k.split(sizes, dim=2), v.split(sizes, dim=2), strict=True):
                keys[:batch, :, span], values[:batch, :, span] = new_k, new_v
            y = F.scaled_dot_product_attention(q[:, :, start:], k, v, attn_mask=first.mask[:, :, start:])
            y = y.transpose(1, 2).flatten(2)
            x = self._feed_forward(x[:, start:] + F.linear(y, weights.out[layer]), layer)
        return x

    def _choose(self, hidden: Tensor, first: _FirstPass, request: Request) -> Tensor:
        """Hidden states `[B, U, D]` of the first pass -> the ids `[B, U]` chosen to follow."""
        (batch, count), rows = hidden.shape[:2], request.rows
        numbers = torch.broadcast_tensors(rows.unsqueeze(1), first.stages, first.steps)
        stream = Stream(self._seed, *(each.flatten().contiguous() for each in numbers))
        ids = first.ids[:, -count:].flatten().contiguous()
        sampled = sample_digits(hidden.flatten(0, 1), ids, self._head, self._model.table, request.temperature, stream)
        return sampled.ids.view(batch, count)

    def _unfinished(self, sequences: Tensor) -> Tensor:
        """Those of the sequences `[fields, Q]` that have not ended."""
        table = self._model.table
        classes = self._classes[sequences[_Field.ID]]
        room = sequences[_Field.STEP] < sequences[_Field.LIMIT]
        return sequences[:, room & (classes != table.eos) & (classes != table.pad)]

    def _advance(self, state: Tensor, context: _Context, temperature: float) -> None:
        """One step. Nothing here may ask the device a question: on a GPU it is captured."""
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
        # A finished sequence goes on from its end to padding, or stays at its limit: it is idle from here on.
        ended = sampled.stopped | (state[_Field.STEP] >= state[_Field.LIMIT])
        rows.masked_fill_(ended, -1)
        out.masked_fill_(ended, len(context.output) - 1)

    def _embed(self, ids: Tensor) -> Tensor:
        """Ids `[...]` -> `[..., D]` float32."""
        return F.embedding(self._classes[ids], self._model.weights.embed).float()

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """`[..., D]` float32 -> `[..., D]` as the weights multiply it."""
        return F.rms_norm(x, weight.shape, weight.float(), self._model.eps).to(weight.dtype)

    def _feed_forward(self, x: Tensor, layer: int) -> Tensor:
        """`[..., D]` -> `[..., D]`, the residual stream behind the feed-forward of a layer."""
        weights = self._model.weights
        features = F.relu(F.linear(self._normed(x, weights.mlp_norm[layer]), weights.up[layer])).square_()
        return x + F.linear(features, weights.down[layer])


def _first_pass(request: Request, drafts: Sequence[Tensor | None]) -> _FirstPass:
    prefix_length, device = request.prefix.shape[1], request.prefix.device
    parts, spans = [request.prefix], [slice(0, prefix_length)]
    start = prefix_length
    for branch, (length, draft) in enumerate(zip(request.lengths, drafts, strict=True)):
        # Nothing is chosen behind the last token.
        part = request.marks[:, branch : branch + 1]
        part = part if draft is None else torch.cat([part, draft[:, : length - 1]], dim=1)
        parts.append(part)
        spans.append(slice(start, start + part.shape[1]))
        start += length
    sizes = torch.tensor([part.shape[1] for part in parts])
    owner = torch.arange(len(parts)).repeat_interleave(sizes)
    shared_or_own = (owner[None, :] == 0) | (owner[None, :] == owner[:, None])
    return _FirstPass(
        ids=torch.cat(parts, dim=1),
        spans=spans,
        mask=shared_or_own.tril()[None, None].to(device),
        stages=(request.stage + owner[prefix_length:] - 1).to(device),
        steps=torch.cat([torch.arange(part.shape[1]) for part in parts[1:]]).to(device),
    )


def _sequences(request: Request, outputs: list[Tensor], known: list[Tensor]) -> Tensor:
    """`[fields, J * B]` of every sequence; of each branch `[B, length]` tokens so far, of which `[B]` are known.

    Branch follows branch, in the cache and in the output.
    """
    batch, prefix_length = request.prefix.shape
    rows = torch.arange(batch, device=request.prefix.device)
    start, first_out = prefix_length, 0
    branches = []
    for branch, (length, output, count) in enumerate(zip(request.lengths, outputs, known, strict=True)):
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
        for name, value in values.items():
            sequences[name] = value
        branches.append(sequences)
        start, first_out = start + length, first_out + length * batch
    return torch.cat(branches, dim=1)


def _fill(state: Tensor, sequences: Tensor, idle: Tensor) -> None:
    """Put sequences `[fields, <= Q]` into a state `[fields, Q]`, and idle ones `[fields, 1]` behind them."""
    count = sequences.shape[1]
    state[:, :count] = sequences
    state[:, count:] = idle


def _bucket(count: int) -> int:
    """Room for `count` sequences: a power of two or one and a half, so that at most a third is idle."""
    power = max(_MIN_SEQUENCES, 1 << (count - 1).bit_length())
    smaller = power * 3 // 4
    return smaller if _MIN_SEQUENCES <= count <= smaller else power


def _signed(seed: int) -> int:
    """64 bits as a signed number."""
    return (seed + 2**63) % 2**64 - 2**63
