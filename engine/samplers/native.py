"""The native engine: batched, cached decoding on a CPU, for short contexts and small models.

One forward pass reads a prefix once for all its branches. The branches follow one another in the same row, and each
attends to the prefix and to itself. (A token's position is its place, so its index in the row does not matter.) The
common beginning of the prefixes of a chain is read in the first call only. The same pass reads the drafts. The first
token that differs from the model's own choice is replaced by that choice, and decoding continues from there token by
token, so that the output equals that of plain decoding (lossless).

If there is a C compiler, a library does all of this (`native_compiled.py`, `native.c`) in a third to half of the time.
Otherwise the plain torch of this file does.

The batch is cut into jobs, one per core: for matrices this small, that is faster than two cores on one operation. A job
reads its rows tile by tile, each of which fits the cache of the core, and then decodes all its rows together.

Legend: B rows, P prefix tokens, L of them read before, T tokens of a pass, S slots of the cache, D hidden size,
H heads, K head size.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sector.engine.language import tokens
from sector.engine.models.checkpoint import weights_sha256
from sector.engine.models.sector import SectorForCausalLM
from sector.engine.samplers.native_attention import Seen, attend, attend_from_one
from sector.engine.samplers.native_compiled import CompiledModel, load_library
from sector.engine.samplers.native_model import Kept, NativeModel
from sector.engine.samplers.protocol import Beginning, Branch, Sampling, Savings
from sector.engine.samplers.rows import cut, no_rows, rows_of, without_drafts
from sector.engine.spans import span
from sector.engine.threads import num_cores
from sector.kernels.acceptance import accept

# Tokens of a tile, which a core reads at a time.
TILE_TOKENS = 6144
DEFAULT_SAVINGS = Savings()


class NativeSampler:
    """Plain-torch engine; see the module docstring."""

    name = "native"
    device = torch.device("cpu")
    uses_all_cores = True

    def __init__(
        self, model: SectorForCausalLM, num_threads: int | None = None, savings: Savings = DEFAULT_SAVINGS
    ) -> None:
        self._savings = savings
        self._threads = num_threads or num_cores()
        self._pool = ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,))
        self.load(model)

    def load(self, model: SectorForCausalLM) -> None:
        """Copy the model's weights."""
        library = load_library() if self._savings.compiled and model.dtype == torch.float32 else None
        self._model = NativeModel(model) if library is None else CompiledModel(model, library)
        self.weights_sha256 = weights_sha256(model)

    def sample(
        self, prefix: Tensor, branches: Sequence[Branch], sampling: Sampling, beginning: Beginning | None = None
    ) -> list[Tensor]:
        """Complete every prefix; see `protocol.Sampler`."""
        if len(prefix) == 0:
            return no_rows(prefix, branches)
        if not self._savings.drafts:
            branches = without_drafts(branches)
        if beginning is not None and not (self._savings.shared_beginning and beginning.length):
            beginning = None
        if self._savings.shared_prefix:
            return self._sample_branches(prefix, branches, sampling, beginning)
        return [
            output
            for index, branch in enumerate(branches)
            for output in self._sample_branches(
                prefix, [branch], replace(sampling, stage=sampling.stage + index), beginning
            )
        ]

    def _sample_branches(
        self, prefix: Tensor, branches: Sequence[Branch], sampling: Sampling, beginning: Beginning | None
    ) -> list[Tensor]:
        """Complete all branches of a prefix together, job by job."""
        kept = None if beginning is None else self._kept(prefix, beginning)
        model, savings = self._model, self._savings

        def run(rows: slice) -> list[Tensor]:
            call = prefix[rows], rows_of(branches, rows), sampling[rows], None if kept is None else kept[rows]
            if isinstance(model, CompiledModel):
                with span("compiled"):
                    return model.complete(*call, drop_finished=savings.drop_finished)[0]
            return _Job(model, savings, *call).run()

        slots = prefix.shape[1] + sum(1 + branch.length for branch in branches)
        parts = list(self._pool.map(run, cut(len(prefix), model.job_rows(slots), self._threads)))
        return [torch.cat(outputs) for outputs in zip(*parts, strict=True)]

    def _kept(self, prefix: Tensor, beginning: Beginning) -> Kept:
        """Return keys and values of the beginning of the prefixes, or memory for them at the first call of a chain."""
        if beginning.kept is None:
            kept = self._model.keep(prefix[:, : beginning.length])
            beginning.kept = replace(kept, is_read=True)
            return kept
        assert isinstance(beginning.kept, Kept)
        return beginning.kept


