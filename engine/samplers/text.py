"""The native engine for models of text: batched, cached decoding with any causal model of transformers.

One pass reads a prefix once for all its branches. A pass for each branch reads its mark and its draft; the first token
that differs from the model's own choice is replaced by that choice, and decoding goes on from there token by token, so
that the output equals that of `generate` (lossless). Rows that have ended leave the batch.

Rows accept drafts of different lengths. Slots with rejected tokens stay in the cache, and the attention mask hides
them; positions count the tokens of a row alone.

On a CPU the batch is cut into jobs, each for one core: for matrices this small, that is faster than two cores on one
operation. On a GPU greedy steps are CUDA graphs (`text_steps.py`).

Legend: B rows, P prefix tokens, S slots of the cache, V ids of the vocabulary.
"""

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from sector.engine.errors import InputError
from sector.engine.models.checkpoint import weights_sha256
from sector.engine.models.text import FULL_ATTENTION, SLIDING_ATTENTION, TextModel, attention_windows
from sector.engine.samplers.cuda_graphs import CudaCapture
from sector.engine.samplers.protocol import Beginning, Branch, Sampling, Savings
from sector.engine.samplers.rows import cut, no_rows, rows_of, without_drafts
from sector.engine.samplers.text_steps import TextSteps, UnderWay
from sector.engine.samplers.vocabulary import Vocabulary, vocabulary
from sector.engine.spans import span
from sector.engine.threads import num_cores
from sector.kernels.acceptance import accept

DEFAULT_SAVINGS = Savings()
# Rows of a job on a CPU. They do not depend on the number of threads, since sums of another shape round otherwise.
_JOB_ROWS = 64
# Rows of a job on a GPU at most: their cache and logits fit memory also for large vocabularies.
_GPU_ROWS = 1024


class TextSampler:
    """Engine for models of text; see the module docstring."""

    name = "native"

    def __init__(self, model: TextModel, num_threads: int | None = None, savings: Savings = DEFAULT_SAVINGS) -> None:
        """Start the engine with a model's weights.

        num_threads: threads on a CPU; by default one per core.
        savings: optimisations; `shared_beginning` has no effect, and `compiled` is the CUDA graphs.
        """
        self._savings = savings
        self._network: PreTrainedModel | None = None
        self._pool = ThreadPoolExecutor(num_threads or num_cores(), initializer=torch.set_num_threads, initargs=(1,))
        self.load(model)

    def load(self, model: TextModel) -> None:
        """Copy the model's weights. Raise InputError if the model has no cache with a slot a token."""
        _check_cache(model)
        self._vocabulary = vocabulary(model)
        if self._network is None or not _take_over(self._network, model.network):
            self._network = copy.deepcopy(model.network).eval()
            is_graphed = self.device.type == "cuda" and self._savings.compiled
            capture = CudaCapture(self.device) if is_graphed else None
            self._steps = TextSteps(self._network, self._vocabulary.ends, capture) if capture else None
        self.weights_sha256 = weights_sha256(model)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        assert self._network is not None, "a model is loaded at the start"
        return self._network.device

    @property
    def uses_all_cores(self) -> bool:
        """Whether a thread stands on each core."""
        return self.device.type == "cpu"

    def room(self, prefix_length: int, lengths: Sequence[int]) -> int:
        """Return the rows of a job; see `protocol.Room`."""
        return _JOB_ROWS if self.device.type == "cpu" else _GPU_ROWS

    def sample(
        self, prefix: Tensor, branches: Sequence[Branch], sampling: Sampling, beginning: Beginning | None = None
    ) -> list[Tensor]:
        """Complete every prefix; see `protocol.Sampler`."""
        if len(prefix) == 0:
            return no_rows(prefix, branches)
        if not self._savings.drafts:
            branches = without_drafts(branches)
        network = self._network
        assert network is not None, "a model is loaded at the start"

        def run(rows: slice) -> list[Tensor]:
            job = _Job(network, self._vocabulary, self._savings, prefix[rows], sampling[rows], self._steps)
            return job.complete(rows_of(branches, rows))

        if self.device.type == "cpu":
            parts = list(self._pool.map(run, cut(len(prefix), _JOB_ROWS)))
        else:
            parts = [run(rows) for rows in cut(len(prefix), _GPU_ROWS)]
        return [torch.cat(outputs).to(prefix.device) for outputs in zip(*parts, strict=True)]


