"""Training steps as CUDA graphs: the values of plain steps. Without a GPU a capture is the work itself, run again."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from simulated_gpu import GPU, SimulatedGpu, gpu
from small_text import small_text_model
from torch import Tensor
from trained import trained

from sector.engine.config import Precision, TrainerConfig
from sector.engine.language.examples import Examples
from sector.engine.language.operands import draw_problems
from sector.engine.language.place_ids import DigitOrder
from sector.engine.language.rows import move
from sector.engine.models.adapter import AdaptedModel
from sector.engine.models.checkpoint import Model, task_and_layout, trained_parameters
from sector.engine.models.ordinary import new_text_model
from sector.engine.models.sector import new_model
from sector.engine.models.text import TextModel
from sector.engine.samplers.cuda_graphs import CudaCapture
from sector.engine.seeding import generator
from sector.engine.training import text_rows
from sector.engine.training.batches import mixed_batches
from sector.engine.training.distill import _gradient_of, start_training, train_cycle
from sector.engine.training.graphs import GraphedGradients, GraphedUpdate, graphed_gradients
from sector.engine.training.joined_rows import join
from sector.engine.training.muon import Muon
from sector.engine.training.place_rows import Rows, lay_out
from sector.engine.training.precision import working_model
from sector.engine.training.supervised import label

__all__ = ["gpu"]

CONFIG = TrainerConfig(num_shards=4, shard_rows=8, warmup_steps=2)
# Rates of the presets of text.
TEXT = TrainerConfig(
    num_shards=4, shard_rows=8, warmup_steps=2, optimizer="muon", learning_rate=1.5e-3, muon_learning_rate=6e-3
)


def _examples(digits: int, count: int) -> Examples:
    return label(draw_problems(digits, count, generator(0, digits), hard_share=0.5))


def _shards() -> list[Rows]:
    """Two shapes, each twice, with other values."""
    return [
        lay_out(_examples(digits, 8), DigitOrder.MSD, CONFIG, generator(digits, turn))
        for turn in range(2)
        for digits in (2, 5)
    ]


class _Repeated:
    """A capture that counts: it runs the work at once, and its replay runs it again."""

    def __init__(self) -> None:
        self.captures = 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], object]:
        self.captures += 1
        return run


def test_a_graph_serves_all_shards_of_its_shape() -> None:
    model, capture = new_model("tiny", 0), _Repeated()
    graphs = GraphedGradients(model, CONFIG.fast_weight, capture)
    for shard in _shards():
        expected = _gradient_of(model, list(model.parameters()), shard, CONFIG.fast_weight)
        gradient = graphs.gradient_of(model, shard)
        assert torch.equal(gradient.flat, expected.flat) and torch.equal(gradient.loss, expected.loss)
    assert capture.captures == 2


def test_a_gradient_outlives_the_next_replay() -> None:
    model = new_model("tiny", 0)
    graphs = GraphedGradients(model, CONFIG.fast_weight, _Repeated())
    first, _, second, _ = _shards()
    gradient = graphs.gradient_of(model, first)
    before = gradient.flat.clone()
    assert not torch.equal(graphs.gradient_of(model, second).flat, before)
    assert torch.equal(gradient.flat, before)


def test_updates_start_uncaptured_and_follow_the_rate() -> None:
    parameters = [torch.randn(6, 4, generator=generator(1)), torch.randn(4, 9, generator=generator(2))]
    plain, graphed = ([torch.nn.Parameter(parameter.clone()) for parameter in parameters] for _ in range(2))
    rate = torch.tensor(0.0)
    plain_muon, graphed_muon = Muon(plain, lr=0.0, weight_decay=0.1), Muon(graphed, lr=rate, weight_decay=0.1)
    capture = _Repeated()
    update = GraphedUpdate([graphed_muon], capture)
    for step in range(4):
        for parameter, other in zip(plain, graphed, strict=True):
            gradient = torch.randn(parameter.shape, generator=generator(3, step))
            if step == 0:
                parameter.grad, other.grad = gradient.clone(), gradient.clone()
            for filled in (parameter, other):
                assert filled.grad is not None
                filled.grad.copy_(gradient)
        plain_muon.param_groups[0]["lr"] = 0.1 / (1 + step)
        rate.fill_(0.1 / (1 + step))
        plain_muon.step()
        update.step()
    assert capture.captures == 1
    for parameter, other in zip(plain, graphed, strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-5, atol=1e-6)


def _text_model() -> TextModel:
    model = new_text_model("text-tiny", 0, {})
    model.learns("addition", "hints", "lsd")
    return model


def test_a_graph_serves_all_shards_of_text_of_its_sizes() -> None:
    model, capture = _text_model(), _Repeated()
    layout, parameters = task_and_layout(model)[1], list(model.parameters())
    graphs = GraphedGradients(model, CONFIG.fast_weight, capture)
    for turn in range(2):
        for digits in (2, 5):
            shard = text_rows.lay_out(_examples(digits, 8), layout, generator(digits, turn))
            expected = _gradient_of(model, parameters, shard, CONFIG.fast_weight)
            gradient = graphs.gradient_of(model, join(shard))
            torch.testing.assert_close(gradient.loss, expected.loss, rtol=1e-6, atol=0.0)
            torch.testing.assert_close(gradient.flat, expected.flat, rtol=1e-5, atol=1e-6)
    assert capture.captures == 2


def _text_losses(model: TextModel, config: TrainerConfig, steps: int) -> Iterator[float]:
    """Train on the same shards in each step, two of them of equal length."""
    shards = [_examples(digits, 8) for digits in (1, 3, 3, 6)]
    for _, loss in train_cycle(start_training(model, config), lambda _: shards, config, steps, 0):
        yield loss


def test_a_step_of_text_is_a_graph_a_shard_and_one_for_the_update(gpu: SimulatedGpu) -> None:
    """Without graphs it is some thousand launches."""
    expected = list(_text_losses(_text_model(), TEXT, 4))
    with gpu:
        training = _text_losses(_text_model().to(GPU), TEXT, 4)
        losses = [next(training), next(training)]
        gpu.reset()
        losses.append(next(training))
        counts = gpu.replays, gpu.launches.total(), gpu.waits.total()
        losses.append(next(training))
    assert counts == (5, 20, 2), (gpu.launches, gpu.waits)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0.0)


def _adapted() -> TextModel:
    pytest.importorskip("peft")
    return AdaptedModel(small_text_model("qwen"), 4, (), 0, Path("base"))


@pytest.mark.parametrize(
    ("make", "setting", "share"),
    [
        (small_text_model, {"average": 0.9}, 1e-5),
        (small_text_model, {"precision": "bfloat16"}, 5e-3),
        (_adapted, {"optimizer": "adamw"}, 1e-5),
    ],
    ids=["average", "bfloat16", "lora"],
)
def test_settings_that_graphs_take(
    gpu: SimulatedGpu, make: Callable[[], TextModel], setting: dict[str, Any], share: float
) -> None:
    config = TrainerConfig(**TEXT.model_dump() | setting)
    expected = list(_text_losses(make(), config, 4))
    with gpu:
        losses = list(_text_losses(make().to(GPU), config, 4))
    # Four shards a step. The first update is no graph, and the second is captured.
    assert gpu.replays == 4 * 4 + 2
    torch.testing.assert_close(losses, expected, rtol=share, atol=0.0)


@pytest.mark.parametrize("setting", [{"micro_batch": 3}, {"recompute": True}], ids=["micro_batch", "recompute"])
def test_text_that_graphs_do_not_take_trains_as_well(gpu: SimulatedGpu, setting: dict[str, Any]) -> None:
    config = TrainerConfig(**TEXT.model_dump() | setting)
    expected = list(_text_losses(_text_model(), config, 3))
    with gpu:
        losses = list(_text_losses(_text_model().to(GPU), config, 3))
    # The update is a graph in any case, but for the first step; the second captures it.
    assert gpu.replays == 1
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0.0)


def _trained(model: Model, steps: int, stop: int | None = None) -> tuple[list[float], dict[str, Tensor]]:
    """Train a copy; return losses and state. `stop`: a step at which the training is saved, and resumed elsewhere."""
    if isinstance(model, TextModel):
        # Longer than what a fused attention adds up in one piece.
        batches = mixed_batches([_examples(17, 50), _examples(3, 50)], [_examples(2, 50)], 4, 8, 0.5, seed=5)
        return trained(model, TEXT, batches, steps, stop)
    batches = mixed_batches([_examples(4, 50), _examples(3, 50)], [_examples(2, 50)], 4, 8, 0.5, seed=5)
    return trained(model, CONFIG, batches, steps, stop)


MODELS = pytest.mark.parametrize("make", [lambda: new_model("tiny", 0), _text_model], ids=["tiny", "text"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@MODELS
def test_a_gpu_trains_like_a_cpu(make: Callable[[], Model]) -> None:
    model = make()
    on_cpu, _ = _trained(model, 30)
    on_gpu, _ = _trained(model.to("cuda"), 30)
    # Rounding differs, and grows from step to step.
    torch.testing.assert_close(torch.tensor(on_gpu[:10]), torch.tensor(on_cpu[:10]), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(torch.tensor(on_gpu), torch.tensor(on_cpu), rtol=5e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@MODELS
def test_a_gpu_trains_to_the_same_bits_again_and_after_a_stop(make: Callable[[], Model]) -> None:
    model = make().to("cuda")
    _, whole = _trained(model, 20)
    for stop in (None, 9):
        _, other = _trained(model, 20, stop)
        assert all(torch.equal(tensor, other[name]) for name, tensor in whole.items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_graph_of_text_has_the_gradient_of_an_eager_shard(precision: Precision) -> None:
    model = working_model(_text_model().to("cuda"), precision).model
    graphs = graphed_gradients(model, 0.5)
    for digits in (1, 6, 17):
        shard = text_rows.lay_out(_examples(digits, 16), task_and_layout(model)[1], generator(digits))
        expected = _gradient_of(model, trained_parameters(model), move(shard, model.device), 0.5)
        gradient = graphs.gradient_of(model, join(shard))
        # bfloat16 keeps eight bits, and the sums of a gradient are of values of both signs.
        share = 2e-2 if precision == "bfloat16" else 1e-4
        assert (gradient.loss - expected.loss).abs() <= share
        assert (gradient.flat - expected.flat).norm() <= 5 * share * expected.flat.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_outlive_a_cycle() -> None:
    model = new_model("tiny", 0).to("cuda")
    shard = _shards()[0]
    first = graphed_gradients(model, 0.5)
    first.gradient_of(model, shard)
    assert graphed_gradients(model, 0.5) is first and len(first._graphs) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_capture_follows_one_whose_graphs_are_gone() -> None:
    capture, numbers = CudaCapture(torch.device("cuda", 0)), torch.zeros(4, device="cuda")
    for _ in range(3):
        replay = capture(lambda: numbers.add_(1))
        replay()
        del replay
        gc.collect()
    # Two warm-ups and a replay each.
    assert numbers.tolist() == [9.0] * 4
