"""Gradient checkpointing: the same loss and gradients from less memory."""

import pytest
import torch
from small_text import small_text_model
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer
from two_ranks import labelled

from sector.engine.config import Precision, TrainerConfig, run_config
from sector.engine.errors import InputError
from sector.engine.models.checkpoint import task_and_layout, trained_parameters, weights_sha256
from sector.engine.models.text import TextModel
from sector.engine.seeding import generator
from sector.engine.training.batches import mixed_batches
from sector.engine.training.data_parallel import Gradient
from sector.engine.training.distill import _gradient_of, start_training, train_cycle
from sector.engine.training.precision import working_model
from sector.engine.training.recompute import layers_of, recomputing
from sector.engine.training.text_rows import lay_out

KINDS = pytest.mark.parametrize("kind", ["llama", "qwen"])


def _gradient(model: TextModel) -> tuple[Gradient, int]:
    """Return the gradient of a shard, and the bytes that the forward pass kept for it."""
    shard = lay_out(labelled(6)[:16], task_and_layout(model)[1], generator(1))
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = shard.loss(model, 0.5)
    del loss
    return _gradient_of(model, trained_parameters(model), shard, 0.5), kept


@KINDS
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_loss_and_gradients_are_the_same_to_the_bit_from_less_memory(kind: str, precision: Precision) -> None:
    # Dropout stays off, as it is without.
    model = working_model(small_text_model(kind, num_hidden_layers=6, attention_dropout=0.5), precision).model
    assert isinstance(model, TextModel)
    whole, kept = _gradient(model)
    with recomputing(model):
        again, kept_again = _gradient(model)
    assert torch.equal(again.loss, whole.loss) and torch.equal(again.flat, whole.flat)
    assert kept_again < kept / 2


def test_the_model_is_as_it_was_afterwards() -> None:
    model = small_text_model()
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    with recomputing(model):
        assert layers and all("forward" in vars(layer) for layer in layers)
    assert not any("forward" in vars(layer) for layer in layers)


@KINDS
def test_a_training_ends_with_the_weights_of_one_without(kind: str) -> None:
    batches = mixed_batches([labelled(4)], [labelled(2)], 2, 8, 0.5, seed=5)
    digests = set()
    for checkpointing in (False, True):
        config = TrainerConfig(num_shards=2, warmup_steps=2, recompute=checkpointing)
        model = small_text_model(kind)
        before = weights_sha256(model)
        for _ in train_cycle(start_training(model, config), batches, config, 4, seed=7):
            pass
        digests.add(weights_sha256(model))
        assert before not in digests
    assert len(digests) == 1


def test_it_is_for_models_of_text() -> None:
    with pytest.raises(InputError, match=r"recompute is for models of text; leave it out"):
        run_config({"supervised": {"trainer": {"recompute": True}}})
    with pytest.raises(InputError, match=r"no layer of this architecture supports it; leave it out"):
        layers_of(torch.nn.Linear(2, 2))
