"""Training steps as CUDA graphs: the values of plain steps. Without a GPU a capture is the work itself, run again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from trained import trained

from sector.engine.config import TrainerConfig
from sector.engine.language.examples import Examples
from sector.engine.language.operands import draw_problems
from sector.engine.language.place_ids import DigitOrder
from sector.engine.models.sector import SectorForCausalLM, new_model
from sector.engine.samplers.cuda_graphs import CudaLanes
from sector.engine.seeding import generator
from sector.engine.training.batches import mixed_batches
from sector.engine.training.distill import _gradient_of
from sector.engine.training.graphs import GraphedGradients, GraphedUpdate, graphed_gradients
from sector.engine.training.muon import Muon
from sector.engine.training.place_rows import Rows, lay_out
from sector.engine.training.supervised import label

CONFIG = TrainerConfig(num_shards=4, shard_rows=8, warmup_steps=2)


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


class _Lanes:
    """Two lanes that write down what happens on them."""

    def __init__(self) -> None:
        self.captured: list[int] = []
        self.used: list[int | str] = []
        self._lane: int | None = None

    def __len__(self) -> int:
        return 2

    def capture(self, lane: int, run: Callable[[], None]) -> Callable[[], object]:
        self.captured.append(lane)

        def replay() -> None:
            assert self._lane == lane, "a graph runs on the lane whose memory it uses"
            run()

        return replay

    @contextmanager
    def on(self, lane: int) -> Iterator[None]:
        self.used.append(lane)
        self._lane = lane
        yield
        self._lane = None

    def join(self) -> None:
        self.used.append("join")


def test_a_graph_serves_all_shards_of_its_shape() -> None:
    model, lanes = new_model("tiny", 0), _Lanes()
    shards = _shards()
    gradients = GraphedGradients(model, CONFIG.fast_weight, lanes).gradients(model, shards)
    for shard, gradient in zip(shards, gradients, strict=True):
        expected = _gradient_of(model, list(model.parameters()), shard, CONFIG.fast_weight)
        assert torch.equal(gradient.flat, expected.flat) and torch.equal(gradient.loss, expected.loss)
    assert lanes.captured == [0, 1] and lanes.used == [0, 1, 0, 1, "join"]


def test_a_gradient_outlives_the_next_replay() -> None:
    model = new_model("tiny", 0)
    graphs = GraphedGradients(model, CONFIG.fast_weight, _Lanes())
    first, _, second, _ = _shards()
    [gradient] = graphs.gradients(model, [first])
    before = gradient.flat.clone()
    [other] = graphs.gradients(model, [second])
    assert not torch.equal(other.flat, before)
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


def _trained(model: SectorForCausalLM, steps: int, stop: int | None = None) -> tuple[list[float], dict[str, Tensor]]:
    """Train a copy; return losses and state. `stop`: a step at which the training is saved, and resumed elsewhere."""
    batches = mixed_batches([_examples(4, 50), _examples(3, 50)], [_examples(2, 50)], 4, 8, 0.5, seed=5)
    return trained(model, CONFIG, batches, steps, stop)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_like_a_cpu() -> None:
    model = new_model("tiny", 0)
    on_cpu, _ = _trained(model, 30)
    on_gpu, _ = _trained(model.to("cuda"), 30)
    # Rounding differs, and grows from step to step.
    torch.testing.assert_close(torch.tensor(on_gpu[:10]), torch.tensor(on_cpu[:10]), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(torch.tensor(on_gpu), torch.tensor(on_cpu), rtol=5e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_to_the_same_bits_again_and_after_a_stop() -> None:
    model = new_model("tiny", 0).to("cuda")
    _, whole = _trained(model, 20)
    for stop in (None, 9):
        _, other = _trained(model, 20, stop)
        assert all(torch.equal(tensor, other[name]) for name, tensor in whole.items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_outlive_a_cycle() -> None:
    model = new_model("tiny", 0).to("cuda")
    shard = _shards()[0]
    first = graphed_gradients(model, 0.5)
    first.gradients(model, [shard])
    assert graphed_gradients(model, 0.5) is first and len(first._graphs) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_lanes_compute_what_one_lane_computes() -> None:
    model = new_model("tiny", 0).to("cuda")
    shards = [shard for _ in range(10) for shard in _shards()]
    alone = [
        gradient
        for graphs in [GraphedGradients(model, 0.5, CudaLanes(model.device, 1))]
        for shard in shards
        for gradient in graphs.gradients(model, [shard])
    ]
    beside = GraphedGradients(model, 0.5, CudaLanes(model.device, 8)).gradients(model, shards)
    for gradient, expected in zip(beside, alone, strict=True):
        assert torch.equal(gradient.flat, expected.flat) and torch.equal(gradient.loss, expected.loss)
