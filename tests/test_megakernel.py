"""The megakernel: its reference against the native engine, and the kernel against both.

Interpreted on a CPU at a size of its own; on a GPU compiled, and once more at the sizes of the presets.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_model import model_that_answers_one_digit, small_model
from torch import Tensor

from sector.engine.language import place_layout, tokens
from sector.engine.language.operands import Problems
from sector.engine.models.sector import SectorForCausalLM, new_model
from sector.engine.samplers.gpu import kernel_model
from sector.engine.samplers.native import NativeSampler
from sector.engine.samplers.protocol import Branch, Sampling
from sector.kernels import megakernel
from sector.kernels._triton import INTERPRETED
from sector.kernels.completion import CompletionRequest, Model, complete_reference
from sector.kernels.megakernel import complete, complete_kernel
from sector.kernels.megakernel_plan import make_plan

# Two 32-bit words each, so that neither the key nor the counter is cut.
SEED = (5 << 32) + 77
FIRST_ROW = (3 << 32) + 1_000_000_007


def _kernel_model(model: SectorForCausalLM, device: torch.device, dtype: torch.dtype = torch.float32) -> Model:
    return kernel_model(deepcopy(model).to(dtype), device)


def _request(
    count: int, digits: int, temperature: float, device: torch.device, lengths: tuple[int, int]
) -> CompletionRequest:
    """Fast answers and simplifications of random problems, each row in a variant of its own."""
    draws = torch.Generator().manual_seed(count)
    a, b = torch.randint(0, 10, (2, count, digits), generator=draws)
    carry, variant = torch.randint(0, 2, (count,), generator=draws), torch.randint(0, 3, (count,), generator=draws)
    layout = place_layout.PlaceLayout(variant=variant)
    marks = torch.cat([layout.mark_ids(mode, count) for mode in (tokens.ANSWER, tokens.THINK)], dim=1)
    prefix = layout.prefix_ids(Problems(a, b, carry))
    rows = FIRST_ROW + torch.arange(count)
    on_device = (tensor.contiguous().to(device) for tensor in (prefix, marks, rows))
    prefix, marks, rows = on_device
    return CompletionRequest(prefix, marks, lengths, rows, stage=3, seed=SEED, temperature=temperature)


def _native(model: SectorForCausalLM, request: CompletionRequest) -> list[Tensor]:
    branches = [Branch(request.marks[:, [j]].cpu(), length) for j, length in enumerate(request.lengths)]
    sampling = Sampling(request.temperature, request.seed, request.rows.cpu(), request.stage)
    return NativeSampler(model, num_threads=1).sample(request.prefix.cpu(), branches, sampling)


def _logits_for(request: CompletionRequest) -> Tensor:
    shape = (len(request.lengths), len(request.prefix), max(request.lengths), tokens.NUM_CLASSES)
    return torch.zeros(shape, device=request.prefix.device)


def _assert_same(name: str, outputs: list[Tensor], expected: list[Tensor]) -> None:
    assert len(outputs) == len(expected)
    for branch, (output, wanted) in enumerate(zip(outputs, expected, strict=True)):
        assert torch.equal(output.cpu(), wanted.cpu()), f"{name}, branch {branch}"


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """The caches that launches allocate, which conftest poisons with NaN."""
    kept: list[Tensor] = []
    allocate = torch.empty

    def keep(*args: Any, **kwargs: Any) -> Tensor:
        tensor = allocate(*args, **kwargs)
        kept.extend([tensor] * (tensor.ndim == 6))
        return tensor

    monkeypatch.setattr(torch, "empty", keep)
    return kept


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_reference_is_the_native_engine(temperature: float) -> None:
    model = small_model()
    request = _request(60, 3, temperature, torch.device("cpu"), lengths=(9, 14))
    expected = _native(model, request)
    _assert_same("reference", complete_reference(_kernel_model(model, torch.device("cpu")), request), expected)
    # Both kinds of rows are among them: those that end and those that run on.
    for output in expected:
        ended = tokens.is_eos(output).any(dim=1)
        assert 3 < ended.sum() < 57


# One row; a tile but one; a tile and one; three tiles on two programs.
@pytest.mark.parametrize(("rows", "temperature"), [(1, 0.0), (15, 0.8), (17, 0.0), (33, 0.8)])
def test_kernel_completes_like_native_and_reference(kernel_device: torch.device, rows: int, temperature: float) -> None:
    model = small_model()
    request = _request(rows, 1, temperature, kernel_device, lengths=(4, 6))
    kernel_model = _kernel_model(model, kernel_device)
    logits, expected_logits = _logits_for(request), _logits_for(request)
    outputs = complete_kernel(kernel_model, request, logits)
    _assert_same("native", outputs, _native(model, request))
    _assert_same("reference", outputs, complete_reference(kernel_model, request, expected_logits))
    # Sums of at most 64 terms in another order, in some ten products in a row: 10 * 64 / 2 units of 2^-24, about 2e-5.
    torch.testing.assert_close(logits, expected_logits, rtol=2e-5, atol=2e-5, equal_nan=True)
    chosen = torch.stack([torch.nn.functional.pad(o, (0, 6 - o.shape[1]), value=tokens.PAD_ID) for o in outputs])
    assert torch.equal(logits.isnan().all(dim=3), chosen == tokens.PAD_ID)


def test_prefill_in_blocks_changes_nothing(kernel_device: torch.device) -> None:
    """Blocks of four over seven tokens: one is full, one has a hole; and slots that are read two at a time."""
    request = _request(5, 1, 0.0, kernel_device, lengths=(2, 2))
    model = _kernel_model(small_model(), kernel_device)
    plan = replace(make_plan(model), prefill_tokens=4, prefill_slots=2, decode_slots=4, feature_block=16)
    _assert_same("blocks", complete_kernel(model, request, plan=plan), complete_reference(model, request))


def test_wide_streams_go_through_the_scratch(kernel_device: torch.device) -> None:
    """A hidden size that is no power of two, like that of the base preset; and a single layer."""
    model = small_model(hidden_size=96, num_hidden_layers=1, num_attention_heads=3, intermediate_size=48)
    kernel_model = _kernel_model(model, kernel_device)
    plan = make_plan(kernel_model)
    assert (plan.inner, plan.hidden_block, plan.group_heads, plan.feature_block) == (32, 128, 1, 16)
    request = _request(3, 1, 0.0, kernel_device, lengths=(3, 3))
    logits, expected_logits = _logits_for(request), _logits_for(request)
    outputs = complete_kernel(kernel_model, request, logits)
    _assert_same("native", outputs, _native(model, request))
    _assert_same("reference", outputs, complete_reference(kernel_model, request, expected_logits))
    torch.testing.assert_close(logits, expected_logits, rtol=2e-5, atol=2e-5, equal_nan=True)


def _assert_close_in_bf16(model: SectorForCausalLM, kernel_model: Model, request: CompletionRequest) -> None:
    """Logits of the kernel's own tokens against the engine's model in float64, on the same rounded weights.

    In a layer the inputs of four products, keys and values are rounded, and the square doubles one error; with the last
    norm that is 7 L + 1 roundings, of at most one unit and a gain of about one each, for a norm precedes every product.
    They are independent, so that their squares add. The unit is 2^-9, or 2^-8 in the interpreter, which cuts off.
    """
    logits = _logits_for(request)
    outputs = complete_kernel(kernel_model, request, logits)
    exact = deepcopy(model).bfloat16().double()
    unit = 2.0**-8 if INTERPRETED else 2.0**-9
    for branch, output in enumerate(outputs):
        ids = torch.cat([request.prefix, request.marks[:, [branch]], output[:, :-1]], dim=1).cpu()
        with torch.no_grad():
            expected = exact.class_logits(exact.hidden_states(ids), ids)[:, -output.shape[1] :]
        got = logits[branch, :, : output.shape[1]].cpu().double()
        chosen = output.cpu() != tokens.PAD_ID
        assert torch.equal(got[chosen].isfinite(), expected[chosen].isfinite())
        legal = chosen.unsqueeze(2) & expected.isfinite()
        error = (got[legal] - expected[legal]).norm() / expected[legal].norm()
        assert error < unit * (7 * model.config.num_hidden_layers + 1) ** 0.5


def test_bf16_rounds_and_does_no_more(kernel_device: torch.device) -> None:
    model = small_model()
    kernel_model = _kernel_model(model, kernel_device, torch.bfloat16)
    assert make_plan(kernel_model).prefill_tokens == 2
    _assert_close_in_bf16(model, kernel_model, _request(17, 1, 0.0, kernel_device, lengths=(3, 4)))


def test_tile_stops_when_its_last_row_ends(
    kernel_device: torch.device, caches: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row answers one digit and ends; 40 tokens were allowed. Slots of passes not made still hold poison."""
    passes = []
    choose = megakernel._choose
    if INTERPRETED:
        monkeypatch.setattr(megakernel, "_choose", lambda *arguments: (passes.append(1), choose(*arguments))[1])
    model = model_that_answers_one_digit()
    request = replace(_request(3, 1, 0.0, kernel_device, lengths=(40, 40)), lengths=(40, 2))
    outputs = complete_kernel(_kernel_model(model, kernel_device), request)
    for output in outputs:
        assert (tokens.class_of(output[:, 0]) == 3).all()
        assert tokens.is_eos(output[:, 1]).all()
        assert (output[:, 2:] == tokens.PAD_ID).all()
    assert not INTERPRETED or len(passes) == 2 + 2
    slots = caches[0].isnan().all(dim=5)[0, 0, 0]
    prefix = request.prefix.shape[1]
    assert not slots[:3, : prefix + 2].any()
    assert slots[:3, prefix + 2 :].all()
    # Rows of the tile beyond the batch are neither written nor, as no output is NaN's, read.
    assert slots[3:].all()


