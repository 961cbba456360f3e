"""Engines with models of text: vLLM against transformers' own `generate`, token for token; weights proven; refusals."""

import sys
from copy import copy
from dataclasses import replace
from inspect import signature
from typing import Any

import pytest
import torch
from corrupted import Corruption, assert_caught
from drawn import assert_drawn_from
from small_text import small_text_model
from torch import Tensor
from transformers import BloomConfig, BloomForCausalLM, MambaConfig, MambaForCausalLM

from sector.engine.config import VllmConfig
from sector.engine.errors import InputError
from sector.engine.language.layout import Mode
from sector.engine.language.operands import draw_problems
from sector.engine.models.checkpoint import task_and_layout, weights_sha256
from sector.engine.models.ordinary import new_text_model
from sector.engine.models.text import TextModel
from sector.engine.samplers import make_sampler
from sector.engine.samplers.hf import HuggingFaceSampler
from sector.engine.samplers.protocol import Branch, Sampler, Sampling, Savings
from sector.engine.samplers.text import TextSampler
from sector.engine.samplers.vllm.sampler import VllmSampler

ROWS = 9
SAVINGS: list[dict[str, bool]] = [{}, {"drafts": False}, {"drop_finished": False}, {"shared_prefix": False}]
SETTINGS = VllmConfig(rows=64, memory_mib=64, max_digits=20)
needs_vllm = pytest.mark.skipif(sys.platform != "linux", reason="vLLM is for Linux")


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def model(request: pytest.FixtureRequest) -> TextModel:
    return small_text_model(request.param, start=request.param == "llama")


@pytest.fixture(scope="module")
def vllm(model: TextModel) -> VllmSampler:
    return VllmSampler(model, SETTINGS)


def _sample(
    sampler: Sampler,
    model: TextModel,
    digits: int,
    temperature: float = 0.0,
    drafts: list[list[list[int]]] | None = None,
) -> list[list[list[int]]]:
    """Ids of answers and of simplifications; problems with a carry-in and without, so prompts differ in length."""
    _, layout = task_and_layout(model)
    problems = draw_problems(digits, ROWS, torch.Generator().manual_seed(digits))
    assert 0 < int(problems.carry.sum()) < ROWS
    branches = [
        Branch(layout.mark_ids(Mode.ANSWER, ROWS), layout.answer_length(digits)),
        Branch(layout.mark_ids(Mode.THINK, ROWS), layout.simplification_length(digits)),
    ]
    if drafts is not None:
        branches = [replace(branch, draft=torch.tensor(draft)) for branch, draft in zip(branches, drafts, strict=True)]
    sampling = Sampling(temperature, 5, torch.arange(ROWS), stage=2)
    return [ids.tolist() for ids in sampler.sample(layout.prefix_ids(problems), branches, sampling)]


