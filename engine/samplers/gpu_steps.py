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

Legend: B rows, J branches, T tokens of the first pass, U of them after the prefix, Q sequences (B times J, fewer as
they finish), S slots of a row, L layers, H heads, K head size, D hidden size.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import IntEnum
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sector.engine.samplers.cuda_graphs import Capture, CudaCapture
from sector.engine.samplers.protocol import Beginning
from sector.kernels.acceptance import accept
from sector.kernels.completion import Model, Request
from sector.kernels.decode_attention import Positions, decode_attention
from sector.kernels.digit_sampler import Head, Sampled, sample_digits
from sector.kernels.layer import add_norm, rotate_to_cache, square_of_relu_
from sector.kernels.philox import Stream

# Steps between two reads of which sequences are unfinished: a read waits for the device, about as long as a step.
LOOK_EVERY = 8

# Rows from which on the beginning of a prefix is kept from call to call. The host waits for the comparison that this
# needs, which with fewer rows takes longer than to read the beginning again. (An estimate, not measured.)
_LEAST_REUSED_ROWS = 1024
_MIN_SLOTS = 64
_MIN_SEQUENCES = 32
# Memory for the activations of a first pass; at most a quarter of the free memory of a GPU.
ACTIVATION_BYTES = 4 << 30
# The grids of fused attention have fewer than 65,536 rows.
_MAX_ROWS = (1 << 16) - 1
_ATTENTION = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# Shapes of first passes that are kept on the device: each is some kilobytes, and a chain meets each of its own once.
_MOST_SHAPES = 4096


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
    run: Callable[[], object]


@dataclass(frozen=True, slots=True)
class _Shape:
    """Layout of first passes with these lengths: the prefix, then the mark and the draft of each branch.

    sizes: tokens to read of the prefix and of each branch.
    mask: `[1, 1, T, slots]` 0 for the slots that each token attends to, minus infinity for others; slots that no token
        is written to are among them.
    slots: `[T]` the slot of each token.
    branches: `[U]` the branch of each mark and drafted token.
    steps: `[U]` the step of the choice after it in the random stream.
    base, per_row: `[fields, J, 1]` state of a sequence before its first token: per_row times its row, plus base.
    """

    sizes: list[int]
    mask: Tensor
    slots: Tensor
    branches: Tensor
    steps: Tensor
    base: Tensor
    per_row: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _LastRead:
    """The last call, whose prefixes the first slots of the cache hold.

    context: the view of the memory.
    prefix: `[B, P]` ids.
    """

    context: _Context
    prefix: Tensor

    def shared(self, prefix: Tensor, most: int) -> int:
        """Return the count of first tokens, at most `most`, that all rows of both prefixes share. The host waits."""
        most = min(most, self.prefix.shape[1], prefix.shape[1] - 1)
        differs: list[bool] = (self.prefix[:, :most] != prefix[:, :most]).any(dim=0).tolist()
        return [*differs, True].index(True)


