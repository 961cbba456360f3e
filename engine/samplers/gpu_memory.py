"""The memory of stepwise decoding: keys and values, generated ids, and room for the activations of a first pass.

A graph reads and writes the memory it was captured with. So the cache is allocated once, and viewed in a few shapes:
slots per row are powers of two.

Legend: B rows, P tokens of a prefix, S slots of a row, L layers, H heads, K head size, D hidden size, F features of the
feed-forward.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sector.kernels.completion import Model
from sector.kernels.sequences import SequenceField

# Memory for the activations of a first pass; at most a quarter of the free memory of a GPU.
ACTIVATION_BYTES = 4 << 30
_MIN_SLOTS = 64
# No GPU has read more rows at once.
_MAX_ROWS = (1 << 16) - 1


@dataclass(frozen=True, slots=True)
class Context:
    """A view of the memory for rows of S slots.

    cache: `[L, 2, rows, H, S, K]` keys and values.
    output: `[rows * S + 1]` generated ids; the last one is the spare output of idle sequences.
    idle: `[fields, 1]` the state of an idle sequence.
    """

    cache: Tensor
    output: Tensor
    idle: Tensor

    @property
    def num_rows(self) -> int:
        return self.cache.shape[2]

    @property
    def num_slots(self) -> int:
        return self.cache.shape[4]


@dataclass(frozen=True, slots=True, eq=False)
class LastRead:
    """The last call, whose prefixes the first slots of the cache hold.

    context: the view of the memory.
    prefix: `[B, P]` ids.
    """

    context: Context
    prefix: Tensor

    def shared(self, prefix: Tensor, most: int) -> int:
        """Return the count of first tokens, at most `most`, that all rows of both prefixes share. The host waits."""
        most = min(most, self.prefix.shape[1], prefix.shape[1] - 1)
        differs: list[bool] = (self.prefix[:, :most] != prefix[:, :most]).any(dim=0).tolist()
        return [*differs, True].index(True)


class Memory:
    """The memory for a model.

    cache_bytes: memory for keys and values; at most half of the free memory of a GPU.
    activation_bytes: memory for the activations of a first pass; at most a quarter of it.
    """

    def __init__(self, model: Model, cache_bytes: int, activation_bytes: int) -> None:
        device, dtype = model.weights.qkv.device, model.weights.qkv.dtype
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
            cache_bytes, activation_bytes = min(cache_bytes, free // 2), min(activation_bytes, free // 4)
        self._max_tokens = activation_bytes // token_bytes(model)
        # Zeros, because the first pass multiplies slots that hold no token by a weight of zero.
        self._numbers = torch.zeros(cache_bytes // dtype.itemsize, dtype=dtype, device=device)
        self._model = model
        self._contexts: dict[int, Context] = {}

    def context(self, slots: int) -> Context:
        """Return the view for rows of at least `slots` slots. Raise ValueError if there is no memory for one."""
        slots = max(_MIN_SLOTS, 1 << (slots - 1).bit_length())
        if slots not in self._contexts:
            (layers, _, hidden), heads = self._model.weights.up.shape, self._model.num_heads
            row_size = 2 * layers * slots * hidden
            # A pass reads at least one row, so that long rows fail only if the cache is too small.
            rows = min(max(1, self._max_tokens // slots), len(self._numbers) // row_size, _MAX_ROWS)
            if rows == 0:
                needed = row_size * self._numbers.element_size()
                held = self._numbers.numel() * self._numbers.element_size()
                raise ValueError(f"a row of {slots} tokens needs {needed:,} bytes of cache, which holds {held:,}")
            cache = self._numbers[: rows * row_size].view(layers, 2, rows, heads, slots, hidden // heads)
            output = torch.empty(rows * slots + 1, dtype=torch.int64, device=cache.device)
            idle = output.new_zeros(len(SequenceField), 1)
            idle[SequenceField.ID] = self._model.table.token.pad_id
            idle[SequenceField.ROW] = -1
            idle[SequenceField.OUT] = rows * slots
            self._contexts[slots] = Context(cache, output, idle)
        return self._contexts[slots]


def token_bytes(model: Model) -> int:
    """Return an upper bound on the bytes of the activations of a token in a first pass.

    The residual stream is float32; its id and its place are 64 bits each. All else has the dtype of the
    weights: ten times D numbers (a norm, queries, keys and values, rotated queries, attended values twice, their
    product, a norm, the update), and the F features of the feed-forward.
    """
    _, features, hidden = model.weights.up.shape
    itemsize = model.weights.up.element_size()
    return 4 * hidden + itemsize * (10 * hidden + features) + 2 * 8
