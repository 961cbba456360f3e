"""Training in bfloat16: what is bfloat16 and what float32, the loss curve beside that of float32, and resuming."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from simulated_gpu import GPU, SimulatedGpu, gpu
from small_text import small_text_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trained import trained
from two_ranks import curve, curves_of_two

from sector.engine.config import Precision, TrainerConfig
from sector.engine.language.examples import Examples
from sector.engine.language.operands import draw_problems
from sector.engine.models import loss as losses
from sector.engine.models.checkpoint import Model, weights_sha256
from sector.engine.models.loss import IGNORED, token_loss
from sector.engine.models.sector import new_model
from sector.engine.seeding import generator
from sector.engine.training import distill
from sector.engine.training.batches import mixed_batches
from sector.engine.training.distill import _gradient_of, start_training, train_cycle
from sector.engine.training.laid_out_steps import _lay_out
from sector.engine.training.precision import working_model
from sector.engine.training.supervised import label

__all__ = ["gpu"]

BFLOAT16 = TrainerConfig(num_shards=2, shard_rows=8, warmup_steps=2, precision="bfloat16")
# Nats by which a loss in bfloat16 may differ from that in float32 at any of 120 steps; on average a third of it.
TOLERANCE = 0.01
# The same for a text model, at the learning rate of pretrained models.
TEXT_TOLERANCE, TEXT_RATE = 0.04, 2e-4


def _examples(digits: int, count: int) -> Examples:
    return label(draw_problems(digits, count, generator(0, "precision", digits), hard_share=0.3))


def _trained(
    model: Model, steps: int, config: TrainerConfig = BFLOAT16, stop: int | None = None
) -> tuple[list[float], dict[str, Tensor]]:
    """Train a copy; return losses and state. `stop`: a step at which the training is saved, and resumed elsewhere."""
    batches = mixed_batches([_examples(4, 50)], [_examples(2, 50)], 2, 8, 0.5, seed=5)
    return trained(model, config, batches, steps, stop)


def _with(precision: Precision, learning_rate: float = BFLOAT16.learning_rate) -> TrainerConfig:
    return BFLOAT16.model_copy(update={"precision": precision, "learning_rate": learning_rate})


def _native() -> Model:
    return new_model("tiny", 0)


def _llama() -> Model:
    return small_text_model("llama")


MODELS = pytest.mark.parametrize("make", [_native, _llama], ids=["native", "llama"])


@pytest.mark.parametrize(
    ("make", "rate", "tolerance"),
    [(_native, BFLOAT16.learning_rate, TOLERANCE), (_llama, TEXT_RATE, TEXT_TOLERANCE)],
    ids=["native", "llama"],
)
def test_the_loss_curve_is_that_of_float32(make: Callable[[], Model], rate: float, tolerance: float) -> None:
    plain, narrow = (torch.tensor(_trained(make(), 120, _with(name, rate))[0]) for name in ("float32", "bfloat16"))
    assert plain[-10:].mean() < 0.8 * plain[:10].mean(), "nothing was learned"
    difference = (plain - narrow).abs()
    assert 0 < difference.max() < tolerance, difference
    assert difference.mean() < tolerance / 3


class _Watch(TorchDispatchMode):
    """Dtypes of matrix products, and the largest float32 tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.products: set[torch.dtype] = set()
        self.widest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        floats = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        if func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm"):
            self.products |= {leaf.dtype for leaf in floats}
        self.widest = max([self.widest, *(leaf.numel() for leaf in floats if leaf.dtype == torch.float32)])
        return result


