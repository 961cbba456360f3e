"""Decoding steps of a model of text on a GPU as CUDA graphs.

A step of a small model is some hundred launches, which take the host longer than the GPU. Here a step is one graph for
a count of rows and of slots, both rounded up. The host looks every few steps which rows have ended: those that have
wait until the others fit a smaller graph.

Legend: B rows, S slots of the cache, H heads of keys, K size of a head, L tokens of a completion.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from sector.engine.models.text import attention_windows
from sector.engine.samplers.cuda_graphs import Capture

# Steps between two looks of the host.
_STEPS = 8
_LEAST_ROWS = 16
# Counts of slots are multiples of it.
_SLOTS = 64
# Most memory for keys and values; a larger batch is decoded launch by launch.
MOST_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class UnderWay:
    """Rows whose completions have not ended.

    layers: keys and values `[B, H, S, K]` of each layer.
    mask: `[B, S]` 1 for slots with tokens, 0 for hidden ones.
    position: `[B]` position of the next token.
    output: `[B, L]` tokens so far.
    count: `[B]` how many there are, at least 1.
    """

    layers: Sequence[tuple[Tensor, Tensor]]
    mask: Tensor
    position: Tensor
    output: Tensor
    count: Tensor


class TextSteps:
    """Graphs of the steps of one network, whose weights may change in place."""

    def __init__(self, network: PreTrainedModel, ends: Sequence[int], capture: Capture) -> None:
        """Capture nothing yet. ends: ids that end a completion."""
        self._network, self._capture = network, capture
        self._ends = torch.tensor(ends, device=network.device)
        self._windows = attention_windows(network)
        self._graphs: dict[tuple[int, int], _Graph] = {}
        # Memory that all graphs share: one of them runs at a time.
        self._memory = torch.zeros(0, dtype=network.dtype, device=network.device)

    def takes(self, rows: UnderWay) -> bool:
        """Return whether the keys and values of rows fit the memory for them."""
        return self._size(rows, *_sizes(rows)) * self._memory.element_size() <= MOST_BYTES

    def finish(self, rows: UnderWay, drop_finished: bool) -> Tensor:
        """Complete rows greedily; return their output `[B, L]`.

        drop_finished: whether rows that have ended leave the batch.
        """
        output = rows.output.clone()
        index = torch.arange(len(output), device=output.device)
        count, slots = _sizes(rows)
        while True:
            graph = self._graph(rows, count, slots)
            graph.begin(rows)
            left = len(index)
            while left and (_rounded(left) == count or not drop_finished):
                for _ in range(_STEPS):
                    graph.replay()
                left = int(graph.unfinished.sum())
            output[index] = graph.output[: len(index), : output.shape[1]]
            if not left:
                return output
            still = graph.unfinished.nonzero().squeeze(1)
            rows, index, count = graph.rows(still, output.shape[1]), index[still], _rounded(left)

    def _graph(self, rows: UnderWay, count: int, slots: int) -> "_Graph":
        if (size := self._size(rows, count, slots)) > len(self._memory):
            # Graphs read the memory that they were captured with.
            self._graphs.clear()
            self._memory = self._memory.new_zeros(size)
        if (count, slots) not in self._graphs:
            shapes = [(count, keys.shape[1], slots, keys.shape[3]) for layer in rows.layers for keys in layer]
            self._graphs[count, slots] = _Graph(self, shapes)
        return self._graphs[count, slots]

    @staticmethod
    def _size(rows: UnderWay, count: int, slots: int) -> int:
        """Return the numbers in the keys and values of `count` rows with `slots` slots."""
        return sum(count * slots * part.shape[1] * part.shape[3] for layer in rows.layers for part in layer)

    def parts(self, shapes: Sequence[tuple[int, int, int, int]]) -> Iterator[Tensor]:
        """Yield keys and values of shapes in the shared memory."""
        start = 0
        for shape in shapes:
            size = torch.Size(shape).numel()
            yield self._memory[start : start + size].view(shape)
            start += size

    def capture(self, run: Callable[[], None]) -> Callable[[], object]:
        """Return the replay of some work."""
        return self._capture(run)

    def logits(self, ids: Tensor, mask: Tensor, position: Tensor, cache: Cache) -> Tensor:
        """Read ids `[B]` at positions `[B]`; return the logits `[B, V]`. mask: `[B, S]`, with the ids themselves."""
        output: Any = self._network(
            input_ids=ids.unsqueeze(1),
            attention_mask=self._masks(mask, position),
            position_ids=position.unsqueeze(1),
            past_key_values=cache,
            use_cache=True,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def is_end(self, ids: Tensor) -> Tensor:
        """Return which ids `[B]` end a completion."""
        return (ids.unsqueeze(1) == self._ends).any(dim=1)

    def _masks(self, mask: Tensor, position: Tensor) -> Tensor | dict[str, Tensor]:
        """Return the masks `[B, 1, 1, S]` of the tokens at positions `[B]`, by kind of layer if there are several."""
        distance = position.unsqueeze(1) - (mask.cumsum(dim=1) - 1)
        masks = {}
        for kind, window in self._windows.items():
            unseen = (mask == 0) if window is None else (mask == 0) | (distance >= window)
            zeros = torch.zeros(unseen.shape, dtype=self._network.dtype, device=unseen.device)
            masks[kind] = zeros.masked_fill(unseen, torch.finfo(zeros.dtype).min)[:, None, None]
        return masks if len(masks) > 1 else next(iter(masks.values()))


class _Graph:
    """The graph of a step for a count of rows and slots.

    output: `[B, S]` tokens.
    unfinished: `[B]` bool, rows that have not ended.
    """

    def __init__(self, steps: TextSteps, shapes: Sequence[tuple[int, int, int, int]]) -> None:
        self._steps = steps
        self._parts = list(steps.parts(shapes))
        like = self._parts[0]
        (count, _, slots, _), device = like.shape, like.device
        self.output, self._mask = (torch.zeros(count, slots, dtype=torch.int64, device=device) for _ in range(2))
        self._last, self._position, self._count = (
            torch.zeros(count, dtype=torch.int64, device=device) for _ in range(3)
        )
        self.unfinished = torch.zeros(count, dtype=torch.bool, device=device)
        self._slot, self._length = (torch.ones(1, dtype=torch.int64, device=device) for _ in range(2))
        self._slots = 0
        pairs = zip(self._parts[::2], self._parts[1::2], strict=True)
        self._cache = Cache(layers=[_Slots(keys, values, self._slot) for keys, values in pairs])
        self._replay: Callable[[], object] | None = None

    def begin(self, rows: UnderWay) -> None:
        """Take over rows; those behind them have ended."""
        count, self._slots = rows.mask.shape
        if self._replay is None:
            # What a warm-up writes is overwritten.
            self._replay = self._steps.capture(self._run)
        for own, part in zip(self._parts, (part for layer in rows.layers for part in layer), strict=True):
            own[:count, :, : self._slots] = part
        self._mask.zero_()
        self._mask[:count, : self._slots] = rows.mask
        self.output[:count, : rows.output.shape[1]] = rows.output
        self._position[:count], self._count[:count] = rows.position, rows.count
        self._last[:count] = rows.output.gather(1, rows.count.unsqueeze(1) - 1).squeeze(1)
        self.unfinished.zero_()
        self.unfinished[:count].fill_(True)
        self._slot.fill_(self._slots)
        self._length.fill_(rows.output.shape[1])

    def rows(self, index: Tensor, length: int) -> UnderWay:
        """Return copies of the rows of an index, whose completions have `length` tokens at most."""
        parts = [part[index, :, : self._slots] for part in self._parts]
        layers = list(zip(parts[::2], parts[1::2], strict=True))
        return UnderWay(
            layers,
            self._mask[index, : self._slots],
            self._position[index],
            self.output[index, :length],
            self._count[index],
        )

    def replay(self) -> None:
        """Decode a token of each row that has not ended."""
        assert self._replay is not None, "a graph begins first"
        self._replay()
        self._slots += 1

    def _run(self) -> None:
        self._mask.index_fill_(1, self._slot, 1)
        chosen = self._steps.logits(self._last, self._mask, self._position, self._cache).argmax(dim=1)
        place = torch.minimum(self._count, self._length - 1).unsqueeze(1)
        # Rows that have ended keep their last token.
        self._last.copy_(torch.where(self.unfinished, chosen, self.output.gather(1, place).squeeze(1)))
        self.output.scatter_(1, place, self._last.unsqueeze(1))
        self._count += self.unfinished
        self._position += 1
        self._slot += 1
        self.unfinished &= ~self._steps.is_end(self._last) & (self._count < self._length)


class _Slots(DynamicLayer):
    """Keys and values `[B, H, S, K]` of a layer, of which each step writes one slot."""

    def __init__(self, keys: Tensor, values: Tensor, slot: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self._slot, self.is_initialized = keys, values, slot, True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the keys and values of a token; return those of all slots."""
        keys, values = self.keys, self.values
        assert keys is not None and values is not None, "both are given at the start"
        return keys.index_copy_(2, self._slot, key_states), values.index_copy_(2, self._slot, value_states)


def _sizes(rows: UnderWay) -> tuple[int, int]:
    """Return the rows and slots of the graph of rows, with room for all steps."""
    slots = rows.mask.shape[1] + rows.output.shape[1] + _STEPS
    return _rounded(len(rows.count)), -(-slots // _SLOTS) * _SLOTS


def _rounded(count: int) -> int:
    """Return the rows of a graph for `count` rows: a power of two."""
    return max(_LEAST_ROWS, 1 << (count - 1).bit_length())
