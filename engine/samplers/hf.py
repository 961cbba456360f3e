"""The reference engine: `generate` of transformers on the same checkpoint. It ignores drafts."""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from sector.engine.models.checkpoint import Model, weights_sha256
from sector.engine.samplers.protocol import Beginning, Branch, Sampling
from sector.engine.samplers.vocabulary import Vocabulary, vocabulary


class _GumbelNoise(LogitsProcessor):
    """Noise that turns greedy search into a sample of our random stream, so that engines agree at any temperature."""

    def __init__(self, sampling: Sampling, branch: int, prompt_length: int, vocabulary: Vocabulary) -> None:
        self._sampling, self._branch, self._prompt_length = sampling, branch, prompt_length
        self._vocabulary = vocabulary

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = torch.tensor(input_ids.shape[1] - self._prompt_length)
        noise = self._sampling.gumbel(self._branch, self._sampling.rows, step, self._vocabulary.num_lanes)
        return scores / self._sampling.temperature + noise[:, self._vocabulary.lanes].to(scores.device)


class HuggingFaceSampler:
    """`generate` of transformers; see `protocol.Sampler`."""

    name = "hf"
    device = torch.device("cpu")
    uses_all_cores = False

    def __init__(self, model: Model) -> None:
        self.load(model)

    def load(self, model: Model) -> None:
        """Copy the model's weights."""
        self._model, self._vocabulary = copy.deepcopy(model.network).eval(), vocabulary(model)
        self.weights_sha256 = weights_sha256(model)

    def sample(
        self, prefix: Tensor, branches: Sequence[Branch], sampling: Sampling, beginning: Beginning | None = None
    ) -> list[Tensor]:
        """Complete every prefix; see `protocol.Sampler`."""
        return [self._complete(prefix, branch, sampling, index) for index, branch in enumerate(branches)]

    @torch.inference_mode()
    def _complete(self, prefix: Tensor, branch: Branch, sampling: Sampling, index: int) -> Tensor:
        if len(prefix) == 0:
            return prefix.new_empty(0, branch.length)
        prompt = torch.cat([prefix, branch.mark], dim=1).to(self._model.device)
        pad, processors = self._vocabulary.pad, LogitsProcessorList()
        if sampling.temperature > 0:
            processors.append(_GumbelNoise(sampling, index, prompt.shape[1], self._vocabulary))
        config = GenerationConfig(
            max_new_tokens=branch.length,
            do_sample=False,
            eos_token_id=self._vocabulary.ends,
            pad_token_id=pad,
        )
        # The type hints of `generate` cover only the models of transformers.
        output = self._model.generate(
            prompt, attention_mask=(prompt != pad).long(), generation_config=config, logits_processor=processors
        )[:, prompt.shape[1] :]
        return F.pad(output.to(prefix.device), (0, branch.length - output.shape[1]), value=pad)
