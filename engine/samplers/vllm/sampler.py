"""The engine vllm: one vLLM for all rounds, prompts as ids, no tokenizer; a probe verifies new weights.

vLLM is unmodified; our model is registered through its plug-in points (`vllm/__init__.py`), and drafts go through its
speculative decoding (`drafts.py`). It finds common prefixes of prompts by itself. In float32 it returns the same tokens
as `native`, at any temperature. Only where vLLM's own sampler draws, for models of text, it has other random streams,
one per prompt: those samples come from the same distribution.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sector.engine.config import VllmConfig
from sector.engine.errors import EngineFailed, InputError
from sector.engine.models.checkpoint import Model, task_and_layout, weights_sha256
from sector.engine.samplers.protocol import Beginning, Branch, Sampling
from sector.engine.samplers.vllm.drafts import proposer_of
from sector.engine.samplers.vllm.start import max_tokens, one_line, start, vllm_weights
from sector.engine.samplers.vllm.weights_check import CANDIDATES, Said, check_weights, probe_prompts
from sector.engine.samplers.vocabulary import vocabulary
from sector.engine.seeding import stream_seed
from sector.engine.threads import one_thread

if TYPE_CHECKING:
    from vllm import SamplingParams

    from sector.engine.samplers.vllm.digit_choice import DigitChoice

# The highest temperature that vLLM accepts.
MAX_TEMPERATURE = 2


class _StopIds(list[int]):
    """Ids that end a completion. vLLM searches the list for every token, so the search takes constant time."""

    def __init__(self, ids: Iterable[int]) -> None:
        super().__init__(ids)
        self._ids = frozenset(self)

    def __contains__(self, token: object) -> bool:
        return token in self._ids


class VllmSampler:
    """vLLM's offline engine; see `protocol.Sampler`.

    Raise InputError if vLLM cannot start, and EngineFailed if it dies or if its weights are not those of the model.

    max_tokens: the maximum length of a prompt with its completion.
    """

    name = "vllm"
    device = torch.device("cpu")
    uses_all_cores = False

    def __init__(self, model: Model, settings: VllmConfig) -> None:
        self._settings = settings
        self._failed = False
        self.max_tokens = max_tokens(model, settings)
        self._llm = start(model, settings)
        self._proposer = proposer_of(self._llm)
        # Replaces the samplers in the process of the engine, which is this one.
        (self._choice,) = self._llm.collective_rpc(_install)
        self._sizes = _sizes(model)
        ids = vocabulary(model)
        self._pad, self._stop = ids.pad, _StopIds(dict.fromkeys([*ids.ends, ids.pad]))
        self._verify(model)

    def load(self, model: Model) -> None:
        """Load the model's weights into the running engine, and verify them.

        Raise EngineFailed, with figures, if the log-probabilities of the engine then differ from those of the model.
        """
        state = vllm_weights(model)
        if self._sizes != _sizes(model):
            # vLLM would fail halfway, with some of the weights loaded.
            raise EngineFailed("the engine vllm was started for a model of other sizes and cannot change them")
        try:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(state.items())})
            # The cache holds keys and values of the old weights.
            self._llm.reset_prefix_cache()
        except Exception as error:
            raise EngineFailed(f"the engine vllm cannot load new weights ({one_line(error)})") from error
        self._verify(model)

    def sample(
        self, prefix: Tensor, branches: Sequence[Branch], sampling: Sampling, beginning: Beginning | None = None
    ) -> list[Tensor]:
        """Complete every prefix; see `protocol.Sampler`.

        Raise InputError if prompts exceed `vllm.max_digits`, or if the temperature is above `MAX_TEMPERATURE`.
        """
        if self._choice is not None:
            self._choice.sampling = sampling
        elif sampling.temperature > MAX_TEMPERATURE:
            raise InputError(
                f"the engine vllm takes temperatures up to {MAX_TEMPERATURE}, not {sampling.temperature:g}"
            )
        prompts: list[list[int]] = []
        params: list[SamplingParams] = []
        drafts: list[list[int]] = []
        for index, branch in enumerate(branches):
            self._check_length(prefix.shape[1] + 1 + branch.length)
            rows = torch.cat([prefix, branch.mark], dim=1).tolist()
            prompts += [[token for token in row if token != self._pad] for row in rows]
            params += self._params(branch.length, sampling, index)
            drafts += self._drafts(branch, len(rows), sampling)
        completions = iter(self._generate(prompts, params, drafts))
        outputs = []
        for branch in branches:
            ids = [torch.tensor(next(completions).ids) for _ in range(len(prefix))]
            padded = [F.pad(row, (0, branch.length - len(row)), value=self._pad) for row in ids]
            outputs.append(torch.stack(padded).to(prefix.device) if padded else prefix.new_empty(0, branch.length))
        return outputs

    def _drafts(self, branch: Branch, rows: int, sampling: Sampling) -> list[list[int]]:
        """Return the draft of each row, without tokens if vLLM's own sampler draws.

        With a draft it would draw other samples, and not the same ones again: its rejection sampler.
        """
        if branch.draft is None or (self._choice is None and sampling.temperature > 0):
            return [[]] * rows
        drafts: list[list[int]] = branch.draft[:, : branch.drafted].tolist()
        return drafts

    def _params(self, length: int, sampling: Sampling, branch: int) -> list["SamplingParams"]:
        """Return the parameters of each row; if greedy, rows share them."""
        if sampling.temperature == 0:
            return [self._sampling_params(length)] * len(sampling.rows)
        stage = sampling.stage + branch
        if self._choice is not None:
            return [self._sampling_params(length, position=(row, stage)) for row in sampling.rows.tolist()]
        return [
            self._sampling_params(
                length, temperature=sampling.temperature, seed=stream_seed(sampling.seed, "vllm", row, stage)
            )
            for row in sampling.rows.tolist()
        ]

    def _sampling_params(
        self,
        length: int,
        temperature: float = 0.0,
        seed: int | None = None,
        logprobs: int | None = None,
        position: tuple[int, int] | None = None,
    ) -> "SamplingParams":
        # Not imported at the top: `start` sets the environment before the first import of vLLM.
        from vllm import SamplingParams

        params = SamplingParams(
            max_tokens=length,
            temperature=temperature,
            seed=seed,
            logprobs=logprobs,
            detokenize=False,
            extra_args=None if position is None else {"position": position},
            # They are read-only, and copying hundreds of stop ids per prompt takes as long as some steps.
            skip_clone=True,
        )
        # Set afterwards, since the constructor would copy it to a plain list.
        params.stop_token_ids = self._stop
        return params

    def _generate(
        self, prompts: list[list[int]], params: list["SamplingParams"], drafts: Iterable[list[int]] = ()
    ) -> list[Said]:
        if self._failed:
            raise EngineFailed("an earlier call of the engine vllm did not finish; start another engine")
        if self._proposer is not None:
            self._proposer.expect(zip(prompts, drafts, strict=False))
        # Until the call returns. An error or Ctrl-C leaves requests behind, for which the next call would wait forever.
        self._failed = True
        try:
            with one_thread():
                outputs = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        except Exception as error:
            raise EngineFailed(f"the engine vllm died ({one_line(error)})") from error
        self._failed = False
        return [
            Said(
                prompt,
                list(output.outputs[0].token_ids),
                [
                    {token: candidate.logprob for token, candidate in position.items()}
                    for position in output.outputs[0].logprobs or []
                ],
            )
            for prompt, output in zip(prompts, outputs, strict=True)
        ]

    def _verify(self, model: Model) -> None:
        """Verify the weights with a probe, and only then set `weights_sha256`."""
        prompts = probe_prompts(*task_and_layout(model), self._settings.max_digits)
        params = [self._sampling_params(length, logprobs=CANDIDATES) for _, length in prompts]
        completions = self._generate([prompt for prompt, _ in prompts], params)
        dtype = self._llm.model_config.dtype
        assert isinstance(dtype, torch.dtype), "vLLM has resolved its name"
        check_weights(model, completions, dtype)
        self.weights_sha256 = weights_sha256(model)

    def _check_length(self, length: int) -> None:
        if length > self.max_tokens:
            raise InputError(
                f"a prompt and its completion take {length} tokens, more than the {self.max_tokens} that the engine "
                f"vllm was started for; raise vllm.max_digits, now {self._settings.max_digits}"
            )


def _sizes(model: Model) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.weights().items()}


def _install(worker: Any) -> "DigitChoice | None":
    # Imports vLLM.
    from sector.engine.samplers.vllm.install import install

    return install(worker)
