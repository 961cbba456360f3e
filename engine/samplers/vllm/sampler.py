"""The engine vllm: one vLLM kept for all rounds, prompts as ids, no tokenizer, new weights proven by a probe.

Unmodified vLLM; our model is in it by its plug-in points (`engine/vllm/`). It ignores drafts, and finds what prompts
have in common by itself. Greedy in float32 it writes what the other engines write. At temperature > 0 it draws from a
stream of its own, one a prompt: samples differ from those of the other engines, and come from the same distribution.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sector.engine.config import VllmConfig
from sector.engine.errors import EngineFailed, InputError
from sector.engine.models.checkpoint import Model, task_and_layout, weights, weights_sha256
from sector.engine.samplers.protocol import Beginning, Branch, Sampling
from sector.engine.samplers.vllm.start import one_line, start, vllm_weights
from sector.engine.samplers.vllm.weights_check import CANDIDATES, Said, check_weights, probe_prompts
from sector.engine.samplers.vocabulary import vocabulary
from sector.engine.seeding import stream_seed
from sector.engine.threads import one_thread

if TYPE_CHECKING:
    from vllm import SamplingParams

# vLLM refuses higher ones.
MAX_TEMPERATURE = 2


class VllmSampler:
    """vLLM's offline engine; see `protocol.Sampler`.

    InputError where vLLM cannot start, EngineFailed where it dies or has other weights than it was given.
    """

    name = "vllm"
    device = torch.device("cpu")

    def __init__(self, model: Model, settings: VllmConfig) -> None:
        self._settings = settings
        self._llm = start(model, settings)
        self._sizes = _sizes(model)
        ids = vocabulary(model)
        self._pad, self._stop = ids.pad, list(dict.fromkeys([*ids.ends, ids.pad]))
        self._prove(model)

    @property
    def max_tokens(self) -> int:
        """Of a prompt with its completion."""
        return self._llm.model_config.max_model_len

    def load(self, model: Model) -> None:
        """Take the model's weights into the live engine, and prove it. EngineFailed, with figures, if they differ."""
        state = vllm_weights(model)
        if self._sizes != _sizes(model):
            # vLLM would find out halfway through, with some weights loaded.
            raise EngineFailed("the engine vllm was started for a model of other sizes, and keeps to those")
        try:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(state.items())})
            # What was read with the old weights.
            self._llm.reset_prefix_cache()
        except Exception as error:
            raise EngineFailed(f"the engine vllm takes no new weights ({one_line(error)})") from error
        self._prove(model)

    def sample(
        self, prefix: Tensor, branches: Sequence[Branch], sampling: Sampling, beginning: Beginning | None = None
    ) -> list[Tensor]:
        """See `protocol.Sampler`. InputError on prompts longer than `vllm.max_digits` says, and high temperatures."""
        if sampling.temperature > MAX_TEMPERATURE:
            raise InputError(
                f"the engine vllm takes temperatures up to {MAX_TEMPERATURE}, not {sampling.temperature:g}"
            )
        prompts: list[list[int]] = []
        params: list[SamplingParams] = []
        for index, branch in enumerate(branches):
            self._check_length(prefix.shape[1] + 1 + branch.length)
            rows = torch.cat([prefix, branch.mark], dim=1).tolist()
            prompts += [[index for index in row if index != self._pad] for row in rows]
            params += self._params(branch.length, sampling, index)
        completed = iter(self._generate(prompts, params))
        outputs = []
        for branch in branches:
            said = [torch.tensor(next(completed).ids) for _ in range(len(prefix))]
            padded = [F.pad(row, (0, branch.length - len(row)), value=self._pad) for row in said]
            outputs.append(torch.stack(padded).to(prefix.device) if said else prefix.new_empty(0, branch.length))
        return outputs

    def _params(self, length: int, sampling: Sampling, branch: int) -> list["SamplingParams"]:
        """One a row. Greedy, rows share theirs."""
        if sampling.temperature == 0:
            return [self._sampling_params(length)] * len(sampling.rows)
        stage = sampling.stage + branch
        return [
            self._sampling_params(
                length, temperature=sampling.temperature, seed=stream_seed(sampling.seed, "vllm", row, stage)
            )
            for row in sampling.rows.tolist()
        ]

    def _sampling_params(
        self, length: int, temperature: float = 0.0, seed: int | None = None, logprobs: int | None = None
    ) -> "SamplingParams":
        # vLLM is imported by `start` first, which tells it what it must know by then.
        from vllm import SamplingParams

        return SamplingParams(
            max_tokens=length,
            temperature=temperature,
            seed=seed,
            logprobs=logprobs,
            stop_token_ids=self._stop,
            detokenize=False,
            # Nobody writes to them, and copying hundreds of stop ids a prompt takes as long as some steps.
            skip_clone=True,
        )

    def _generate(self, prompts: list[list[int]], params: list["SamplingParams"]) -> list[Said]:
        try:
            with one_thread():
                outputs = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        except Exception as error:
            raise EngineFailed(f"the engine vllm died ({one_line(error)})") from error
        return [
            Said(
                prompt,
                list(output.outputs[0].token_ids),
                [
                    {index: one.logprob for index, one in position.items()}
                    for position in output.outputs[0].logprobs or []
                ],
            )
            for prompt, output in zip(prompts, outputs, strict=True)
        ]

    def _prove(self, model: Model) -> None:
        """Check weights by a probe; only then does the engine go by their name."""
        prompts = probe_prompts(*task_and_layout(model), self._settings.max_digits)
        params = [self._sampling_params(length, logprobs=CANDIDATES) for _, length in prompts]
        said = self._generate([prompt for prompt, _ in prompts], params)
        dtype = self._llm.model_config.dtype
        assert isinstance(dtype, torch.dtype), "vLLM has resolved its name"
        check_weights(model, said, dtype)
        self.weights_sha256 = weights_sha256(model)

    def _check_length(self, length: int) -> None:
        if length > self.max_tokens:
            raise InputError(
                f"a prompt and its completion take {length} tokens, more than the {self.max_tokens} that the engine "
                f"vllm was started for; raise vllm.max_digits, now {self._settings.max_digits}"
            )


def _sizes(model: Model) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights(model).items()}
