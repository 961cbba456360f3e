"""The digit sampler in vLLM's first model runner, and the acceptance of drafts by its choices.

This runner has no plug-in point for a sampler. So the two attributes that hold its samplers are replaced, in the
process of the engine. A draft is accepted as far as the choices repeat it (`kernels/acceptance.py`).

Legend: B requests of a step, T rows (a request has one for each drafted token and one more), K drafted tokens.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.v1.outputs import SamplerOutput
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.rejection_sampler import RejectionSampler
from vllm.v1.sample.sampler import Sampler
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from sector.engine.samplers.vllm.digit_choice import DigitChoice, position_of
from sector.kernels.acceptance import accept

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

# vLLM's token of a draft that was not accepted (`PLACEHOLDER_TOKEN_ID`).
_REJECTED = -1


class RequestPositions:
    """Positions in the random stream of the requests of the first model runner."""

    def __init__(self, runner: "GPUModelRunner") -> None:
        self._runner = runner

    def __call__(self, drafted: Sequence[int] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows, stages and steps `[T]` of a step; `drafted` has the drafted tokens of each request."""
        batch = self._runner.input_batch
        positions = [position_of(self._runner.requests[request].sampling_params) for request in batch.req_ids]
        rows, stages = torch.tensor(positions, dtype=torch.int64).unbind(dim=1)
        # Tokens that each request has generated. Where a prompt is still read, the choice is not used.
        count = batch.num_reqs
        steps = torch.from_numpy(batch.num_tokens_no_spec[:count] - batch.num_prompt_tokens[:count]).long().clamp(min=0)
        if drafted is None:
            return rows, stages, steps
        repeats = torch.tensor(drafted) + 1
        offsets = torch.cat([torch.arange(number) for number in repeats.tolist()])
        return (
            rows.repeat_interleave(repeats),
            stages.repeat_interleave(repeats),
            steps.repeat_interleave(repeats) + offsets,
        )


def _wants_ids(metadata: SamplingMetadata) -> bool:
    """Return whether ids are enough: no request of the step asks for log-probabilities."""
    return metadata.max_num_logprobs is None


class DigitSampler(Sampler):  # type: ignore[misc]  # vLLM is not typed here
    """vLLM's sampler, for rows of the model."""

    def __init__(self, base: Sampler, choice: DigitChoice, positions: RequestPositions) -> None:
        super().__init__(base.logprobs_mode)
        self.choice = choice
        self._positions = positions

    def forward(self, logits: Tensor, sampling_metadata: SamplingMetadata, *args: Any, **kwargs: Any) -> SamplerOutput:
        """Choose one token for each request."""
        if not _wants_ids(sampling_metadata):
            return super().forward(self.choice.logits(logits), sampling_metadata, *args, **kwargs)
        return SamplerOutput(self.choice.ids(logits, self._positions).int().unsqueeze(1), logprobs_tensors=None)


class DraftVerifier(RejectionSampler):  # type: ignore[misc]
    """vLLM's rejection sampler, for rows of the model."""

    def __init__(self, base: Sampler, choice: DigitChoice, positions: RequestPositions) -> None:
        super().__init__(base)
        self._choice = choice
        self._positions = positions

    def forward(
        self,
        metadata: SpecDecodeMetadata,
        draft_probs: Tensor | None,
        logits: Tensor,
        sampling_metadata: SamplingMetadata,
    ) -> SamplerOutput:
        """Return the accepted tokens of each request, `[B, K + 1]`, and placeholders."""
        if not _wants_ids(sampling_metadata):
            return super().forward(metadata, draft_probs, self._choice.logits(logits), sampling_metadata)
        drafted = metadata.num_draft_tokens
        chosen = self._choice.ids(logits, partial(self._positions, drafted))
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


def replace_samplers(runner: "GPUModelRunner", choice: DigitChoice) -> None:
    """Have the choice in the place of the runner's samplers."""
    base, positions = runner.sampler, RequestPositions(runner)
    if hasattr(runner, "rejection_sampler"):
        runner.rejection_sampler = DraftVerifier(base, choice, positions)
    runner.sampler = DigitSampler(base, choice, positions)
