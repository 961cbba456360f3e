"""Decoding steps of text as CUDA graphs, on a simulated GPU: the CPU's tokens, few launches and waits."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from simulated_gpu import GPU, SimulatedGpu, gpu
from small_text import small_text_model
from torch import Tensor

from sector.engine.config import FILTERS
from sector.engine.language.layout import Mode
from sector.engine.language.operands import draw_problems
from sector.engine.models.checkpoint import task_and_layout
from sector.engine.models.ordinary import new_text_model
from sector.engine.models.text import TextModel
from sector.engine.policy.generate import Assignment, blocks_with_room
from sector.engine.samplers import text, text_steps
from sector.engine.samplers.protocol import Branch, Sampling, Savings
from sector.engine.samplers.text import TextSampler
from sector.engine.seeding import generator

__all__ = ["gpu"]

# More than the rows of the smallest graph, so that rows leave a graph for a smaller one.
ROWS = 40


def _smollm3() -> TextModel:
    """A first layer that sees four tokens; larger weights than at the start, so that rows differ."""
    model = new_text_model("text-tiny", 3, {"num_hidden_layers": 2})
    model.learns("addition", "hints", "lsd")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    return model


MODELS = pytest.mark.parametrize(
    "make",
    [lambda: small_text_model("llama", start=True), lambda: small_text_model("qwen"), _smollm3],
    ids=["llama", "qwen2", "smollm3"],
)


def _request(model: TextModel, digits: int, drafts: list[Tensor] | None = None) -> tuple[Tensor, list[Branch]]:
    _, layout = task_and_layout(model)
    problems = draw_problems(digits, ROWS, generator(0, "steps", digits))
    lengths = {Mode.ANSWER: layout.answer_length(digits), Mode.THINK: layout.simplification_length(digits)}
    marks = [layout.mark_ids(mode, ROWS) for mode in lengths]
    given = drafts or [None, None]
    branches = [Branch(*each) for each in zip(marks, lengths.values(), given, strict=True)]
    return layout.prefix_ids(problems), branches


def _sampling(temperature: float = 0.0) -> Sampling:
    return Sampling(temperature, 5, torch.arange(ROWS), stage=0)


def _assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert all(map(torch.equal, found, expected))


@MODELS
def test_tokens_are_the_cpus(gpu: SimulatedGpu, make: Callable[[], TextModel]) -> None:
    """Without drafts, and with drafts that are right up to a point of their own in each row."""
    model = make()
    on_cpu = TextSampler(model, 1)
    with gpu:
        sampler = TextSampler(deepcopy(model).to(GPU))
        for digits in (2, 7):
            prefix, branches = _request(model, digits)
            expected = on_cpu.sample(prefix, branches, _sampling())
            _assert_same(sampler.sample(prefix, branches, _sampling()), expected)
            drafts = [output.clone() for output in expected]
            for row, draft in enumerate(drafts[0]):
                draft[row % len(draft) :] = 0
            _assert_same(sampler.sample(*_request(model, digits, drafts), _sampling()), expected)
    assert gpu.replays > 0


def test_sampling_and_large_batches_are_decoded_launch_by_launch(
    gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_text_model()
    prefix, branches = _request(model, 3)
    on_cpu = TextSampler(model, 1)
    warm, greedy = (on_cpu.sample(prefix, branches, _sampling(temperature)) for temperature in (0.7, 0.0))
    with gpu:
        sampler = TextSampler(deepcopy(model).to(GPU))
        _assert_same(sampler.sample(prefix, branches, _sampling(0.7)), warm)
        monkeypatch.setattr(text_steps, "MOST_BYTES", 1000)
        _assert_same(sampler.sample(prefix, branches, _sampling()), greedy)
        plain = TextSampler(deepcopy(model).to(GPU), savings=Savings(compiled=False))
        _assert_same(plain.sample(prefix, branches, _sampling()), greedy)
    assert not gpu.replays


def test_several_blocks_are_solved_together_on_a_gpu_alone(gpu: SimulatedGpu) -> None:
    model = small_text_model()
    task, layout = task_and_layout(model)
    assignment = Assignment(task, layout, 5, 1000, FILTERS["strict"], seed=0, hard_share=0.5)
    assert blocks_with_room(TextSampler(model, 1), assignment) == 1
    with gpu:
        assert blocks_with_room(TextSampler(deepcopy(model).to(GPU)), assignment) == 4


@pytest.mark.parametrize("drop", [True, False])
def test_graphs_outlive_new_weights(gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch, drop: bool) -> None:
    captures = 0
    make_capture = text.CudaCapture

    def counted(device: torch.device) -> Callable[..., Callable[[], object]]:
        def capture(run: Callable[[], None]) -> Callable[[], object]:
            nonlocal captures
            captures += 1
            return make_capture(device)(run)

        return capture

    monkeypatch.setattr(text, "CudaCapture", counted)
    first, second = small_text_model(seed=1), small_text_model(seed=2)
    prefix, branches = _request(first, 6)
    expected = [TextSampler(model, 1).sample(prefix, branches, _sampling()) for model in (first, second)]
    assert not torch.equal(expected[0][0], expected[1][0])
    with gpu:
        sampler = TextSampler(deepcopy(first).to(GPU), savings=Savings(drop_finished=drop))
        _assert_same(sampler.sample(prefix, branches, _sampling()), expected[0])
        before = captures
        # Of 64 rows, and of 16 or 32 where rows leave.
        assert before > 1 if drop else before == 1
        sampler.load(deepcopy(second).to(GPU))
        _assert_same(sampler.sample(prefix, branches, _sampling()), expected[1])
        sampler.load(deepcopy(first).to(GPU))
        gpu.reset()
        _assert_same(sampler.sample(prefix, branches, _sampling()), expected[0])
    assert captures <= before + 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@MODELS
def test_a_gpu_decodes_text_like_a_cpu(make: Callable[[], TextModel]) -> None:
    """Logits closer than rounding are ties, so a few rows may differ."""
    model = make()
    sampler, on_cpu = TextSampler(deepcopy(model).cuda()), TextSampler(model)
    for digits in (2, 7, 20, 7):
        prefix, branches = _request(model, digits)
        for found, expected in zip(
            sampler.sample(prefix, branches, _sampling()), on_cpu.sample(prefix, branches, _sampling()), strict=True
        ):
            assert (found == expected).all(dim=1).float().mean() >= 0.9