@torch.no_grad()
def test_a_row_is_completed_as_if_it_stood_alone(model: TextModel) -> None:
    """Padding in front of shorter prompts changes nothing, and generating stops at a newline."""
    _, layout = task_and_layout(model)
    problems = draw_problems(4, ROWS, torch.Generator().manual_seed(4))
    _, thoughts = _sample(HuggingFaceSampler(model), model, 4)
    ended = 0
    for row, prompt in zip(thoughts, layout.prompt_ids(problems, Mode.THINK).tolist(), strict=True):
        ids = [index for index in prompt if index != layout.pad_id]
        for index in row:
            assert index == int(model(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(index)
            if index in model.alphabet.ends:
                ended += 1
                break
        assert set(row[len(ids) - sum(each != layout.pad_id for each in prompt) :]) <= {layout.pad_id}
    assert ended < ROWS, "some rows run on"


def test_samples_follow_the_softmax(model: TextModel) -> None:
    count, temperature = 1000, 2.0
    _, layout = task_and_layout(model)
    problems = draw_problems(3, 1, torch.Generator().manual_seed(1))
    prefix, mark = layout.prefix_ids(problems), layout.mark_ids(Mode.ANSWER, count)
    with torch.no_grad():
        ids = torch.cat([prefix, mark[:1]], dim=1)
        logits = model(ids[ids != layout.pad_id].unsqueeze(0)).logits[0, -1]
    sampling = Sampling(temperature, 5, torch.arange(count), stage=0)
    drawn = HuggingFaceSampler(model).sample(prefix.expand(count, -1), [Branch(mark, 1)], sampling)[0]
    assert_drawn_from((logits / temperature).softmax(dim=0), drawn)


def test_the_engine_keeps_its_own_weights(model: TextModel) -> None:
    sampler = HuggingFaceSampler(model)
    before, digest = _sample(sampler, model, 3), weights_sha256(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1)
        try:
            assert _sample(sampler, model, 3) == before and sampler.weights_sha256 == digest
            assert _sample(HuggingFaceSampler(model), model, 3) != before
        finally:
            for parameter in model.parameters():
                parameter.mul_(-1)


@pytest.mark.parametrize("savings", SAVINGS, ids=lambda savings: ",".join(savings) or "all")
@pytest.mark.parametrize("temperature", [0.0, 0.7], ids="temperature{}".format)
def test_native_writes_what_transformers_writes(model: TextModel, savings: dict[str, bool], temperature: float) -> None:
    """With drafts that are right, wrong in the middle, and none; whichever savings are on."""
    native, hf = TextSampler(model, 2, Savings(**savings)), HuggingFaceSampler(model)
    for digits in (2, 9, 20):
        plain = _sample(hf, model, digits, temperature)
        assert _sample(native, model, digits, temperature) == plain
        half_wrong = [[ids[:3] + ids[:-3] if row % 2 else ids for row, ids in enumerate(branch)] for branch in plain]
        for drafts in (plain, half_wrong):
            assert _sample(native, model, digits, temperature, drafts) == plain


def test_a_draft_saves_passes(model: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[tuple[int, ...]] = []
    native = TextSampler(model, 1)
    forward = native._network.forward

    def counted(*, input_ids: Tensor, **arguments: Any) -> Any:
        passes.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **arguments)

    plain = _sample(native, model, 9)
    monkeypatch.setattr(native._network, "forward", counted)
    counted.__signature__ = signature(forward)  # type: ignore[attr-defined]
    _sample(native, model, 9)
    without = len(passes)
    passes.clear()
    _sample(native, model, 9, drafts=plain)
    assert without > 20 and len(passes) == 3, "the prefix, and a pass for each branch"


def test_rows_that_have_ended_leave_the_batch(model: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    native = TextSampler(model, 1)
    plain = _sample(native, model, 20, temperature=2.0)
    forward = native._network.forward
    monkeypatch.setattr(
        native._network, "forward", lambda **arguments: rows.append(len(arguments["input_ids"])) or forward(**arguments)
    )
    assert _sample(native, model, 20, temperature=2.0) == plain
    assert rows[0] == ROWS and min(rows) < ROWS


@pytest.mark.parametrize(
    ("network", "fault"),
    [
        (lambda: MambaForCausalLM(MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=64)), "whose state is no"),
        (lambda: BloomForCausalLM(BloomConfig(hidden_size=8, n_layer=1, n_head=1, vocab_size=64)), "whose state is no"),
        (
            lambda: (
                small_text_model(
                    "qwen2", layer_types=["full_attention", "chunked_attention"], attention_chunk_size=8
                ).network
            ),
            "whose state",
        ),
    ],
    ids=["state", "positions", "chunks"],
)
def test_a_model_without_a_slot_a_token_is_refused(model: TextModel, network: Any, fault: str) -> None:
    other = copy(model)
    other.__dict__ = {**model.__dict__, "_modules": {"network": network()}}
    with pytest.raises(InputError, match=fault):
        make_sampler("native", other)


@pytest.mark.parametrize("kinds", [["full", "sliding"], ["sliding", "sliding"]], ids="-".join)
@pytest.mark.parametrize("window", [2, 30])
def test_a_window_counts_tokens(kinds: list[str], window: int) -> None:
    """Also where a draft left hidden slots between them."""
    windowed = small_text_model(
        "qwen2", use_sliding_window=True, sliding_window=window, layer_types=[f"{kind}_attention" for kind in kinds]
    )
    hf = HuggingFaceSampler(windowed)
    for savings in SAVINGS:
        native = TextSampler(windowed, 1, Savings(**savings))
        plain = _sample(hf, windowed, 9)
        assert _sample(native, windowed, 9) == plain
        half_wrong = [[ids[:3] + ids[:-3] if row % 2 else ids for row, ids in enumerate(branch)] for branch in plain]
        assert _sample(native, windowed, 9, drafts=half_wrong) == plain


@needs_vllm
@pytest.mark.parametrize("digits", [2, 9, 20], ids="digits{}".format)
def test_vllm_writes_what_transformers_writes(model: TextModel, vllm: VllmSampler, digits: int) -> None:
    vllm.load(model)
    assert _sample(vllm, model, digits) == _sample(HuggingFaceSampler(model), model, digits)


@needs_vllm
@pytest.mark.parametrize("temperature", [0.0, 0.7], ids="temperature{}".format)
def test_drafts_do_not_change_tokens(model: TextModel, vllm: VllmSampler, temperature: float) -> None:
    """vLLM's rejection sampler would draw other samples with drafts, and in each call others."""
    vllm.load(model)
    plain = _sample(vllm, model, 9, temperature)
    half_wrong = [[ids[:3] + ids[:-3] if row % 2 else ids for row, ids in enumerate(branch)] for branch in plain]
    for drafts in (plain, half_wrong, plain):
        assert _sample(vllm, model, 9, temperature, drafts) == plain


@needs_vllm
def test_new_weights_reach_the_live_engine(model: TextModel, vllm: VllmSampler) -> None:
    other = _other(model)
    vllm.load(model)
    before = _sample(vllm, model, 9)
    vllm.load(other)
    assert vllm.weights_sha256 == weights_sha256(other) != weights_sha256(model)
    assert _sample(vllm, model, 9) == _sample(HuggingFaceSampler(other), model, 9) != before


def _other(model: TextModel) -> TextModel:
    kind = model.config.model_type
    return small_text_model(kind, seed=2, start=kind == "llama")


def _stale(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {}


def _one_layer_missing(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if ".layers.1." not in name}


def _one_matrix_wrong(state: dict[str, Tensor]) -> dict[str, Tensor]:
    name = "model.layers.0.mlp.down_proj.weight"
    return {**state, name: state[name].roll(1, dims=1)}


@needs_vllm
@pytest.mark.parametrize("corrupt", [_stale, _one_layer_missing, _one_matrix_wrong], ids=lambda f: f.__name__)
def test_a_corrupted_reload_is_caught(
    model: TextModel,
    vllm: VllmSampler,
    corrupt: Corruption,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vllm.load(model)
    assert_caught(vllm, _other(model), corrupt, monkeypatch)
    assert vllm.weights_sha256 == weights_sha256(model)


@needs_vllm
def test_vllm_runs_the_preset_of_text() -> None:
    """With heads of 16, a window in the first layer and no positions in the others; new weights are widened too."""
    # Larger weights than usual, so that a wrong head is seen.
    model, other = (new_text_model("text-tiny", seed, {"initializer_range": 0.25}) for seed in (0, 1))
    for each in (model, other):
        each.learns("addition", "hints", "lsd")
    sampler = VllmSampler(model, SETTINGS)
    for each in (model, other):
        sampler.load(each)
        for digits in (3, 20):
            assert _sample(sampler, each, digits) == _sample(HuggingFaceSampler(each), each, digits)
