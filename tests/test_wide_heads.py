"""Wider heads of attention: the same function, in sizes that vLLM takes on a CPU."""

from typing import Any

import pytest
import torch

from sector.engine.errors import InputError
from sector.engine.models.ordinary import new_text_model
from sector.engine.models.text import TextModel
from sector.engine.models.wide_heads import HEAD_SIZES, head_size, wide_weights, with_wide_heads

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


def test_widening_moves_no_stream_of_random_numbers() -> None:
    model, before = _model(NETWORKS["llama"]), torch.get_rng_state()
    with_wide_heads(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_heads_of_no_size_are_refused() -> None:
    with pytest.raises(InputError, match="vLLM on a CPU takes no heads of 72 components"):
        with_wide_heads(_model({"model_type": "llama", **_SIZES, "head_dim": 72}))


@pytest.mark.parametrize("size", HEAD_SIZES, ids=str)
def test_heads_that_vllm_takes_stay(size: int) -> None:
    model = _model({"model_type": "qwen3", **_SIZES, "head_dim": size})
    assert with_wide_heads(model) is model and wide_weights(model).keys() == model.network.state_dict().keys()


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
