"""The digit sampler as the sampler of vLLM, and the acceptance of drafts by it.

vLLM's own sampler wants logits over all ids, a few hundred times as many as there are classes that may follow. Here
the model passes on its rows instead, and the kernels of `native` choose from them (`kernels/digit_sampler.py`,
`kernels/acceptance.py`). A draft is accepted as far as the choices repeat it. So every token is the model's own choice,
with the same noise as in other engines: samples at temperature > 0 are the same, too.

vLLM's first model runner has no plug-in point for a sampler. So `install` replaces the two attributes that hold them,
in the process of the engine. A runner without these attributes keeps vLLM's sampler.

Legend: B requests of a step, T rows (a request has one for each drafted token and one more), K drafted tokens.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.outputs import SamplerOutput
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.rejection_sampler import RejectionSampler
from vllm.v1.sample.sampler import Sampler
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from sector.engine.language import tokens
from sector.engine.samplers.protocol import Sampling
from sector.engine.samplers.vllm.model import SectorForVllm, split_ids
from sector.kernels.acceptance import accept
from sector.kernels.digit_sampler import Head, sample_digits
from sector.kernels.philox import Stream

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

# vLLM's token of a draft that was not accepted (`PLACEHOLDER_TOKEN_ID`).
_REJECTED = -1

# Key of `SamplingParams.extra_args`: row and stage of a request in the random stream.
POSITION = "position"


class DigitChoice:
    """The choice of next ids from rows of the model.

    sampling: temperature and seed of the call in progress; its rows and stage are those of the requests.
    """

    def __init__(self, model: SectorForVllm, runner: "GPUModelRunner") -> None:
        self.sampling: Sampling | None = None
        self._model = model
        self._runner = runner

    def serves(self, metadata: SamplingMetadata) -> bool:
        """Return whether ids are enough: no request of the step asks for log-probabilities of several ids."""
        return metadata.max_num_logprobs is None

    def logits(self, rows: Tensor) -> Tensor:
        """Return logits `[T, V]` for vLLM's own sampler."""
        return self._model.logits(rows)

    def ids(self, rows: Tensor, drafted: list[int] | None = None) -> Tensor:
        """Choose the ids `[T]` that follow rows `[T, R]`.

        drafted: the number of drafted tokens of each request; None for no drafts.
        """
        hidden, ids = split_ids(rows)
        head = Head(self._model.norm.weight, self._model.head.weight, self._model.norm.variance_epsilon)
        temperature = 0.0 if self.sampling is None else self.sampling.temperature
        stream = self._stream(drafted, ids.device) if temperature > 0 else None
        return sample_digits(hidden, ids, head, tokens.kernel_table(ids.device), temperature, stream).ids

    def _stream(self, drafted: list[int] | None, device: torch.device) -> Stream:
        """Return the positions of all rows of a step in the random stream."""
        assert self.sampling is not None
        batch = self._runner.input_batch
        count = batch.num_reqs
        requests = [self._runner.requests[request].sampling_params for request in batch.req_ids]
        rows, stages = zip(*(params.extra_args[POSITION] for params in requests), strict=True)
        # Tokens that each request has generated; a row whose prompt is still read is not used.
        steps = (batch.num_tokens_no_spec[:count] - batch.num_prompt_tokens[:count]).clip(min=0)
        repeats = np.asarray(drafted or [0] * count) + 1
        offsets = np.arange(repeats.sum()) - np.repeat(repeats.cumsum() - repeats, repeats)
        columns = [np.repeat(np.asarray(column, np.int64), repeats) for column in (rows, stages, steps)]
        columns[2] += offsets
        seed = torch.tensor([self.sampling.seed], dtype=torch.int64, device=device)
        return Stream(seed, *(torch.from_numpy(column).to(device) for column in columns))


class DigitSampler(Sampler):  # type: ignore[misc]  # vLLM is not typed here
    """vLLM's sampler, for rows of the model."""

    def __init__(self, base: Sampler, choice: DigitChoice) -> None:
        super().__init__(base.logprobs_mode)
        self.choice = choice

    def forward(self, logits: Tensor, sampling_metadata: SamplingMetadata, *args: Any, **kwargs: Any) -> SamplerOutput:
        """Choose one token for each request."""
        if not self.choice.serves(sampling_metadata):
            return super().forward(self.choice.logits(logits), sampling_metadata, *args, **kwargs)
        return SamplerOutput(self.choice.ids(logits).int().unsqueeze(1), logprobs_tensors=None)


class DraftVerifier(RejectionSampler):  # type: ignore[misc]
    """vLLM's rejection sampler, for rows of the model."""

    def __init__(self, base: Sampler, choice: DigitChoice) -> None:
        super().__init__(base)
        self._choice = choice

    def forward(
        self,
        metadata: SpecDecodeMetadata,
        draft_probs: Tensor | None,
        logits: Tensor,
        sampling_metadata: SamplingMetadata,
    ) -> SamplerOutput:
        """Return the accepted tokens of each request, `[B, K + 1]`, and placeholders."""
        if not self._choice.serves(sampling_metadata):
            return super().forward(metadata, draft_probs, self._choice.logits(logits), sampling_metadata)
        drafted = metadata.num_draft_tokens
        chosen = self._choice.ids(logits, drafted)
        return SamplerOutput(_accepted(chosen, metadata.draft_token_ids, drafted), logprobs_tensors=None)


def _accepted(chosen: Tensor, drafts: Tensor, drafted: list[int]) -> Tensor:
    """Return the accepted of the chosen tokens `[T]` of all requests, `[B, K + 1]`, and placeholders."""
    counts = torch.tensor(drafted)
    columns = torch.arange(int(counts.max()) + 1)
    # In `chosen` a request has a token more than in `drafts`.
    first = (counts.cumsum(0) - counts).unsqueeze(1)
    rows = torch.arange(len(drafted)).unsqueeze(1)
    is_draft = columns < counts.unsqueeze(1)
    source = (first + rows + columns.minimum(counts.unsqueeze(1))).to(chosen.device)
    padded = torch.full((len(drafted), len(columns)), _REJECTED, dtype=torch.int64, device=chosen.device)
    padded[is_draft.to(chosen.device)] = drafts.long()
    output = torch.empty_like(padded)
    accept(output, chosen[source], padded, _REJECTED)
    return output.int()


def install(worker: Any) -> DigitChoice | None:
    """Replace the samplers of a worker's model runner; return their choice, or None if vLLM's samplers stay."""
    runner, model = worker.model_runner, worker.get_model()
    if isinstance(runner.sampler, DigitSampler):
        return runner.sampler.choice
    if not isinstance(model, SectorForVllm) or not isinstance(runner.sampler, Sampler):
        return None
    choice = DigitChoice(model, runner)
    base = runner.sampler
    if hasattr(runner, "rejection_sampler"):
        runner.rejection_sampler = DraftVerifier(base, choice)
    runner.sampler = DigitSampler(base, choice)
    model.returns_rows = True
    return choice
