"""Wider heads of attention: the same function, in sizes that vLLM takes on a CPU."""

import sys
from typing import Any

import pytest
import torch

from sector.engine.config import VllmConfig
from sector.engine.errors import InputError
from sector.engine.language.layout import Mode
from sector.engine.language.operands import draw_problems
from sector.engine.models.checkpoint import task_and_layout
from sector.engine.models.ordinary import new_text_model
from sector.engine.models.text import TextModel
from sector.engine.models.wide_heads import head_size, with_wide_heads
from sector.engine.samplers.hf import HuggingFaceSampler
from sector.engine.samplers.protocol import Branch, Sampler, Sampling
from sector.engine.samplers.vllm.sampler import VllmSampler

_SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    # Larger than usual, so that a wrong head is seen.
    "initializer_range": 0.25,
}
NETWORKS: dict[str, dict[str, Any]] = {
    "preset": {"initializer_range": 0.25},
    "llama": {"model_type": "llama", **_SIZES},
    "biased": {"model_type": "llama", **_SIZES, "attention_bias": True},
    "qwen2": {"model_type": "qwen2", **_SIZES},
}


def _model(network: dict[str, Any], seed: int = 0) -> TextModel:
    return new_text_model("text-tiny", seed, network)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@torch.no_grad()
def test_wide_heads_change_no_logit(network: dict[str, Any]) -> None:
    model = _model(network)
    for parameter in model.parameters():
        # Fresh biases are zero.
        parameter += 0.05
    ids = torch.randint(3, 80, (3, 40), generator=torch.Generator().manual_seed(0))
    wide = with_wide_heads(model)
    assert head_size(model) in (12, 16) and head_size(wide) in (32, 96)
    assert torch.allclose(wide(ids).logits, model(ids).logits, atol=1e-4)
    assert not torch.allclose(_model(network, seed=1)(ids).logits, model(ids).logits, atol=1e-1)


def test_heads_of_that_size_already_stay() -> None:
    model = _model({"head_dim": 32})
    assert with_wide_heads(model) is model


@pytest.mark.parametrize(
    "network",
    [
        {"model_type": "qwen3", **_SIZES, "head_dim": 16},
        {"model_type": "gpt2", "n_embd": 48, "n_layer": 2, "n_head": 4},
        {
            "model_type": "llama",
            **_SIZES,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
        },
    ],
    ids=["qwen3", "gpt2", "stretched"],
)
def test_other_heads_are_refused(network: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"the preset text-tiny: heads of 1\d components cannot become \d\d wide"):
        with_wide_heads(_model(network))


def _written(sampler: Sampler, model: TextModel, digits: int) -> list[list[list[int]]]:
    _, layout = task_and_layout(model)
    problems = draw_problems(digits, 4, torch.Generator().manual_seed(digits))
    branches = [
        Branch(layout.mark_ids(Mode.ANSWER, 4), layout.answer_length(digits)),
        Branch(layout.mark_ids(Mode.THINK, 4), layout.simplification_length(digits)),
    ]
    sampling = Sampling(0.0, 5, torch.arange(4), stage=2)
    return [ids.tolist() for ids in sampler.sample(layout.prefix_ids(problems), branches, sampling)]


@pytest.mark.skipif(sys.platform != "linux", reason="vLLM is for Linux")
def test_vllm_runs_the_preset() -> None:
    """With heads of 16, a window in the first layer and no positions in the others; new weights are widened too."""
    model, other = _model(NETWORKS["preset"]), _model(NETWORKS["preset"], seed=1)
    for each in (model, other):
        each.learns("addition", "hints", "lsd")
    sampler = VllmSampler(model, VllmConfig(rows=64, memory_mib=64, max_digits=20))
    for each in (model, other):
        sampler.load(each)
        for digits in (3, 20):
            assert _written(sampler, each, digits) == _written(HuggingFaceSampler(each), each, digits)