class _Job:
    """Rows of a call that one core completes."""

    def __init__(
        self,
        model: NativeModel,
        savings: Savings,
        prefix: Tensor,
        branches: list[Branch],
        sampling: Sampling,
        kept: Kept | None,
    ) -> None:
        self._model, self._savings, self._prefix, self._branches = model, savings, prefix, branches
        self._sampling, self._kept = sampling, kept
        self._outputs = [prefix.new_empty(len(prefix), branch.length) for branch in branches]
        # One entry per branch: the number of new tokens of each row, and the keys and values of unfinished rows.
        self._counts = [prefix.new_empty(len(prefix)) for _ in branches]
        self._unfinished: list[list[_TileRows]] = [[] for _ in branches]

    @torch.inference_mode()
    def run(self) -> list[Tensor]:
        """Return the completions `[B, length]`, one per branch."""
        shared = self._kept.shared(self._prefix) if self._kept else 0
        width = self._prefix.shape[1] - shared + sum(1 + branch.drafted for branch in self._branches)
        with span("prefix"):
            for rows in cut(len(self._prefix), TILE_TOKENS // width):
                self._read(rows)
        with span("decode"):
            for index in range(len(self._branches)):
                self._decode(index)
        return self._outputs

    def _read(self, rows: slice) -> None:
        """Read prefixes, marks and drafts of a tile, and choose a token after each mark and each draft token."""
        prefix, branches, kept = self._prefix[rows], rows_of(self._branches, rows), self._kept
        if kept is not None:
            kept = kept[rows]
        shared = kept.shared(prefix) if kept else 0
        ids, spans = _first_pass(prefix[:, shared:], branches)
        tile = _TilePass(spans, kept.kv[..., :shared, :] if kept and shared else None)
        skip = spans[0].stop
        hidden = self._model.forward(ids, tile.attend, skip=skip)
        if kept and not kept.is_read:
            tile.copy_beginning(kept.kv)
        for index, (branch, part) in enumerate(zip(branches, spans[1:], strict=True)):
            steps = torch.arange(part.stop - part.start)
            part_hidden = hidden[:, part.start - skip : part.stop - skip]
            chosen = self._choose(part_hidden, ids[:, part], self._sampling[rows], index, steps)
            output = self._outputs[index][rows]
            count = accept(output, chosen, branch.draft, tokens.PAD_ID)
            self._counts[index][rows] = count
            unfinished = _is_unfinished(output, count)
            if unfinished.any():
                self._unfinished[index].append(tile.branch_rows(part, unfinished))

    def _decode(self, index: int) -> None:
        """Continue a branch token by token, all rows together. The last new token of each row is not yet read."""
        if not self._unfinished[index]:
            return
        output, count = self._outputs[index], self._counts[index]
        start = self._prefix.shape[1]
        cache = _Cache(self._unfinished[index], start + output.shape[1])
        unfinished = _is_unfinished(output, count)
        rows = unfinished.nonzero().squeeze(1)
        while len(rows):
            # Finished rows that wait for the others repeat their last step; its result is discarded.
            step = count[rows].clamp(max=output.shape[1] - 1)
            ids = output[rows, step - 1].unsqueeze(1)
            cache.go_to(start + step)
            hidden = self._model.forward(ids, cache.attend)
            chosen = self._choose(hidden, ids, self._sampling[rows], index, step.unsqueeze(1)).squeeze(1)
            output[rows, step] = torch.where(unfinished[rows], chosen, output[rows, step])
            count[rows] += unfinished[rows]
            unfinished = _is_unfinished(output, count)
            continues = unfinished[rows]
            if not continues.any() or (self._savings.drop_finished and not continues.all()):
                cache.keep(continues)
                rows = rows[continues]

    def _choose(self, hidden: Tensor, ids: Tensor, sampling: Sampling, branch: int, steps: Tensor) -> Tensor:
        """Choose the ids `[B, T]` that follow `ids`, from their hidden states `[B, T, D]`; steps: `[B or 1, T]`."""
        noise = None
        if sampling.temperature > 0:
            noise = sampling.gumbel(branch, sampling.rows.unsqueeze(1), steps, tokens.NUM_CLASSES)
        return self._model.choose(hidden, ids, sampling.temperature, noise)


class _TilePass:
    """The first pass over a tile, layer by layer.

    spans: positions of the prefix and of each branch among the tokens of the pass.
    beginning: `[layers, H, B, L, 2K]` keys and values of the beginning of the prefix, read in an earlier call.
    """

    def __init__(self, spans: list[slice], beginning: Tensor | None) -> None:
        self._spans, self._beginning = spans, beginning
        self._layers: list[Tensor] = []

    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        """Attend in one layer; see `native_model.Attend`."""
        self._layers.append(kv)
        return attend(q, kv, self._spans, None if self._beginning is None else self._beginning[layer])

    def copy_beginning(self, kept: Tensor) -> None:
        """Copy keys and values of the beginning of the prefix to `kept [layers, H, B, L, 2K]`."""
        for layer, kv in zip(kept, self._layers, strict=True):
            layer.copy_(kv[:, :, : layer.shape[2]])

    def branch_rows(self, span: slice, rows: Tensor) -> "_TileRows":
        """Return keys and values of the prefix and one branch, for the rows where `rows [B]` is true."""
        parts = [[kv[:, :, self._spans[0]], kv[:, :, span]] for kv in self._layers]
        if self._beginning is not None:
            parts = [[beginning, *others] for beginning, others in zip(self._beginning, parts, strict=True)]
        return _TileRows(parts, slice(None) if rows.all() else rows.nonzero().squeeze(1))


@dataclass(frozen=True, slots=True)
class _TileRows:
    """Keys and values of some rows of a tile, not yet copied.

    layers: for each layer, consecutive parts `[H, B, S, 2K]` of the rows of the tile.
    rows: the rows that count, as indices or a slice.
    """

    layers: list[list[Tensor]]
    rows: Tensor | slice

    def __len__(self) -> int:
        return self.layers[0][0].shape[1] if isinstance(self.rows, slice) else len(self.rows)

    @property
    def num_slots(self) -> int:
        return sum(part.shape[2] for part in self.layers[0])


class _Cache:
    """Keys and values of rows that are decoded together, one token per step; keys are transposed for their products.

    tiles: the rows, from one or more tiles, with the keys and values read so far.
    num_slots: slots of a row.
    """

    def __init__(self, tiles: list[_TileRows], num_slots: int) -> None:
        first = tiles[0].layers[0][0]
        shape = len(tiles[0].layers), len(first), sum(len(tile) for tile in tiles)
        head_dim = first.shape[3] // 2
        self._keys = first.new_empty(*shape, head_dim, num_slots)
        self._values = first.new_empty(*shape, num_slots, head_dim)
        start = 0
        for tile in tiles:
            rows = slice(start, start + len(tile))
            for layer, parts in enumerate(tile.layers):
                self._fill(self._keys[layer][:, rows], self._values[layer][:, rows], parts, tile.rows)
            start = rows.stop
        # Slots without a token are multiplied by 0, and 0 * NaN is NaN.
        self._keys[..., tiles[0].num_slots :].zero_()
        self._values[..., tiles[0].num_slots :, :].zero_()

    @staticmethod
    def _fill(keys: Tensor, values: Tensor, parts: list[Tensor], rows: Tensor | slice) -> None:
        """Copy consecutive parts `[H, B, S, 2K]` to keys `[H, n, K, slots]` and values `[H, n, slots, K]`."""
        start = 0
        for part in parts:
            slots = slice(start, start + part.shape[2])
            k, v = part[:, rows].chunk(2, dim=3)
            keys[..., slots], values[..., slots, :] = k.transpose(2, 3), v
            start = slots.stop

    def go_to(self, slots: Tensor) -> None:
        """Set the slots `[B]` of the next step, which attends to all slots up to them."""
        _, heads, _, head_dim, num_slots = self._keys.shape
        self._slots, self._seen = slots, Seen.up_to(slots, heads, head_dim, num_slots)

    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        """Attend in one layer; see `native_model.Attend`."""
        keys, values = self._keys[layer], self._values[layer]
        k, v = kv.squeeze(2).chunk(2, dim=2)
        if self._seen.unseen is None:
            slot = self._seen.values.shape[1] - 1
            keys[..., slot], values[..., slot, :] = k, v
        else:
            rows = torch.arange(keys.shape[1])
            keys[:, rows, :, self._slots], values[:, rows, self._slots] = k.transpose(0, 1), v
        return attend_from_one(q, keys, values, self._seen)

    def keep(self, rows: Tensor) -> None:
        """Drop all rows except those where `rows [B]` is true."""
        self._keys, self._values = self._keys[:, :, rows], self._values[:, :, rows]


def _first_pass(prefix: Tensor, branches: Sequence[Branch]) -> tuple[Tensor, list[slice]]:
    """Return ids `[B, T]` of prefix, marks and drafts, and the spans of the prefix and of each branch among them."""
    parts, spans = [prefix], [slice(0, prefix.shape[1])]
    for branch in branches:
        parts.append(branch.mark)
        if branch.draft is not None:
            parts.append(branch.draft[:, : branch.drafted])
        spans.append(slice(spans[-1].stop, spans[-1].stop + 1 + branch.drafted))
    return torch.cat(parts, dim=1), spans


def _is_unfinished(output: Tensor, count: Tensor) -> Tensor:
    """Return `[B]` bool: rows that have not ended and are not full, after `count [B]` new tokens."""
    last = output.gather(1, count.unsqueeze(1) - 1).squeeze(1)
    ended = tokens.is_eos(last) | (last == tokens.PAD_ID)
    return ~ended & (count < output.shape[1])