class Stepwise:
    """Stepwise decoding with the weights of `model`, which may change in place.

    cache_bytes: memory for keys and values; at most half of the free memory of a GPU.
    activation_bytes: memory for the activations of a first pass; at most a quarter of it.
    """

    def __init__(self, model: Model, cache_bytes: int, activation_bytes: int = ACTIVATION_BYTES) -> None:
        weights, table = model.weights, model.table
        self._model = model
        self._head = Head(weights.norm, weights.head, model.eps)
        device, dtype = weights.qkv.device, weights.qkv.dtype
        all_ids = torch.arange(table.num_local * (table.max_place + 1), device=device)
        self._classes = table.class_of(all_ids)
        self._seed = torch.zeros(1, dtype=torch.int64, device=device)
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
            cache_bytes, activation_bytes = min(cache_bytes, free // 2), min(activation_bytes, free // 4)
        self._max_tokens = activation_bytes // token_bytes(model)
        # Zeros, because the first pass multiplies slots that hold no token by a weight of zero.
        self._memory = torch.zeros(cache_bytes // dtype.itemsize, dtype=dtype, device=device)
        self._last_read: _LastRead | None = None
        self._contexts: dict[int, _Context] = {}
        self._shapes: dict[tuple[int, ...], _Shape] = {}
        self._steps: dict[tuple[int, int, float], _Step] = {}
        self._capture: Capture = CudaCapture(device) if device.type == "cuda" else lambda run: run

    def capacity(self, prefix_length: int, lengths: Sequence[int]) -> int:
        """Return the maximum of rows of a request of this shape."""
        return self._context(prefix_length + sum(lengths)).cache.shape[2]

    def forget(self) -> None:
        """Forget the prefixes in the cache: call it when weights change."""
        self._last_read = None

    def complete(
        self, request: Request, drafts: Sequence[Tensor | None], beginning: Beginning | None = None
    ) -> list[Tensor]:
        """Return J completions `[B, length]` int64, with PAD after the end; B is at most `capacity`.

        drafts: one per branch, `[B, any]` ids that its completions are likely to begin with, or None.
        beginning: of the chain that the request is part of, if its calls have the same rows.
        """
        (batch, prefix_length), lengths = request.prefix.shape, request.lengths
        context = self._context(prefix_length + sum(lengths))
        self._seed.fill_(_signed(request.seed))
        outputs = [
            part.view(batch, -1)
            for part in context.output[: batch * sum(lengths)].split([batch * length for length in lengths])
        ]
        shared = self._shared(request.prefix, context, beginning)
        shape, ids = self._shape(request, drafts, shared), _first_ids(request, drafts, shared)
        hidden = self._read(ids, shape, context)
        if beginning is not None:
            self._last_read = beginning.kept = _LastRead(context, request.prefix)
        chosen = self._choose(hidden, ids, shape, request)
        parts = chosen.split(shape.sizes[1:], dim=1)
        pad_id = self._model.table.pad_id
        counts = [
            accept(output, part, draft, pad_id) for output, part, draft in zip(outputs, parts, drafts, strict=True)
        ]
        sequences = self._unfinished(_sequences(request, shape, context.output, torch.stack(counts)))
        while sequences.shape[1]:
            step = self._step(context, sequences.shape[1], request.temperature)
            _fill(step.state, sequences, context.idle)
            for _ in range(min(LOOK_EVERY, int((sequences[_Field.LIMIT] - sequences[_Field.STEP]).max()))):
                step.run()
            sequences = step.state[:, step.state[_Field.ROW] >= 0]
        return [output.clone() for output in outputs]

    def _shared(self, prefix: Tensor, context: _Context, beginning: Beginning | None) -> int:
        """Return the count of first tokens of prefixes that the cache holds, and forget its contents.

        It holds the prefixes of the last call. If that was of the same chain, they begin with the same tokens.
        """
        last, self._last_read = self._last_read, None
        if beginning is None or last is None or beginning.kept is not last or last.context is not context:
            return 0
        return last.shared(prefix, beginning.length) if len(prefix) >= _LEAST_REUSED_ROWS else 0

    def _context(self, slots: int) -> _Context:
        slots = max(_MIN_SLOTS, 1 << (slots - 1).bit_length())
        if slots not in self._contexts:
            (layers, _, hidden), heads = self._model.weights.up.shape, self._model.num_heads
            row_size = 2 * layers * slots * hidden
            # A pass reads at least one row, so that long rows fail only if the cache is too small.
            rows = min(max(1, self._max_tokens // slots), len(self._memory) // row_size, _MAX_ROWS)
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
            # Its sequences are idle, so that the warm-up of a capture has no effect on outputs.
            self._steps[key] = _Step(state, self._capture(partial(self._advance, state, context, temperature)))
        return self._steps[key]

    def _shape(self, request: Request, drafts: Sequence[Tensor | None], shared: int) -> _Shape:
        """Return the layout of a first pass, from the device if an earlier one had the same lengths.

        shared: tokens of the prefix that the cache holds.
        """
        sizes = [request.prefix.shape[1] - shared, *map(_read_tokens, request.lengths, drafts)]
        key = len(request.prefix), shared, *sizes, -1, *request.lengths
        if key not in self._shapes:
            if len(self._shapes) == _MOST_SHAPES:
                self._shapes.pop(next(iter(self._shapes)))
            dtype, device = self._memory.dtype, self._memory.device
            self._shapes[key] = _new_shape(len(request.prefix), shared, sizes, request.lengths, dtype, device)
        return self._shapes[key]

    def _read(self, ids: Tensor, shape: _Shape, context: _Context) -> Tensor:
        """Cache keys and values of the first pass `[B, T]`; return the states `[B, U, D]` of marks and drafts."""
        weights, (batch, length) = self._model.weights, ids.shape
        places, num_slots = ids // self._model.table.num_local, shape.mask.shape[3]
        x, update = self._embed(ids).flatten(0, 1), None
        for layer, (keys, values) in enumerate(context.cache):
            normed = add_norm(x, update, weights.attention_norm[layer], self._model.eps)
            qkv = F.linear(normed, weights.qkv[layer]).view(batch, length, -1)
            queries = rotate_to_cache(qkv, places, shape.slots, weights.rope, keys, values)
            mask = shape.mask
            if layer == len(weights.qkv) - 1:
                # The last layer skips the queries of the prefix: no token is chosen after them.
                start = shape.sizes[0]
                queries, mask = queries[:, start:], mask[:, :, start:]
                x = x.view(batch, length, -1)[:, start:].flatten(0, 1).contiguous()
            past = keys[:batch, :, :num_slots], values[:batch, :, :num_slots]
            # cuDNN, which torch may prefer, would plan anew for each batch and length: seconds in a first call.
            with sdpa_kernel(_ATTENTION) if x.is_cuda else nullcontext():
                y = F.scaled_dot_product_attention(queries.transpose(1, 2), *past, attn_mask=mask)
            update = self._feed_forward(x, y.transpose(1, 2).flatten(2).flatten(0, 1), layer)
        assert update is not None, "there is at least one layer"
        return x.add_(update).view(batch, -1, x.shape[1])

    def _choose(self, hidden: Tensor, ids: Tensor, shape: _Shape, request: Request) -> Tensor:
        """Choose the ids `[B, U]` that follow the tokens `[B, T]` of the first pass, from hidden states `[B, U, D]`."""
        (batch, count), rows = hidden.shape[:2], request.rows
        stream = None
        if request.temperature:
            positions = torch.broadcast_tensors(rows.unsqueeze(1), shape.branches + request.stage, shape.steps)
            stream = Stream(self._seed, *(position.flatten().contiguous() for position in positions))
        ids = ids[:, -count:].flatten().contiguous()
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
        x, update = self._embed(ids), None
        for layer, (keys, values) in enumerate(context.cache):
            normed = add_norm(x, update, weights.attention_norm[layer], self._model.eps)
            qkv = F.linear(normed, weights.qkv[layer])
            y = decode_attention(qkv, places, weights.rope, keys, values, at, out=qkv.new_empty(x.shape))
            update = self._feed_forward(x, y, layer)
        assert update is not None, "there is at least one layer"
        x.add_(update)
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

    def _feed_forward(self, x: Tensor, attended: Tensor, layer: int) -> Tensor:
        """Add attended values `[N, D]` to the residual stream x `[N, D]`, and return the update by the feed-forward."""
        weights = self._model.weights
        normed = add_norm(x, F.linear(attended, weights.out[layer]), weights.mlp_norm[layer], self._model.eps)
        return F.linear(square_of_relu_(F.linear(normed, weights.up[layer])), weights.down[layer])


def token_bytes(model: Model) -> int:
    """Return an upper bound on the bytes of the activations of a token in a first pass.

    The residual stream is float32; its id, its place and its class are 64 bits each. All else has the dtype of the
    weights: ten times D numbers (a norm, queries, keys and values, rotated queries, attended values twice, their
    product, a norm, the update), and the F features of the feed-forward.
    """
    _, features, hidden = model.weights.up.shape
    itemsize = model.weights.up.element_size()
    return 4 * hidden + itemsize * (10 * hidden + features) + 3 * 8


def _read_tokens(length: int, draft: Tensor | None) -> int:
    """Return the tokens of a branch in the first pass: its mark, and its draft.

    The last token of a completion need not be read: no token is chosen after it.
    """
    return 1 if draft is None else 1 + min(draft.shape[1], length - 1)


def _first_ids(request: Request, drafts: Sequence[Tensor | None], shared: int) -> Tensor:
    """Return the ids `[B, T]` of the first pass: the prefix, then the mark and the draft of each branch.

    shared: tokens of the prefix that need not be read.
    """
    parts = [request.prefix[:, shared:]]
    for branch, (length, draft) in enumerate(zip(request.lengths, drafts, strict=True)):
        parts.append(request.marks[:, branch : branch + 1])
        if draft is not None:
            parts.append(draft[:, : length - 1])
    return torch.cat(parts, dim=1)


def _new_shape(
    batch: int, shared: int, sizes: list[int], lengths: Sequence[int], dtype: torch.dtype, device: torch.device
) -> _Shape:
    """Return the shape of a first pass.

    shared: tokens of the prefix that the cache holds.
    sizes: tokens to read of the prefix and of each branch.
    lengths: slots of each branch. Branches follow one another in the cache and in the output.
    """
    prefix_length, reads = shared + sizes[0], sizes[1:]
    starts = [prefix_length + sum(lengths[:branch]) for branch in range(len(lengths))]
    slots = torch.cat([torch.arange(size) + start for size, start in zip(sizes, [shared, *starts], strict=True)])
    # The part of each slot: 0 is the prefix, 1 the first branch. Slots without a token come after those of their branch
    # that have one, so that no token attends to them.
    part_of_slot = torch.arange(len(sizes)).repeat_interleave(torch.tensor([prefix_length, *lengths]))
    part = part_of_slot[slots]
    visible = (part_of_slot == 0) | (part_of_slot == part[:, None])
    visible &= torch.arange(len(part_of_slot)) <= slots[:, None]
    # Rows of a multiple of 16 bytes, as fused attention wants them.
    mask = torch.full((len(slots), -(-len(part_of_slot) // 8) * 8), float("-inf"))
    mask[:, : len(part_of_slot)].masked_fill_(visible, 0.0)
    base = torch.zeros(len(_Field), len(lengths), 1, dtype=torch.int64)
    per_row = torch.zeros_like(base)
    for branch, (length, start) in enumerate(zip(lengths, starts, strict=True)):
        base[_Field.START, branch] = base[_Field.SLOT, branch] = start
        base[_Field.PREFIX, branch] = prefix_length
        base[_Field.LIMIT, branch] = per_row[_Field.OUT, branch] = length
        base[_Field.STAGE, branch] = branch
        base[_Field.OUT, branch] = batch * sum(lengths[:branch])
        per_row[_Field.ROW, branch] = 1
    return _Shape(
        sizes=sizes,
        mask=mask.to(device, dtype)[None, None, :, : len(part_of_slot)],
        slots=slots.to(device),
        branches=(part[sizes[0] :] - 1).to(device),
        steps=torch.cat([torch.arange(size) for size in reads]).to(device),
        base=base.to(device),
        per_row=per_row.to(device),
    )


def _sequences(request: Request, shape: _Shape, output: Tensor, counts: Tensor) -> Tensor:
    """Return the state `[fields, J * B]` of all sequences.

    output: ids generated so far, as `_Context.output`.
    counts: `[J, B]` count of ids of each sequence.
    """
    rows = torch.arange(counts.shape[1], device=counts.device)
    state = torch.addcmul(shape.base, shape.per_row, rows)
    state[_Field.SLOT :] += counts
    state[_Field.ID] = output[state[_Field.OUT] - 1]
    state[_Field.COUNTER] = request.rows
    state[_Field.STAGE] += request.stage
    return state.flatten(1)


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
