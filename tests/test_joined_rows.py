"""Shards of text as one batch: the loss and the gradients of two, whatever the architecture, and few sizes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_text import small_text_model
from transformers import Qwen3Config, Qwen3ForCausalLM
from two_ranks import labelled

from sector.engine.config import TrainerConfig
from sector.engine.language.examples import Examples
from sector.engine.models.checkpoint import task_and_layout
from sector.engine.models.ordinary import new_text_model
from sector.engine.models.text import TextModel
from sector.engine.seeding import generator
from sector.engine.training import few_kernels
from sector.engine.training.distill import _gradient_of
from sector.engine.training.few_kernels import why_eager
from sector.engine.training.joined_rows import join
from sector.engine.training.text_rows import TextRows, lay_out


def _smollm3() -> TextModel:
    """A first layer that sees four tokens, and hints."""
    model = new_text_model("text-tiny", 0, {})
    model.learns("addition", "hints", "lsd")
    return model


def _qwen3() -> TextModel:
    """Norms of queries and keys, and heads of two sizes of groups."""
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = small_text_model()
    config = Qwen3Config(**sizes, num_key_value_heads=2, head_dim=16, vocab_size=len(model.tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = Qwen3ForCausalLM(config)
    return TextModel(network, model.tokenizer, "the small qwen3")


def _of_kind(kind: str) -> Callable[[], TextModel]:
    return lambda: small_text_model(kind)


MODELS = pytest.mark.parametrize(
    "make", [_of_kind("llama"), _of_kind("qwen"), _qwen3, _smollm3], ids=["llama", "qwen2", "qwen3", "smollm3"]
)


def _shard(model: TextModel, examples: Examples) -> TextRows:
    return lay_out(examples, task_and_layout(model)[1], generator(1))


def _assert_same(model: TextModel, shard: TextRows) -> None:
    """Loss and gradients of a shard are those of its batch but for rounding, of float32."""
    parameters = list(model.parameters())
    expected = _gradient_of(model, parameters, shard, 0.6)
    found = _gradient_of(model, parameters, join(shard).copied_for(model), 0.6)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(found.flat, expected.flat, rtol=1e-5, atol=3e-6)
    assert found.flat.abs().max() > 0.1


@MODELS
@pytest.mark.parametrize("digits", [1, 2, 6])
def test_loss_and_gradients_are_those_of_two_batches(make: Callable[[], TextModel], digits: int) -> None:
    model = make()
    _assert_same(model, _shard(model, labelled(digits)[:16]))


@pytest.mark.parametrize("mode", ["fast", "slow"])
def test_a_shard_of_one_mode(mode: str) -> None:
    model = _smollm3()
    whole = _shard(model, labelled(4)[:9])
    shard = TextRows(whole.fast, None) if mode == "fast" else TextRows(None, whole.slow)
    assert join(shard).num_fast == (9 if mode == "fast" else 0)
    _assert_same(model, shard)


def test_the_network_is_as_it_was_afterwards() -> None:
    model = _smollm3()
    shard = _shard(model, labelled(3)[:4])
    before = shard.loss(model, 0.5)
    join(shard).copied_for(model).loss(model, 0.5)
    assert torch.equal(shard.loss(model, 0.5), before)
    assert not any("forward" in vars(module) for module in model.modules())
    assert model.config._attn_implementation == "sdpa"


def test_shards_of_plain_text_have_few_sizes() -> None:
    """Prompts without a carry-in are shorter, so that shards of one length differ in what may be supervised."""
    model = small_text_model()
    shards = [_shard(model, labelled(digits)[start::11]) for digits in range(1, 9) for start in range(11)]
    joined = [join(shard) for shard in shards]
    assert len({each.sizes[1:3] for each in joined}) <= 8
    assert all(size % 8 == 0 for each in joined for size in each.sizes[1:3])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"precision": "bfloat16", "average": 0.9}, ""),
        ({"micro_batch": 4}, "micro_batch"),
        ({"recompute": True}, "recompute"),
    ],
    ids=["default", "bfloat16", "micro_batch", "recompute"],
)
def test_settings_that_graphs_do_not_take(changes: dict[str, Any], reason: str) -> None:
    why = why_eager(small_text_model(), TrainerConfig(**changes))
    assert reason in why if reason else not why


def test_models_that_graphs_do_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    config, model = TrainerConfig(), small_text_model()
    assert why_eager(_smollm3(), config) == why_eager(_qwen3(), config) == ""
    monkeypatch.setattr(few_kernels, "_MOST_PARAMETERS", 10_000)
    assert "parameters are more than 10,000" in why_eager(model, config)
    model.config.rope_parameters["rope_type"] = "dynamic"
    assert "dynamic" in why_eager(model, config)
    model.config.model_type = "mamba"
    assert "architecture mamba" in why_eager(model, config)