class _Job:
    """Rows of a call that are completed together."""

    def __init__(
        self,
        network: PreTrainedModel,
        vocabulary: Vocabulary,
        savings: Savings,
        prefix: Tensor,
        sampling: Sampling,
        steps: TextSteps | None,
    ) -> None:
        self._network, self._vocabulary, self._savings, self._sampling = network, vocabulary, savings, sampling
        self._steps = steps if sampling.temperature == 0 else None
        self._prefix = prefix.to(network.device)
        self._ends = torch.tensor(vocabulary.ends, device=network.device)
        self._lanes = vocabulary.lanes.to(network.device)

    @torch.inference_mode()
    def complete(self, branches: Sequence[Branch]) -> list[Tensor]:
        """Return the completions `[B, length]`, one per branch."""
        if not self._savings.shared_prefix:
            return [self._complete(self._read_prefix(), branch, index) for index, branch in enumerate(branches)]
        start, last = self._read_prefix(), len(branches) - 1
        # The last branch may change the cache; others start from a copy of it.
        return [
            self._complete(start if index == last else start.copy(), branch, index)
            for index, branch in enumerate(branches)
        ]

    def _read_prefix(self) -> "_Decoding":
        with span("prefix"):
            return _Decoding(self._network, self._prefix, self._vocabulary.pad)

    def _complete(self, decoding: "_Decoding", branch: Branch, index: int) -> Tensor:
        """Read mark and draft of a branch, and decode the rows whose completion has not ended."""
        mark = branch.mark.to(self._prefix.device)
        draft = None if branch.draft is None else branch.draft.to(mark.device)[:, : branch.drafted]
        output = mark.new_empty(len(mark), branch.length)
        ids = mark if draft is None else torch.cat([mark, draft], dim=1)
        rows = torch.arange(len(mark), device=mark.device)
        with span("draft"):
            logits = decoding.read(ids)
            steps = torch.arange(ids.shape[1], device=mark.device).unsqueeze(0)
            count = accept(output, self._choose(logits, rows, index, steps), draft, self._vocabulary.pad)
            self._end(output)
            decoding.hide(ids.shape[1] - count)
        unfinished = self._is_unfinished(output, count)
        with span("decode"):
            if self._steps and self._finish(self._steps, decoding, output, count, unfinished):
                return output
            while unfinished.any():
                if self._savings.drop_finished and not unfinished.all():
                    decoding.keep(unfinished)
                    rows, unfinished = rows[unfinished], unfinished[unfinished]
                # Finished rows that wait for the others repeat their last step; its result is discarded.
                step = count[rows].clamp(max=branch.length - 1)
                logits = decoding.read(output[rows, step - 1].unsqueeze(1))
                chosen = self._choose(logits, rows, index, step.unsqueeze(1)).squeeze(1)
                output[rows, step] = torch.where(unfinished, chosen, output[rows, step])
                count[rows] += unfinished
                unfinished = self._is_unfinished(output[rows], count[rows])
        return output

    def _finish(
        self, steps: TextSteps, decoding: "_Decoding", output: Tensor, count: Tensor, unfinished: Tensor
    ) -> bool:
        """Complete the unfinished rows of an output by CUDA graphs, and return whether their keys and values fit."""
        if not steps.takes(decoding.under_way(output, count)):
            return False
        rows = unfinished.nonzero().squeeze(1)
        if len(rows):
            decoding.keep(unfinished)
            under_way = decoding.under_way(output[rows], count[rows])
            output[rows] = steps.finish(under_way, self._savings.drop_finished)
        return True

    def _choose(self, logits: Tensor, rows: Tensor, branch: int, steps: Tensor) -> Tensor:
        """Choose ids `[B, T]` by logits `[B, T, V]`; steps: `[B or 1, T]`."""
        if self._sampling.temperature > 0:
            counters = self._sampling.rows.to(rows.device)[rows].unsqueeze(1)
            noise = self._sampling.gumbel(branch, counters, steps, self._vocabulary.num_lanes)
            logits = logits / self._sampling.temperature + noise[..., self._lanes]
        return logits.argmax(dim=-1)

    def _end(self, output: Tensor) -> None:
        """Replace the ids behind the first end of each row by padding, as a draft may go on behind it."""
        ends = torch.isin(output, self._ends).long()
        output.masked_fill_(ends.cumsum(dim=1) > ends, self._vocabulary.pad)

    def _is_unfinished(self, output: Tensor, count: Tensor) -> Tensor:
        """Return `[B]` bool: rows that have not ended and are not full, after `count [B]` new tokens."""
        last = output.gather(1, count.unsqueeze(1) - 1).squeeze(1)
        return ~torch.isin(last, self._ends) & (count < output.shape[1])


