"""The moving average of weights: its values, its place after a cycle, and resuming."""

from copy import deepcopy
from itertools import islice

import pytest
import torch
from small_text import small_text_model
from torch import Tensor
from two_ranks import labelled

from sector.engine.config import TrainerConfig
from sector.engine.models.checkpoint import Model, trained_parameters
from sector.engine.models.sector import new_model
from sector.engine.training.batches import mixed_batches
from sector.engine.training.distill import (
    TrainState,
    restore,
    start_training,
    state_tensors,
    train_cycle,
)

MODELS = pytest.mark.parametrize(
    "model", [new_model("tiny", 0), small_text_model()], ids=["native", "llama"]
)  # fmt: skip
STEPS, DECAY = 14, 0.6


def _config(average: float = DECAY, precision: str = "float32") -> TrainerConfig:
    given = {"num_shards": 2, "shard_rows": 8, "warmup_steps": 2, "learning_rate": 1e-3}
    return TrainerConfig.model_validate({**given, "average": average, "precision": precision})


def _training(state: TrainState, config: TrainerConfig):
    batches = mixed_batches([labelled(4)], [labelled(2)], 2, 8, 0.5, seed=5)
    return train_cycle(state, batches, config, STEPS, seed=7)


def _flat(model: Model) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trained_parameters(model)])


@MODELS
def test_the_average_takes_the_place_of_the_weights_at_the_end_of_a_cycle(model: Model) -> None:
    plain = start_training(deepcopy(model), _config(0.0))
    expected, last = _flat(model).double(), torch.empty(0)
    for step, _ in _training(plain, _config(0.0)):
        last = _flat(plain.model)
        decay = min(DECAY, step / (step + 9))
        expected = decay * expected + (1 - decay) * last.double()
    state = start_training(deepcopy(model), _config())
    for step, _ in _training(state, _config()):
        if step == STEPS:
            # Until then the optimizer goes on from its own weights.
            assert torch.equal(_flat(state.model), last)
    torch.testing.assert_close(_flat(state.model).double(), expected, rtol=1e-4, atol=1e-6)
    assert (_flat(state.model) - last).abs().max() > 1e-4


@MODELS
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stop", [0, 5, STEPS], ids=["at once", "midway", "at the end"])
def test_a_resumed_training_ends_with_the_same_bits(model: Model, stop: int, precision: str) -> None:
    config = _config(precision=precision)
    whole = start_training(deepcopy(model), config)
    for _ in _training(whole, config):
        pass
    state = start_training(deepcopy(model), config)
    for _ in islice(_training(state, config), stop):
        pass
    saved = {name: tensor.clone() for name, tensor in state_tensors(state).items()}
    other = start_training(deepcopy(model), config)
    with torch.no_grad():
        # All weights come from the snapshot.
        for parameter in [*trained_parameters(other.model), *(other.average or [])]:
            parameter.zero_()
    restore(other, saved, stop)
    for _ in _training(other, config):
        pass
    for name, tensor in whole.model.weights().items():
        assert torch.equal(tensor, other.model.weights()[name]), name


def test_without_it_a_snapshot_has_no_average() -> None:
    names = state_tensors(start_training(new_model("tiny", 0), _config(0.0))).keys()
    assert not any(name.startswith("average.") for name in names)
