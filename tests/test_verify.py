"""The kernel that reads a first pass in one launch, against today's pass: kernel by kernel, in plain torch on a CPU."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
import torch
from drafted import draft, prompts
from small_model import small_model
from torch import Tensor

from sector.engine.config import FILTERS
from sector.engine.language.operands import draw_problems
from sector.engine.models.checkpoint import load_sector, task_and_layout
from sector.engine.models.sector import SectorForCausalLM
from sector.engine.policy.improve import improve
from sector.engine.samplers.gpu import Decode, GpuSampler, kernel_model
from sector.engine.samplers.gpu_first_pass import PassLayouts, first_ids
from sector.engine.samplers.gpu_memory import Context, Memory
from sector.engine.samplers.native import NativeSampler
from sector.engine.samplers.protocol import Branch, Sampling
from sector.engine.seeding import generator
from sector.kernels import verify as module
from sector.kernels.completion import CompletionRequest, Model
from sector.kernels.first_pass import PassLayout
from sector.kernels.verify import verify, verify_kernel, verify_plan, verify_reference

CACHE_BYTES = 1 << 20


def _sampling(count: int, temperature: float = 0.0) -> Sampling:
    return Sampling(temperature, seed=5, rows=torch.arange(count), stage=3)


def _drafted(model: SectorForCausalLM, digits: int, kinds: tuple[str, str], count: int) -> tuple[Tensor, list[Branch]]:
    """Prompts, and drafts of the answers of a model."""
    prefix, branches = prompts(count, digits)
    right = NativeSampler(model, num_threads=1).sample(prefix, branches, _sampling(count))
    drafts = map(draft, kinds, right)
    return prefix, [Branch(branch.mark, branch.length, ids) for branch, ids in zip(branches, drafts, strict=True)]


class _Call:
    """A first pass of a model, and memory that holds nothing yet."""

    def __init__(self, model: Model, prefix: Tensor, branches: list[Branch], shared: int = 0) -> None:
        device = model.weights.qkv.device
        marks = torch.cat([branch.mark for branch in branches], dim=1).to(device)
        lengths = [branch.length for branch in branches]
        request = CompletionRequest(prefix.to(device), marks, lengths, torch.arange(len(prefix), device=device))
        drafts = [None if branch.draft is None else branch.draft.to(device) for branch in branches]
        self.model, self.slots = model, prefix.shape[1] + sum(lengths)
        self.layout: PassLayout = PassLayouts(device).of(request, drafts, shared)
        self.ids = first_ids(request, drafts, shared)
        self.written = len(prefix) * sum(lengths)

    def run(self, run: Callable[..., Tensor], into: Context | None = None) -> tuple[Tensor, Tensor, Context]:
        """Return counts and output, and the memory with keys and values."""
        context = Memory(self.model, CACHE_BYTES, 1 << 30).context(self.slots) if into is None else into
        counts = run(self.model, self.ids, self.layout, context.cache, context.output)
        return counts, context.output[: self.written].clone(), context


def _assert_same(call: _Call, found: tuple[Tensor, Tensor, Context], expected: tuple[Tensor, Tensor, Context]) -> None:
    """Tokens and their counts exactly, keys and values within rounding."""
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    # In float32 sums of at most 256 terms in another order, in a dozen products in a row. In bfloat16 the reference
    # rounds the results of products, too.
    bound = 2e-5 if call.model.weights.qkv.dtype == torch.float32 else 2e-2
    largest = expected[2].cache.float().abs().max()
    assert (found[2].cache.float() - expected[2].cache.float()).abs().max() <= bound * largest


@pytest.fixture(scope="module")
def taught() -> SectorForCausalLM:
    """The preset tiny, sure of its tokens."""
    return load_sector(Path(__file__).parent / "data" / "taught").cpu()


@pytest.mark.parametrize(
    ("digits", "kinds", "rows"),
    [
        # Drafts that are right up to another token in each row.
        (1, ("right_to_a_point", "right"), 4),
        (2, ("wrong", "right_to_a_point"), 2),
        (1, ("short", "none"), 2),
        (2, ("runs_on", "empty"), 2),
        # Three blocks of tokens, of which branches cross two.
        (25, ("right_to_a_point", "right"), 1),
    ],
    ids=str,
)
def test_the_kernel_does_the_first_pass(
    digits: int, kinds: tuple[str, str], rows: int, kernel_device: torch.device
) -> None:
    model = small_model()
    call = _Call(kernel_model(model, kernel_device), *_drafted(model, digits, kinds, rows))
    _assert_same(call, call.run(verify_kernel), call.run(verify_reference))
    assert (len(call.layout.spans.slots) > 128) is (digits == 25)


def test_in_bfloat16(taught: SectorForCausalLM, kernel_device: torch.device) -> None:
    drafted = _drafted(taught, 3, ("right_to_a_point", "right"), 2)
    call = _Call(kernel_model(deepcopy(taught).bfloat16(), kernel_device), *drafted)
    _assert_same(call, call.run(verify_kernel), call.run(verify_reference))


def test_rows_accept_as_much_as_is_right(kernel_device: torch.device) -> None:
    """One more choice than drafted tokens that are right, and padding behind it; with a single branch."""
    model, count = small_model(), 5
    prefix, (branch, _) = _drafted(model, 1, ("right_to_a_point", "none"), count)
    (expected,) = NativeSampler(model, num_threads=1).sample(prefix, [branch], _sampling(count))
    (counts,), output, _ = _Call(kernel_model(model, kernel_device), prefix, [branch]).run(verify_kernel)
    assert counts.tolist() == [1 + row % (branch.length + 1) for row in range(count)]
    accepted = torch.arange(branch.length) < counts.cpu().unsqueeze(1)
    wanted = torch.where(accepted, expected, model.config.pad_token_id)
    assert torch.equal(output.cpu().view_as(wanted), wanted)


def test_a_beginning_in_the_cache_is_seen(kernel_device: torch.device) -> None:
    model = kernel_model(small_model(), kernel_device)
    prompted = _drafted(small_model(), 2, ("right", "right_to_a_point"), 2)
    whole, rest = _Call(model, *prompted), _Call(model, *prompted, shared=4)
    expected = whole.run(verify_kernel)
    kept = Memory(model, CACHE_BYTES, 1 << 30).context(whole.slots)
    kept.cache[..., :4, :] = expected[2].cache[..., :4, :]
    _assert_same(rest, rest.run(verify_kernel, into=kept), expected)
    assert rest.ids.shape[1] == whole.ids.shape[1] - 4


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the ids of each launch; the kernel runs on a CPU, too."""
    shapes: list[tuple[int, ...]] = []

    def launched(model: Model, ids: Tensor, *others: Tensor) -> Tensor:
        shapes.append(tuple(ids.shape))
        return verify_kernel(model, ids, *others)

    monkeypatch.setattr(module, "runs_kernel", lambda _: True)
    monkeypatch.setattr(module, "verify_kernel", launched)
    return shapes


