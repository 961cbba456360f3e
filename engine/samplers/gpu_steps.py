"""Stepwise decoding: one pass reads the prompts, then each step gives every unfinished sequence its next token.

A step is a few kernels per layer (`kernels/decode_attention.py`), and three around them: the embedding, the digit
sampler, and the advance of the state (`kernels/sequences.py`). The whole state is on the device, so on a GPU a step is
captured once as a CUDA graph and replayed, and the host reads only every few steps which sequences are unfinished. All
branches of all rows are decoded together: a row of the cache holds the prefix, followed by the slots of each branch.

Drafts are read with the prompts. The first token that differs from the model's own choice is replaced by that choice,
and steps continue from there, so that the output equals that of plain decoding.

A graph reads and writes the memory it was captured with (`gpu_memory.py`). So states have a few sizes (`_bucket`), and
weights are replaced in place (`gpu.py`). A state may have room for more sequences than there are. The rest of it is
idle and writes to a spare output.

With bfloat16 weights, operands and cache are bfloat16; the residual stream, norms, softmax and logits are float32.

Legend: B rows, J branches, T tokens of the first pass, U of them after the prefix, Q sequences (B times J, fewer as
they finish), D hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sector.engine.samplers.cuda_graphs import Capture, CudaCapture
from sector.engine.samplers.gpu_first_pass import PassLayouts, first_ids
from sector.engine.samplers.gpu_memory import ACTIVATION_BYTES, Context, LastRead, Memory
from sector.engine.samplers.protocol import Beginning
from sector.kernels.completion import CompletionRequest, Model
from sector.kernels.decode_attention import Positions, decode_attention
from sector.kernels.digit_sampler import Head, Sampled, sample_digits
from sector.kernels.embedding import embed
from sector.kernels.first_pass import PassLayout, branch_outputs, feed_forward, first_pass
from sector.kernels.layer import add_norm
from sector.kernels.philox import Stream
from sector.kernels.sequences import SequenceField, advance, begin
from sector.kernels.verify import verify

# Steps between two reads of which sequences are unfinished: a read waits for the device, about as long as a step.
LOOK_EVERY = 8

# Rows from which on the beginning of a prefix is kept from call to call. The host waits for the comparison that this
# needs: on an H200 it cost 7 to 29 % at 500 to 4,000 rows of the preset tiny, and gained 11 and 17 % at 16,000.
_LEAST_REUSED_ROWS = 8192
_MIN_SEQUENCES = 32


@dataclass(frozen=True, slots=True)
class _Step:
    """A step for up to Q sequences.

    state: `[fields, Q]` the sequences.
    run: gives each sequence its next token.
    """

    state: Tensor
    run: Callable[[], object]


class Stepwise:
    """Stepwise decoding with the weights of `model`, which may change in place.

    cache_bytes: memory for keys and values; at most half of the free memory of a GPU.
    activation_bytes: memory for the activations of a first pass; at most a quarter of it.
    verifies: whether greedy first passes are one launch (`kernels/verify.py`), which not every model allows.
    """

    def __init__(
        self, model: Model, cache_bytes: int, activation_bytes: int = ACTIVATION_BYTES, verifies: bool = False
    ) -> None:
        weights = model.weights
        device = weights.qkv.device
        self._model, self._verifies = model, verifies
        self._head = Head(weights.norm, weights.head, model.eps)
        self._seed = torch.zeros(1, dtype=torch.int64, device=device)
        self._memory = Memory(model, cache_bytes, activation_bytes)
        self._layouts = PassLayouts(device)
        self._last_read: LastRead | None = None
        self._steps: dict[tuple[int, int, float], _Step] = {}
        self._capture: Capture = CudaCapture(device) if device.type == "cuda" else lambda run: run

    def capacity(self, prefix_length: int, lengths: Sequence[int]) -> int:
        """Return the largest count of rows of a request of this shape."""
        return self._memory.context(prefix_length + sum(lengths)).num_rows

    def forget(self) -> None:
        """Forget the prefixes in the cache: call it when weights change."""
        self._last_read = None

    def complete(
        self, request: CompletionRequest, drafts: Sequence[Tensor | None], beginning: Beginning | None = None
    ) -> list[Tensor]:
        """Return J completions `[B, length]` int64, with PAD after the end; B is at most `capacity`.

        drafts: one per branch, `[B, any]` ids that its completions are likely to begin with, or None.
        beginning: shared beginning of the chain that the request is part of, if its calls have the same rows.
        """
        (batch, prefix_length), lengths = request.prefix.shape, request.lengths
        context = self._memory.context(prefix_length + sum(lengths))
        self._seed.fill_(_signed(request.seed))
        shared = self._shared(request.prefix, context, beginning)
        layout, ids = self._layouts.of(request, drafts, shared), first_ids(request, drafts, shared)
        counts = self._first_pass(ids, layout, context, request)
        if beginning is not None:
            self._last_read = beginning.kept = LastRead(context, request.prefix)
        state, unfinished = begin(
            layout.lengths, prefix_length, counts, context.output, request.rows, request.stage, self._model.table
        )
        self._finish(state[:, unfinished], context, request.temperature)
        return [output.clone() for output in branch_outputs(context.output, batch, layout.limits)]

    def _finish(self, sequences: Tensor, context: Context, temperature: float) -> None:
        """Take steps until all sequences `[fields, Q]` are finished."""
        while sequences.shape[1]:
            step = self._step(context, sequences.shape[1], temperature)
            _fill(step.state, sequences, context.idle)
            for _ in range(
                min(LOOK_EVERY, int((sequences[SequenceField.LIMIT] - sequences[SequenceField.STEP]).max()))
            ):
                step.run()
            sequences = step.state[:, step.state[SequenceField.ROW] >= 0]

    def _shared(self, prefix: Tensor, context: Context, beginning: Beginning | None) -> int:
        """Return the count of first tokens of prefixes that the cache holds, and forget its contents.

        It holds the prefixes of the last call. If that was of the same chain, they begin with the same tokens.
        """
        last, self._last_read = self._last_read, None
        if beginning is None or last is None or beginning.kept is not last or last.context is not context:
            return 0
        return last.shared(prefix, beginning.length) if len(prefix) >= _LEAST_REUSED_ROWS else 0

    def _step(self, context: Context, count: int, temperature: float) -> _Step:
        """Return the step for `count` sequences; the sequences of a new step are idle."""
        size = _bucket(count)
        key = context.num_slots, size, temperature
        if key not in self._steps:
            state = context.idle.repeat(1, size)
            # Its sequences are idle, so that the warm-up of a capture has no effect on outputs.
            self._steps[key] = _Step(state, self._capture(partial(self._advance, state, context, temperature)))
        return self._steps[key]

    def _first_pass(self, ids: Tensor, layout: PassLayout, context: Context, request: CompletionRequest) -> Tensor:
        """Read the tokens `[B, T]`; return the counts of accepted tokens `[J, B]`, which are in the output."""
        if self._verifies and not request.temperature:
            return verify(self._model, ids, layout, context.cache, context.output)
        stream = None
        if request.temperature:
            stages = layout.branches + request.stage
            positions = torch.broadcast_tensors(request.rows.unsqueeze(1), stages, layout.steps)
            stream = Stream(self._seed, *(position.flatten().contiguous() for position in positions))
        return first_pass(self._model, ids, layout, context.cache, context.output, request.temperature, stream)

    def _advance(self, state: Tensor, context: Context, temperature: float) -> None:
        """Take one step. It may not read from the device, since on a GPU it is captured."""
        weights, table = self._model.weights, self._model.table
        ids = state[SequenceField.ID]
        at = Positions(
            state[SequenceField.ROW], state[SequenceField.SLOT], state[SequenceField.START], state[SequenceField.PREFIX]
        )
        (x, places), update = embed(ids, weights.embed, table), None
        for layer, (keys, values) in enumerate(context.cache):
            normed = add_norm(x, update, weights.attention_norm[layer], self._model.eps)
            qkv = F.linear(normed, weights.qkv[layer])
            y = decode_attention(qkv, places, weights.rope, keys, values, at, out=qkv.new_empty(x.shape))
            update = feed_forward(self._model, x, y, layer)
        stream = Stream(self._seed, state[SequenceField.COUNTER], state[SequenceField.STAGE], state[SequenceField.STEP])
        sampled = Sampled(ids, x.new_empty(len(x)), torch.empty_like(ids, dtype=torch.bool))
        sample_digits(x, ids, self._head, table, temperature, stream, sampled, update)
        advance(state, sampled.stopped, context.output)


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
