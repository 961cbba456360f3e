"""The digit sampler in vLLM's second model runner, which needs a GPU: our classes with a batch in the runner's form."""

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sector.engine.language import tokens
from sector.engine.language.operands import draw_problems
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.models.sector import SectorForCausalLM, new_model
from sector.engine.samplers.native import NativeSampler
from sector.engine.samplers.protocol import Branch, Sampling
from sector.kernels.digit_sampler import sample_digits, sample_digits_kernel

if sys.platform != "linux":
    pytest.skip("vLLM is for Linux", allow_module_level=True)
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
second_runner = pytest.importorskip("sector.engine.samplers.vllm.second_runner")
vllm_model = pytest.importorskip("sector.engine.samplers.vllm.model")

ROWS = 7


class _Rows(torch.nn.Module):
    """The parts of `SectorForVllm` behind its body, with the weights of our model."""

    def __init__(self, model: SectorForCausalLM) -> None:
        super().__init__()
        self.norm, self.head = model.norm, model.head
        self.norm.variance_epsilon = model.config.rms_norm_eps
        self.vocab_size, self.returns_rows = model.config.vocab_size, True

    logits = vllm_model.SectorForVllm.logits


class _Base:
    """vLLM's sampler: greedy over logits, and what the runner asks it for."""

    def __init__(self, prompt_lengths: list[int]) -> None:
        self.added: list[int] = []
        self.logprobs: tuple[int, int] | None = None
        lengths = SimpleNamespace(np=torch.tensor(prompt_lengths).numpy(), gpu=torch.tensor(prompt_lengths))
        self.req_states = SimpleNamespace(prompt_len=lengths, prefill_len=lengths)

    def add_request(self, req_idx: int, sampling_params: Any) -> None:
        self.added.append(req_idx)

    def get_logprobs_dims(self, idx_mapping_np: Any) -> tuple[int, int] | None:
        return self.logprobs

    def __call__(self, logits: Tensor, input_batch: Any) -> Any:
        return SimpleNamespace(sampled_token_ids=logits.argmax(dim=1, keepdim=True))


def _num_sampled(num_sampled: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """vLLM's kernel, which needs a GPU, for requests whose prompts are read."""
    return num_sampled, torch.zeros_like(num_sampled)


@torch.no_grad()
@pytest.mark.parametrize("sample", [sample_digits, sample_digits_kernel], ids=lambda function: function.__name__)
@pytest.mark.parametrize("temperature", [0.0, 0.7], ids="temperature{}".format)
def test_tokens_are_those_of_native(temperature: float, sample: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the reference, and by the kernel in Triton's interpreter."""
    monkeypatch.setattr("sector.engine.samplers.vllm.digit_choice.sample_digits", sample)
    monkeypatch.setattr(second_runner, "get_num_sampled_and_rejected", _num_sampled)
    model = new_model("tiny", seed=1, initializer_range=0.25).eval()
    layout = PlaceLayout(variant=torch.arange(ROWS) % tokens.NUM_SHIFTS)
    prefix = layout.prefix_ids(draw_problems(6, ROWS, torch.Generator().manual_seed(6)))
    mark = layout.mark_ids(tokens.ANSWER, ROWS)
    sampling = Sampling(temperature, 5, torch.arange(100, 100 + ROWS), 2)
    expected = NativeSampler(model).sample(prefix, [Branch(mark, 5)], sampling)[0]

    prompts = torch.cat([prefix, mark], dim=1)
    # The runner keeps requests in other places than in its batch.
    places = torch.arange(ROWS).flip(0) + 2
    base = _Base([0, 0] + [prompts.shape[1]] * ROWS)
    sampler = second_runner.SecondRunnerSampler(base, _Rows(model), max_num_reqs=ROWS + 2)
    sampler.choice.sampling = sampling
    for place, row in zip(places.tolist(), sampling.rows.tolist(), strict=True):
        sampler.add_request(place, SimpleNamespace(extra_args={"position": (row, sampling.stage)}))
    assert base.added == places.tolist() and sampler.req_states is base.req_states

    ids, chosen = prompts, []
    for step in range(5):
        hidden = _before_the_norm(model, ids)
        batch = SimpleNamespace(
            num_reqs=ROWS,
            idx_mapping=places,
            idx_mapping_np=places.numpy(),
            positions=torch.full((ROWS,), prompts.shape[1] - 1 + step),
            logits_indices=torch.arange(ROWS),
            seq_lens=torch.full((ROWS,), prompts.shape[1] + step),
            cu_num_logits=torch.arange(ROWS + 1),
        )
        output = sampler(vllm_model.with_ids(hidden, ids[:, -1]), batch)
        assert output.num_sampled.tolist() == [1] * ROWS
        chosen.append(output.sampled_token_ids)
        ids = torch.cat([ids, output.sampled_token_ids], dim=1)
    assert torch.cat(chosen, dim=1).tolist() == _padded_after_the_end(expected, torch.cat(chosen, dim=1)).tolist()

    if temperature == 0:
        base.logprobs = (12, 0)
        assert torch.equal(sampler(vllm_model.with_ids(hidden, ids[:, -2]), batch).sampled_token_ids, chosen[-1])
    # A server keeps vLLM's sampler, and then `compute_logits` returns logits.
    sampler._model.returns_rows = False
    logits = torch.randn(ROWS, model.config.vocab_size)
    assert torch.equal(sampler(logits, batch).sampled_token_ids, logits.argmax(dim=1, keepdim=True))


def _before_the_norm(model: SectorForCausalLM, ids: Tensor) -> Tensor:
    """Hidden states of the last tokens before the final norm."""
    kept: list[Tensor] = []
    handle = model.norm.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    model(ids)
    handle.remove()
    return kept[0][:, -1]


def _padded_after_the_end(expected: Tensor, chosen: Tensor) -> Tensor:
    """The expected tokens, with the chosen ones after the end of a completion, where engines pad."""
    ended = (tokens.class_of(expected) == tokens.EOS).int().cumsum(dim=1).bool()
    after = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], dim=1)
    return torch.where(after, chosen, expected)


def test_a_server_with_drafts_of_its_own_keeps_its_samplers() -> None:
    state = SimpleNamespace(vllm_config=SimpleNamespace(speculative_config=object()))
    assert second_runner.SectorModelState.custom_sampler(state, _Base([])) is None
    assert vllm_model.SectorForVllm.get_model_state_cls() is second_runner.SectorModelState
