"""The native engine: batched, cached decoding on a CPU, made for short contexts and small models.

One forward pass reads a prefix once for all its branches: the branches follow one another in the same row, and each
attends to the prefix and to itself (a token's position is its place, so it does not matter where in the row it stands).
What the prefixes of a chain of calls begin with is read in the first of them.
Drafts ride along in that pass; the first token that differs from the model's own choice is replaced by that choice,
and decoding goes on from there token by token, so that the output is the one of plain decoding (lossless).

Where there is a C compiler, all of that is done by a library (`native_compiled.py`, `native.c`), in a third to half
of the time; else in plain torch, by what follows here.

The batch is cut into jobs, one a core: for matrices this small, that is faster than two cores sharing one operation. A
job reads tile by tile, which stay in the cache of the core, and then decodes all its rows together.

Legend: B rows, P prefix tokens, L of them read before, T tokens of a pass, S slots of the cache, D hidden size.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sector.engine.language import tokens
from sector.engine.models.checkpoint import weights_sha256
from sector.engine.models.sector import SectorForCausalLM
from sector.engine.samplers.drafts import accept
from sector.engine.samplers.native_attention import Seen, attend, attend_from_one
from sector.engine.samplers.native_compiled import CompiledModel, load_library
from sector.engine.samplers.native_model import Kept, NativeModel
from sector.engine.samplers.protocol import Beginning, Branch, Sampling, Savings
from sector.engine.spans import span
from sector.engine.threads import num_cores

# Tokens of a tile: what a core reads at a time.
TILE_TOKENS = 6144
DEFAULT_SAVINGS = Savings()


class NativeSampler:
    """Plain-torch engine; see the module docstring."""

    name = "native"
    device = torch.device("cpu")

    def __init__(
        self, model: SectorForCausalLM, num_threads: int | None = None, savings: Savings = DEFAULT_SAVINGS
    ) -> None:
        self._savings = savings
        self._threads = num_threads or num_cores()
        self._pool = ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,))
        self.load(model)

    def load(self, model: SectorForCausalLM) -> None:
        """Take a copy of the model's weights."""
        library = load_library() if self._savings.compiled and model.dtype == torch.float32 else None
        self._model = NativeModel(model) if library is None else CompiledModel(model, library)
        self.weights_sha256 = weights_sha256(model)

    def sample(
        self, prefix: Tensor, branches: Sequence[Branch], sampling: Sampling, beginning: Beginning | None = None
    ) -> list[Tensor]:
        """See `protocol.Sampler`."""
        if len(prefix) == 0:
            return [prefix.new_empty(0, branch.length) for branch in branches]
        if not self._savings.drafts:
            branches = [replace(branch, draft=None) for branch in branches]
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
        kept = None if beginning is None else self._remember(prefix, beginning)
        model, savings = self._model, self._savings

        def run(rows: slice) -> list[Tensor]:
            asked = prefix[rows], _rows_of(branches, rows), sampling[rows], None if kept is None else kept[rows]
            if isinstance(model, CompiledModel):
                with span("compiled"):
                    return model.complete(*asked, drop_finished=savings.drop_finished)[0]
            return _Job(model, savings, *asked).run()

        slots = prefix.shape[1] + sum(1 + branch.length for branch in branches)
        parts = list(self._pool.map(run, _cut(len(prefix), model.job_rows(slots), self._threads)))
        return [torch.cat(outputs) for outputs in zip(*parts, strict=True)]

    def _remember(self, prefix: Tensor, beginning: Beginning) -> Kept:
        """What was kept of the prefixes' beginning, or room for it at the first call of a chain."""
        if beginning.kept is None:
            kept = self._model.keep(prefix[:, : beginning.length])
            beginning.kept = replace(kept, is_read=True)
            return kept
        assert isinstance(beginning.kept, Kept)
        return beginning.kept