@pytest.mark.parametrize("digits", [3, 20], ids=["one piece", "long"])
def test_all_products_are_bfloat16_and_no_state_is_float32(digits: int) -> None:
    model = new_model("tiny", 0)
    working = working_model(model, "bfloat16").model
    shard = _lay_out(working, _examples(digits, 32), BFLOAT16, generator(1))
    with _Watch() as watch:
        gradient = _gradient_of(working, list(working.parameters()), shard, 0.5)
    assert watch.products == {torch.bfloat16}
    assert gradient.flat.dtype == gradient.loss.dtype == torch.float32
    # The gradient of all parameters and the angles are float32; states, and all that is larger, are not.
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    states = shard.num_tokens * model.config.hidden_size
    assert watch.widest <= max(num_parameters, states // 4), (watch.widest, states)
    with _Watch() as watch:
        _gradient_of(model, list(model.parameters()), shard, 0.5)
    assert watch.products == {torch.float32} and watch.widest >= states


@pytest.mark.parametrize("kind", ["llama", "qwen"])
def test_a_text_model_multiplies_in_bfloat16_with_exact_angles(kind: str) -> None:
    model = small_text_model(kind)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    working = working_model(model, "bfloat16").model
    shard = _lay_out(working, _examples(3, 8), BFLOAT16, generator(1))
    with _Watch() as watch:
        gradient = _gradient_of(working, list(working.parameters()), shard, 0.5)
    assert torch.bfloat16 in watch.products and gradient.flat.dtype == torch.float32
    assert {parameter.dtype for parameter in working.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert before and all(torch.equal(buffer, before[name]) for name, buffer in working.named_buffers())


def test_gradients_are_those_of_float32_but_for_rounding() -> None:
    model = new_model("tiny", 0)
    working = working_model(model, "bfloat16").model
    for digits in (3, 20):
        shard = _lay_out(model, _examples(digits, 32), BFLOAT16, generator(1))
        plain, narrow = (_gradient_of(some, list(some.parameters()), shard, 0.5) for some in (model, working))
        sizes = [parameter.numel() for parameter in model.parameters()]
        for (name, _), wide, other in zip(
            model.named_parameters(), plain.flat.split(sizes), narrow.flat.split(sizes), strict=True
        ):
            assert torch.cosine_similarity(wide, other, dim=0) > 0.999, name
            assert abs(other.norm() / wide.norm() - 1) < 0.02, name


@MODELS
def test_weights_and_moments_stay_float32_and_a_resumed_training_ends_with_the_same_bits(
    make: Callable[[], Model],
) -> None:
    curve, whole = _trained(make(), 16)
    assert {tensor.dtype for tensor in whole.values()} == {torch.float32}
    resumed, other = _trained(make(), 16, stop=7)
    assert resumed == curve and whole.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in whole.items())


def test_a_copy_serves_the_next_cycle_with_the_weights_of_then() -> None:
    model = new_model("tiny", 0)
    first = working_model(model, "bfloat16")
    with torch.no_grad():
        model.embed.weight.mul_(2)
    second = working_model(model, "bfloat16")
    assert second.model is first.model
    assert torch.equal(second.model.embed.weight, model.embed.weight.bfloat16())
    assert working_model(model, "float32").model is model


@pytest.mark.parametrize("cores", [1, 2, 8], ids="cores{}".format)
def test_training_does_not_depend_on_cores(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = _trained(new_model("tiny", 0), 6)
    monkeypatch.setattr(distill, "num_cores", lambda: cores)
    assert _trained(new_model("tiny", 0), 6)[0] == expected


def test_two_processes_have_the_loss_curve_of_one() -> None:
    alone = curve(3, precision="bfloat16")
    assert curves_of_two([3], "bfloat16") == [[alone]] * 2
    assert alone != curve(3)


def test_the_loss_of_bfloat16_is_computed_in_chunks_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_CHUNK", 7 * 50)
    logits = torch.randn(40, 50, generator=generator(3)).bfloat16()
    targets = torch.randint(50, (40,), generator=generator(4)).masked_fill(torch.arange(40) % 3 == 0, IGNORED)
    narrow, wide = logits.clone().requires_grad_(), logits.float().requires_grad_()
    with _Watch() as watch:
        found = token_loss(narrow, targets)
    expected = F.cross_entropy(wide, targets, ignore_index=IGNORED)
    assert watch.widest == 7 * 50 and found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    (2 * found).backward()
    (2 * expected).backward()
    assert narrow.grad is not None and wide.grad is not None
    torch.testing.assert_close(narrow.grad.float(), wide.grad, rtol=2**-7, atol=1e-6)
    assert token_loss(wide, targets).equal(expected)


def test_impossible_classes_have_no_gradient() -> None:
    logits = torch.tensor([[1.0, float("-inf"), 2.0]], dtype=torch.bfloat16, requires_grad=True)
    token_loss(logits, torch.tensor([2])).backward()
    assert logits.grad is not None
    assert logits.grad[0, 1] == 0 and logits.grad.isfinite().all() and logits.grad[0, 0] > 0


def test_a_simulated_gpu_trains_like_the_cpu(gpu: SimulatedGpu) -> None:
    """A step is a graph for each shard and one for the update, which takes the weights over into the copy."""
    expected, _ = _trained(new_model("tiny", 0), 6)
    model = new_model("tiny", 0)
    with gpu:
        for parameter in model.parameters():
            gpu.put(parameter.data)
        batches = mixed_batches([_examples(4, 50)], [_examples(2, 50)], 2, 8, 0.5, seed=5)
        state = start_training(model, BFLOAT16)
        assert model.device == GPU
        curve = [loss for _, loss in train_cycle(state, batches, BFLOAT16, 6, seed=7)]
    assert gpu.replays >= 3 * 5
    torch.testing.assert_close(torch.tensor(curve), torch.tensor(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_has_the_loss_curve_of_float32_on_the_cpu() -> None:
    model = new_model("tiny", 0)
    plain = torch.tensor(_trained(model, 120, _with("float32"))[0])
    narrow = torch.tensor(_trained(model.to("cuda"), 120)[0])
    assert (plain - narrow).abs().max() < TOLERANCE


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@MODELS
def test_a_gpu_trains_to_the_same_bits_again_and_after_a_stop(make: Callable[[], Model]) -> None:
    model = make().to("cuda")
    _, whole = _trained(model, 20)
    for stop in (None, 9):
        _, other = _trained(model, 20, stop=stop)
        assert all(torch.equal(tensor, other[name]) for name, tensor in whole.items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_multiplies_in_bfloat16() -> None:
    model = new_model("tiny", 0).to("cuda")
    before = weights_sha256(model)
    working = working_model(model, "bfloat16").model
    shard = _lay_out(working, _examples(20, 32), BFLOAT16, generator(1))
    graphs = distill.graphed_gradients(working, 0.5)
    gradient = graphs.gradient_of(working, shard)
    on_cpu = new_model("tiny", 0)
    expected = _gradient_of(on_cpu, list(on_cpu.parameters()), shard, 0.5)
    assert gradient.flat.dtype == torch.float32 and weights_sha256(model) == before
    assert torch.cosine_similarity(gradient.flat.cpu(), expected.flat, dim=0) > 0.999