class _Decoding:
    """Rows under way: the cache of a network, the mask of its slots, and the next position of each row."""

    def __init__(self, network: PreTrainedModel, prefix: Tensor, pad: int) -> None:
        """Read prefixes `[B, P]`; padding in front of one is not part of it."""
        self._network = network
        # Without the config: a layer with a sliding window would drop slots.
        self._cache = DynamicCache()
        self._mask = prefix.new_empty(len(prefix), 0)
        self._position = prefix.new_zeros(len(prefix))
        self._windows = attention_windows(network)
        self.read(prefix, prefix != pad, logits_to_keep=1)

    def read(self, ids: Tensor, counts: Tensor | None = None, logits_to_keep: int = 0) -> Tensor:
        """Read ids `[B, T]` behind those before; return the logits `[B, T, V]` after each.

        counts: `[B, T]` bool, which ids are tokens; None is all.
        logits_to_keep: count of the last ids whose logits are computed; 0 is all.
        """
        counted = torch.ones_like(ids) if counts is None else counts.long()
        self._mask = torch.cat([self._mask, counted], dim=1)
        positions = self._position.unsqueeze(1) + counted.cumsum(dim=1) - 1
        self._position = self._position + counted.sum(dim=1)
        logits: Tensor = self._network(
            input_ids=ids,
            attention_mask=self._attention_mask(positions),
            position_ids=positions.clamp(min=0),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=logits_to_keep,
        ).logits
        return logits

    def _attention_mask(self, positions: Tensor) -> Tensor | dict[str, Tensor]:
        """Return the mask for tokens at these positions `[B, T]`: `[B, S]`, or `[B, 1, T, S]` by kind of layer.

        transformers would count the hidden slots as tokens of a sliding window.
        """
        slots = self._mask.shape[1]
        if all(window is None or slots <= window for window in self._windows.values()):
            return self._mask
        # Hidden slots do not count, so the position of a token is the count of tokens before it.
        distance = positions.unsqueeze(2) - (self._mask.cumsum(dim=1) - 1).unsqueeze(1)
        seen = self._mask.bool().unsqueeze(1) & (distance >= 0)
        masks = {
            kind: self._added(seen if window is None else seen & (distance < window))
            for kind, window in self._windows.items()
        }
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _added(self, seen: Tensor) -> Tensor:
        """Return `[B, 1, T, S]`: 0 where `seen [B, T, S]` is true, else the smallest number: padding sees nothing."""
        zeros = torch.zeros(seen.shape, dtype=self._network.dtype, device=seen.device)
        return zeros.masked_fill(~seen, torch.finfo(zeros.dtype).min).unsqueeze(1)

    def hide(self, rejected: Tensor) -> None:
        """Hide the last slots of each row, as many as `rejected [B]`, since their tokens were not chosen."""
        slots = torch.arange(self._mask.shape[1], device=self._mask.device)
        self._mask = self._mask * (slots < (len(slots) - rejected).unsqueeze(1))
        self._position = self._position - rejected

    def keep(self, rows: Tensor) -> None:
        """Drop all rows except those where `rows [B]` is true."""
        self._cache.batch_select_indices(rows.nonzero().squeeze(1))
        self._mask, self._position = self._mask[rows], self._position[rows]

    def under_way(self, output: Tensor, count: Tensor) -> UnderWay:
        """Return the rows with their tokens so far `[B, L]`, and how many there are `[B]`."""
        layers: Any = self._cache.layers
        return UnderWay([(layer.keys, layer.values) for layer in layers], self._mask, self._position, output, count)

    def copy(self) -> "_Decoding":
        """Return a copy of the rows with a cache of its own."""
        other = copy.copy(self)
        other._cache = copy.deepcopy(self._cache)
        return other


@torch.no_grad()
def _take_over(network: PreTrainedModel, other: PreTrainedModel) -> bool:
    """Copy the weights of another network on the same GPU, and return whether it has the same form.

    Graphs read the memory that they were captured with.
    """
    own, weights = network.state_dict(), other.state_dict()
    forms = [[(name, part.shape, part.dtype, part.device) for name, part in each.items()] for each in (own, weights)]
    if network.device.type != "cuda" or type(network) is not type(other) or forms[0] != forms[1]:
        return False
    torch._foreach_copy_(list(own.values()), list(weights.values()))
    return True


def _check_cache(model: TextModel) -> None:
    """Raise InputError unless the cache of a model holds a slot a token, so that tokens in it can be hidden."""
    network = model.network
    kinds = {type(layer) for layer in DynamicCache(config=network.config).layers}
    takes = signature(network.forward).parameters
    if (
        not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}
        or not {"position_ids", "logits_to_keep"} <= set(takes)
        or not attention_windows(network).keys() <= {SLIDING_ATTENTION, FULL_ATTENTION}
    ):
        raise InputError(
            f"the engine native cannot run {type(network).__name__}, whose state is no cache with a slot a token; "
            "choose hf"
        )