class _Job:
    """Some rows of a call, completed by one core."""

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
        # How many tokens of each row are known, and what was read of the rows that go on: one entry a branch.
        self._known = [prefix.new_empty(len(prefix)) for _ in branches]
        self._going_on: list[list[_Read]] = [[] for _ in branches]

    @torch.inference_mode()
    def run(self) -> list[Tensor]:
        """The completions `[B, length]`, one a branch."""
        known = self._kept.shared(self._prefix) if self._kept else 0
        width = self._prefix.shape[1] - known + sum(1 + branch.drafted for branch in self._branches)
        with span("prefix"):
            for rows in _cut(len(self._prefix), TILE_TOKENS // width):
                self._read(rows)
        with span("decode"):
            for index in range(len(self._branches)):
                self._decode(index)
        return self._outputs

    def _read(self, rows: slice) -> None:
        """Read the prefix with marks and drafts behind it, and choose what follows each of these."""
        prefix, branches, kept = self._prefix[rows], _rows_of(self._branches, rows), self._kept
        if kept is not None:
            kept = kept[rows]
        shared = kept.shared(prefix) if kept else 0
        ids, spans = _first_pass(prefix[:, shared:], branches)
        reading = _Reading(spans, kept.kv[..., :shared, :] if kept and shared else None)
        skip = spans[0].stop
        hidden = self._model.forward(ids, reading.attend, skip=skip)
        if kept and not kept.is_read:
            reading.keep(kept.kv)
        for index, (branch, part) in enumerate(zip(branches, spans[1:], strict=True)):
            steps = torch.arange(part.stop - part.start)
            hidden_here = hidden[:, part.start - skip : part.stop - skip]
            chosen = self._choose(hidden_here, ids[:, part], self._sampling[rows], index, steps)
            output = self._outputs[index][rows]
            known = accept(output, chosen, branch.draft, tokens.PAD_ID)
            self._known[index][rows] = known
            unfinished = _is_unfinished(output, known)
            if unfinished.any():
                self._going_on[index].append(reading.of_branch(part, unfinished))

    def _decode(self, index: int) -> None:
        """Go on with a branch token by token, all rows together; the last known token of each is not yet read."""
        if not self._going_on[index]:
            return
        output, known = self._outputs[index], self._known[index]
        start = self._prefix.shape[1]
        cache = _Cache(self._going_on[index], start + output.shape[1])
        unfinished = _is_unfinished(output, known)
        rows = unfinished.nonzero().squeeze(1)
        while len(rows):
            # Rows that wait for the others repeat their last step; what comes of it is not kept.
            step = known[rows].clamp(max=output.shape[1] - 1)
            ids = output[rows, step - 1].unsqueeze(1)
            cache.go_to(start + step)
            hidden = self._model.forward(ids, cache.attend)
            chosen = self._choose(hidden, ids, self._sampling[rows], index, step.unsqueeze(1)).squeeze(1)
            output[rows, step] = torch.where(unfinished[rows], chosen, output[rows, step])
            known[rows] += unfinished[rows]
            unfinished = _is_unfinished(output, known)
            goes_on = unfinished[rows]
            if not goes_on.any() or (self._savings.drop_finished and not goes_on.all()):
                cache.keep(goes_on)
                rows = rows[goes_on]

    def _choose(self, hidden: Tensor, ids: Tensor, sampling: Sampling, branch: int, steps: Tensor) -> Tensor:
        """Hidden states `[B, T, D]` of `ids` -> the ids `[B, T]` chosen to follow them; `steps [B or 1, T]`."""
        noise = None
        if sampling.temperature > 0:
            noise = sampling.gumbel(branch, sampling.rows.unsqueeze(1), steps, tokens.NUM_CLASSES)
        return self._model.choose(hidden, ids, sampling.temperature, noise)


class _Reading:
    """The first pass over a tile, layer by layer: the prefix and the branches behind it at `spans` of its tokens.

    beginning: `[layers, H, B, L, 2K]` keys and values of the prefix before them, read earlier.
    """

    def __init__(self, spans: list[slice], beginning: Tensor | None) -> None:
        self._spans, self._beginning = spans, beginning
        self._layers: list[Tensor] = []

    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        """See `cpu_model.Attend`."""
        self._layers.append(kv)
        return attend(q, kv, self._spans, None if self._beginning is None else self._beginning[layer])

    def keep(self, kept: Tensor) -> None:
        """Fill `[layers, H, B, L, 2K]` with what the prefix begins with."""
        for layer, kv in zip(kept, self._layers, strict=True):
            layer.copy_(kv[:, :, : layer.shape[2]])

    def of_branch(self, span: slice, rows: Tensor) -> "_Read":
        """What these rows `[B]` need to go on with one branch."""
        parts = [[kv[:, :, self._spans[0]], kv[:, :, span]] for kv in self._layers]
        if self._beginning is not None:
            parts = [[begun, *others] for begun, others in zip(self._beginning, parts, strict=True)]
        return _Read(parts, slice(None) if rows.all() else rows.nonzero().squeeze(1))


@dataclass(frozen=True, slots=True)
class _Read:
    """Keys and values of some rows of a tile where they were read: a layer, the parts `[H, B, S, 2K]` of a row."""

    layers: list[list[Tensor]]
    rows: Tensor | slice

    def __len__(self) -> int:
        return self.layers[0][0].shape[1] if isinstance(self.rows, slice) else len(self.rows)

    @property
    def num_slots(self) -> int:
        return sum(part.shape[2] for part in self.layers[0])


class _Cache:
    """Keys and values of rows that are decoded together, one token a step; keys lie as their products want them.

    They start as what was `read` of some rows each, and have `num_slots` slots.
    """

    def __init__(self, read: list[_Read], num_slots: int) -> None:
        first = read[0].layers[0][0]
        shape = len(read[0].layers), len(first), sum(len(each) for each in read)
        head_dim = first.shape[3] // 2
        self._keys = first.new_empty(*shape, head_dim, num_slots)
        self._values = first.new_empty(*shape, num_slots, head_dim)
        start = 0
        for each in read:
            rows = slice(start, start + len(each))
            for layer, parts in enumerate(each.layers):
                self._fill(self._keys[layer][:, rows], self._values[layer][:, rows], parts, each.rows)
            start = rows.stop
        # Unseen slots are read, and 0 * NaN is NaN.
        self._keys[..., read[0].num_slots :].zero_()
        self._values[..., read[0].num_slots :, :].zero_()

    @staticmethod
    def _fill(keys: Tensor, values: Tensor, parts: list[Tensor], rows: Tensor | slice) -> None:
        """Put parts `[H, B, S, 2K]` one behind another into `[H, n, K, slots]` and `[H, n, slots, K]`."""
        start = 0
        for part in parts:
            slots = slice(start, start + part.shape[2])
            k, v = part[:, rows].chunk(2, dim=3)
            keys[..., slots], values[..., slots, :] = k.transpose(2, 3), v
            start = slots.stop

    def go_to(self, slots: Tensor) -> None:
        """The next step writes to these slots `[B]` and sees all up to them."""
        _, heads, _, head_dim, num_slots = self._keys.shape
        self._slots, self._seen = slots, Seen.up_to(slots, heads, head_dim, num_slots)

    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        """See `cpu_model.Attend`."""
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
        """Go on with these rows `[B]` alone."""
        self._keys, self._values = self._keys[:, :, rows], self._values[:, :, rows]


def _cut(count: int, most: int, multiple: int = 1) -> list[slice]:
    """Slices of `count` rows, about equal, of at most `most`; a multiple of `multiple` of them, if rows suffice."""
    number = -(-count // max(1, most))
    number += -number % multiple
    size = -(-count // number)
    return [slice(start, start + size) for start in range(0, count, size)]


def _rows_of(branches: Sequence[Branch], rows: slice) -> list[Branch]:
    return [
        Branch(branch.mark[rows], branch.length, None if branch.draft is None else branch.draft[rows])
        for branch in branches
    ]


def _first_pass(prefix: Tensor, branches: Sequence[Branch]) -> tuple[Tensor, list[slice]]:
    """Ids `[B, T]` of prefix, marks and drafts, and where the prefix and each branch stand among them."""
    parts, spans = [prefix], [slice(0, prefix.shape[1])]
    for branch in branches:
        parts.append(branch.mark)
        if branch.draft is not None:
            parts.append(branch.draft[:, : branch.drafted])
        spans.append(slice(spans[-1].stop, spans[-1].stop + 1 + branch.drafted))
    return torch.cat(parts, dim=1), spans


def _is_unfinished(output: Tensor, known: Tensor) -> Tensor:
    """`[B]` which rows go on: not ended, and not full."""
    last = output.gather(1, known.unsqueeze(1) - 1).squeeze(1)
    ended = tokens.is_eos(last) | (last == tokens.PAD_ID)
    return ~ended & (known < output.shape[1])