def _on(device: torch.device, model: SectorForCausalLM) -> GpuSampler:
    return GpuSampler(deepcopy(model).to(device), Decode.VERIFY, CACHE_BYTES)


@pytest.mark.parametrize("kinds", [("right", "right"), ("right_to_a_point", "short"), ("wrong", "none")], ids=str)
def test_steps_go_on_from_it(kinds: tuple[str, str], launches: list[object], kernel_device: torch.device) -> None:
    model, count = small_model(), 3
    prefix, branches = _drafted(model, 2, kinds, count)
    expected = NativeSampler(model, num_threads=1).sample(prefix, branches, _sampling(count))
    outputs = _on(kernel_device, model).sample(prefix, branches, _sampling(count))
    assert all(map(torch.equal, outputs, expected))
    assert len(launches) == 1


def test_samples_are_read_kernel_by_kernel(launches: list[object], kernel_device: torch.device) -> None:
    model, (prefix, branches) = small_model(), prompts(3, 2)
    outputs = _on(kernel_device, model).sample(prefix, branches, _sampling(3, 0.8))
    expected = NativeSampler(model, num_threads=1).sample(prefix, branches, _sampling(3, 0.8))
    assert all(map(torch.equal, outputs, expected))
    assert not launches


@pytest.mark.parametrize("name", ["strict", "thorough"])
def test_the_improved_policy_is_the_cpus(
    name: str, taught: SectorForCausalLM, launches: list[tuple[int, ...]], kernel_device: torch.device
) -> None:
    problems = draw_problems(2, 1, generator(0, "verify"))
    run = partial(improve, problems=problems, settings=FILTERS[name], layout=task_and_layout(taught)[1])
    expected = run(NativeSampler(taught), sampling=_sampling(1))
    improved = run(_on(kernel_device, taught), sampling=_sampling(1))
    assert torch.equal(improved.verdict, expected.verdict) and improved.tokens == expected.tokens
    assert torch.equal(improved.ballot.answers, expected.ballot.answers)
    assert expected.accepted.all() and len(launches) > 2


def test_no_rows(kernel_device: torch.device) -> None:
    prefix, branches = prompts(2, 1)
    none = [Branch(branch.mark[:0], branch.length) for branch in branches]
    call = _Call(kernel_model(small_model(), kernel_device), prefix[:0], none)
    assert call.run(verify_kernel)[0].shape == (2, 0)


def test_what_is_refused() -> None:
    call = _Call(kernel_model(small_model(), torch.device("cpu")), *prompts(2, 1))
    _, _, context = call.run(verify)
    with pytest.raises(ValueError, match="ids must be"):
        verify(call.model, call.ids[:, 1:], call.layout, context.cache, context.output)
    with pytest.raises(ValueError, match="cache must be"):
        verify(call.model, call.ids, call.layout, context.cache[1:], context.output)
    with pytest.raises(ValueError, match="a row for each"):
        verify(call.model, call.ids, call.layout, context.cache[:, :, :1], context.output)
    with pytest.raises(ValueError, match=f"room for {call.written} tokens"):
        verify(call.model, call.ids, call.layout, context.cache, context.output[: call.written - 1])


def test_models_that_do_not_fit_are_refused() -> None:
    for size in (96, 128):
        with pytest.raises(ValueError, match=rf"power of two, at most 64, .* not {size}"):
            GpuSampler(small_model(hidden_size=size, num_attention_heads=size // 16), Decode.VERIFY)
    narrow = small_model(hidden_size=32, num_attention_heads=4)
    with pytest.raises(ValueError, match="at least 16 components"):
        verify_plan(kernel_model(narrow, torch.device("cpu")))


@pytest.mark.parametrize("kernel_runs", [True, False], ids=["kernel", "reference"])
def test_which_one_runs(kernel_runs: bool, kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel on a GPU, the other kernels elsewhere."""
    ran: list[str] = []
    for name in ("verify_kernel", "verify_reference"):
        monkeypatch.setattr(module, name, lambda *_, name=name: ran.append(name))
    monkeypatch.setattr(module, "runs_kernel", lambda _: kernel_runs)
    _Call(kernel_model(small_model(), kernel_device), *prompts(1, 1)).run(verify)
    assert ran == ["verify_kernel" if kernel_runs else "verify_reference"]