def test_places_end_at_the_last(kernel_device: torch.device) -> None:
    """A prompt that ends at the last place: digits stay there."""
    model = small_model(num_hidden_layers=1)
    last = tokens.NUM_LOCAL * tokens.MAX_PLACE
    request = replace(
        _request(2, 1, 0.0, kernel_device, lengths=(3, 3)),
        marks=torch.tensor([[last + 4, last - 16 + 7], [last + 9, last + tokens.CARRY_0]], device=kernel_device),
    )
    outputs = complete_kernel(_kernel_model(model, kernel_device), request)
    _assert_same("native", outputs, _native(model, request))
    assert tokens.place_of(torch.cat(outputs, dim=1)).max() == tokens.MAX_PLACE


def test_completion_is_one_launch(
    kernel_device: torch.device, caches: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One, whatever the rows, branches and tokens; and each of its programs keeps to its own slab of cache."""
    grids: list[tuple[int, ...]] = []
    kernel = megakernel._complete_kernel

    class Counted:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            grids.append(grid)
            return kernel[grid]

    monkeypatch.setattr(megakernel, "_complete_kernel", Counted())
    model = _kernel_model(small_model(num_hidden_layers=1), kernel_device)
    complete_kernel(model, _request(17, 1, 0.0, kernel_device, lengths=(2, 1)))
    assert grids == [(2,)]
    written = ~caches[0].isnan().all(dim=5)[:, 0, 0, :, 0]
    assert written.sum(dim=1).tolist() == [16, 1]


def test_nothing_to_complete(kernel_device: torch.device) -> None:
    outputs = complete_kernel(_kernel_model(small_model(), kernel_device), _request(0, 2, 0.0, kernel_device, (4, 8)))
    assert [output.shape for output in outputs] == [(0, 4), (0, 8)]


def test_cpu_runs_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    monkeypatch.setattr(megakernel, "complete_kernel", None)
    model, request = _kernel_model(small_model(), device), _request(3, 2, 0.0, device, (4, 8))
    _assert_same("dispatch", complete(model, request), complete_reference(model, request))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prefix": torch.zeros(4, 9, dtype=torch.int32)}, "prefix must be torch.int64"),
        ({"prefix": torch.zeros(9, 4, dtype=torch.int64).T}, "prefix must be contiguous"),
        ({"prefix": torch.zeros(4, 0, dtype=torch.int64)}, "prefix must have at least one token"),
        ({"marks": torch.zeros(4, 3, dtype=torch.int64)}, r"marks must be \[4, 2\]"),
        ({"rows": torch.zeros(5, dtype=torch.int64)}, r"rows must be \[4\]"),
        ({"lengths": (4, 0)}, "lengths must be at least 1"),
        ({"temperature": -1.0}, "temperature must not be negative"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_requests_are_checked(change: dict[str, Any], message: str) -> None:
    device = torch.device("cpu")
    request = replace(_request(4, 2, 0.0, device, (4, 8)), **change)
    with pytest.raises(ValueError, match=message):
        complete(_kernel_model(small_model(), device), request)


def test_weights_are_checked() -> None:
    device = torch.device("cpu")
    model, request = _kernel_model(small_model(), device), _request(4, 2, 0.0, device, (4, 8))
    for change, message in (
        ({"down": model.weights.down.transpose(1, 2)}, r"down must be \[2, 32, 64\]"),
        ({"qkv": model.weights.qkv.double()}, "float32 or bfloat16"),
        ({"head": model.weights.head.bfloat16()}, "head must be torch.float32"),
        ({"rope": model.weights.rope[:200]}, "rope must reach place"),
    ):
        with pytest.raises(ValueError, match=message):
            complete(replace(model, weights=model.weights._replace(**change)), request)
    with pytest.raises(ValueError, match="power of two"):
        make_plan(_kernel_model(small_model(hidden_size=48), device))
    with pytest.raises(ValueError, match="cannot be multiplied"):
        make_plan(_kernel_model(small_model(hidden_size=48, num_attention_heads=6), device))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("preset", ["tiny", "base"])
def test_presets_complete_like_native(preset: str, temperature: float) -> None:
    device, model = torch.device("cuda", 0), new_model(preset, seed=1)
    request = _request(1_000 if preset == "tiny" else 200, 8, temperature, device, lengths=(10, 20))
    outputs = complete_kernel(_kernel_model(model, device), request)
    expected = _native(model, request)
    # Logits closer than rounding are ties: an untrained model has some, so a row in two hundred may differ.
    for output, wanted in zip(outputs, expected, strict=True):
        assert (output.cpu() == wanted).all(dim=1).float().mean() >= 0.995


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("preset", ["tiny", "base"])
def test_presets_round_in_bf16(preset: str) -> None:
    device, model = torch.device("cuda", 0), new_model(preset, seed=1)
    kernel_model = _kernel_model(model, device, torch.bfloat16)
    _assert_close_in_bf16(
        model, kernel_model, _request(1_000 if preset == "tiny" else 200, 8, 0.0, device, lengths=(10, 20))
    )
