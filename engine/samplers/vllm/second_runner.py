"""The digit sampler in vLLM's second model runner, which lets a model bring its own sampler.

The second runner is for GPUs. It takes no drafts of ours: vLLM chooses the first runner where drafts are on. The
sampler serves our engine only; in a server, whose requests may ask for anything, vLLM's own sampler chooses.

Legend: B requests of a step, R columns of a row.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.worker.gpu.input_batch import InputBatch, get_num_sampled_and_rejected
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler

from sector.engine.samplers.vllm.digit_choice import DigitChoice, position_of
from sector.engine.samplers.vllm.model import SectorForVllm


class SecondRunnerSampler:
    """vLLM's sampler, for rows of the model. Other members are those of the base."""

    def __init__(self, base: Sampler, model: SectorForVllm, max_num_reqs: int) -> None:
        self.choice = DigitChoice(model)
        self._base = base
        self._model = model
        self._positions = np.zeros((max_num_reqs, 2), np.int64)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> None:
        """Remember the position of a request in the random stream, and add it to the base."""
        self._positions[req_idx] = position_of(sampling_params)
        self._base.add_request(req_idx, sampling_params)

    def __call__(self, logits: Tensor, input_batch: InputBatch) -> SamplerOutput:
        """Choose one token for each request from rows `[B, R]`, or from logits if the model returns them."""
        if not self._model.returns_rows:
            return self._base(logits, input_batch)
        if self._base.get_logprobs_dims(input_batch.idx_mapping_np) is not None:
            return self._base(self.choice.logits(logits), input_batch)

        def positions() -> tuple[Tensor, Tensor, Tensor]:
            rows, stages = torch.from_numpy(self._positions[input_batch.idx_mapping_np]).unbind(dim=1)
            prompts = torch.from_numpy(self._base.req_states.prompt_len.np[input_batch.idx_mapping_np])
            last = input_batch.positions[input_batch.logits_indices]
            # Where a prompt is still read, the choice is not used.
            return rows, stages, (last + 1 - prompts.to(last.device)).clamp(min=0)

        ids = self.choice.ids(logits, positions)
        num_sampled, num_rejected = get_num_sampled_and_rejected(
            input_batch.seq_lens.new_ones(input_batch.num_reqs),
            input_batch.seq_lens,
            input_batch.cu_num_logits,
            input_batch.idx_mapping,
            self._base.req_states.prefill_len.gpu,
        )
        return SamplerOutput(
            sampled_token_ids=ids.view(-1, 1),
            logprobs_tensors=None,
            num_nans=None,
            num_sampled=num_sampled,
            num_rejected=num_rejected,
        )


class SectorModelState(DefaultModelState):  # type: ignore[misc]  # vLLM is not typed here
    """The state of our model in the second runner: it brings the sampler."""

    def custom_sampler(self, sampler: Sampler) -> tuple[SecondRunnerSampler, None] | None:
        """Return our sampler around vLLM's and none for drafts, or None if a server has drafts of its own."""
        if self.vllm_config.speculative_config is not None:
            return None
        return SecondRunnerSampler(sampler, self.model, self.max_num_reqs), None
