"""The engine on a simulated GPU: nothing that a GPU refuses, the CPU's verdicts, and no more launches and waits."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from simulated_gpu import CPU, GPU, SimulatedGpu, gpu
from small_model import small_model
from torch import Tensor

from sector.benchmarks.contest import variants
from sector.engine.config import FILTERS
from sector.engine.language.operands import Problems, draw_problems
from sector.engine.language.rows import move
from sector.engine.models.checkpoint import load_sector, task_and_layout
from sector.engine.models.sector import SectorForCausalLM
from sector.engine.policy.improve import Improved, improve
from sector.engine.samplers import gpu_steps
from sector.engine.samplers.gpu import Decode, GpuSampler
from sector.engine.samplers.gpu_steps import Stepwise
from sector.engine.samplers.native import NativeSampler
from sector.engine.samplers.protocol import Sampler, Sampling
from sector.engine.seeding import generator

__all__ = ["gpu"]

ROWS, DIGITS = 60, 9
# Launches, graphs apart, and waits of one `improve` at these sizes. Lower them when fewer are needed.
MOST = {Decode.KERNELS: (1711, 87), Decode.VERIFY: (954, 87), Decode.MEGAKERNEL: (703, 21)}
# The same at 20 digits with a model that has learned them: the table in docs/how_to/gpu.md.
TAUGHT_DIGITS = 20
MOST_TAUGHT = {Decode.KERNELS: (975, 38), Decode.VERIFY: (563, 38), Decode.MEGAKERNEL: (471, 19)}
PAGE = Path(__file__).parents[1] / "docs" / "how_to" / "gpu.md"


@pytest.fixture(scope="module")
def model() -> SectorForCausalLM:
    """A model that has learned 6 digits, so that most drafts hold at 9, and not all."""
    return load_sector(Path(__file__).parent / "data" / "supervised").to(CPU)


@pytest.fixture(scope="module")
def problems() -> Problems:
    return draw_problems(DIGITS, ROWS, generator(0, "simulated"), hard_share=0.5)


@pytest.fixture(scope="module")
def taught() -> SectorForCausalLM:
    """A model taught to 29 digits by `sector run --seed 0`, in float32 from a copy in bfloat16."""
    return load_sector(Path(__file__).parent / "data" / "taught").to(CPU)


def _improve(sampler: Sampler, model: SectorForCausalLM, problems: Problems) -> Improved:
    sampling = Sampling(temperature=0.0, seed=5, rows=torch.arange(len(problems)), stage=0)
    return improve(sampler, problems, FILTERS["strict"], task_and_layout(model)[1], sampling)


def _on(gpu: SimulatedGpu, model: SectorForCausalLM) -> SectorForCausalLM:
    """Return a copy of a model on the GPU."""
    moved = copy.deepcopy(model)
    for parameter in moved.parameters():
        gpu.put(parameter.data)
    return moved


@pytest.mark.parametrize("decode", MOST)
def test_the_improved_policy_is_the_cpus(
    gpu: SimulatedGpu, model: SectorForCausalLM, problems: Problems, decode: Decode
) -> None:
    expected = _improve(NativeSampler(model), model, problems)
    with gpu:
        sampler = GpuSampler(_on(gpu, model), decode, cache_bytes=64 << 20)
        assert sampler.device == GPU
        # The first call copies constants to the GPU.
        _improve(sampler, model, problems)
        gpu.reset()
        improved = _improve(sampler, model, problems)
    assert torch.equal(improved.verdict, expected.verdict) and improved.tokens == expected.tokens
    assert torch.equal(improved.ballot.answers, expected.ballot.answers)
    assert 0 < improved.num_thought_through < ROWS
    launches, waits = MOST[decode]
    assert gpu.launches.total() <= launches, gpu.launches.most_common(20)
    assert gpu.waits.total() <= waits, gpu.waits.most_common(20)
    assert (gpu.replays > 0) is (decode is not Decode.MEGAKERNEL)


@pytest.mark.parametrize("decode", MOST)
def test_launches_and_waits_are_those_of_the_docs(gpu: SimulatedGpu, taught: SectorForCausalLM, decode: Decode) -> None:
    problems = draw_problems(TAUGHT_DIGITS, ROWS, generator(0, "simulated"), hard_share=0.5)
    with gpu:
        sampler = GpuSampler(_on(gpu, taught), decode, cache_bytes=64 << 20)
        # The first call copies constants to the GPU: for the steps those of its count of rows, which others lack.
        _improve(sampler, taught, problems[slice(4)] if decode is Decode.MEGAKERNEL else problems)
        gpu.reset()
        improved = _improve(sampler, taught, problems)
    assert improved.accepted.all()
    counts = gpu.launches.total(), gpu.waits.total()
    assert counts == MOST_TAUGHT[decode], (gpu.waits.most_common(20), gpu.launches.most_common(20))
    name = {Decode.KERNELS: "steps", Decode.VERIFY: "steps, verify", Decode.MEGAKERNEL: "megakernel"}[decode]
    assert f"| {name} | {counts[0]:,} | {counts[1]} |" in PAGE.read_text(encoding="utf-8")


def test_a_bench_compares_each_way_that_a_model_allows(gpu: SimulatedGpu, model: SectorForCausalLM) -> None:
    with gpu:
        ways = [contender.name for contender in variants(_on(gpu, model))]
        assert ways == ["megakernel", "kernels", "verify"]
        odd = [contender.name for contender in variants(_on(gpu, small_model(hidden_size=48)))]
        assert odd == ["kernels"]


def test_a_record_is_moved_by_one_copy_a_dtype(gpu: SimulatedGpu, problems: Problems) -> None:
    with gpu:
        moved = move((problems, torch.arange(3), torch.ones(2, 2, dtype=torch.bool)), GPU)
        assert gpu.waits.total() == 2
        back = move(moved, CPU)
        assert gpu.waits.total() == 4
        assert move(moved, GPU) is moved
    assert torch.equal(back[0].a, problems.a) and torch.equal(back[0].carry, problems.carry)
    assert back[1].tolist() == [0, 1, 2] and back[2].shape == (2, 2)
    # None keeps the memory of all.
    assert back[0].a.untyped_storage().nbytes() == problems.a.nbytes


@pytest.mark.parametrize(("digits", "share"), [(6, 0.9), (DIGITS, 0.95)])
def test_kept_beginnings_change_no_verdict(
    gpu: SimulatedGpu, model: SectorForCausalLM, monkeypatch: pytest.MonkeyPatch, digits: int, share: float
) -> None:
    """All rows are read from the first token on in which one row differs, so a chain that breaks costs more reading."""
    problems = draw_problems(digits, ROWS, generator(0, "simulated"), hard_share=0.5)
    sizes: list[int] = []
    read = Stepwise._first_pass

    def counted(self: Stepwise, ids: Tensor, *args: Any) -> Tensor:
        sizes.append(ids.numel())
        return read(self, ids, *args)

    def run(least: int) -> tuple[Improved, int]:
        """Return the result, and the tokens of first passes, if beginnings are kept from `least` rows on."""
        monkeypatch.setattr(gpu_steps, "_LEAST_REUSED_ROWS", least)
        sizes.clear()
        with gpu:
            sampler = GpuSampler(_on(gpu, model), Decode.KERNELS, cache_bytes=64 << 20)
            return _improve(sampler, model, problems), sum(sizes)

    monkeypatch.setattr(Stepwise, "_first_pass", counted)
    (expected, all_tokens), (improved, tokens) = run(ROWS * 10), run(1)
    assert torch.equal(improved.verdict, expected.verdict) and improved.tokens == expected.tokens
    assert torch.equal(improved.ballot.guesses, expected.ballot.guesses)
    assert tokens < share * all_tokens, tokens / all_tokens


def test_mixed_devices_are_refused(gpu: SimulatedGpu) -> None:
    with gpu:
        there, here = torch.zeros(3, device="cuda"), torch.ones(3)
        for mix in (lambda: there + here, lambda: torch.cat([there, here]), lambda: here.add_(there)):
            with pytest.raises(RuntimeError, match=r"cuda:0 and on the CPU, at test_simulated_gpu\.py"):
                mix()
        with pytest.raises(RuntimeError, match="on the CPU is indexed"):
            here[there.long()]
        with pytest.raises(TypeError, match="cuda:0"):
            there.numpy()


def test_launches_and_waits_are_told_apart(gpu: SimulatedGpu) -> None:
    with gpu:
        x = torch.zeros(3, 4, device="cuda")
        gpu.reset()
        x.t(), x[0], x.view(-1)
        assert not gpu.launches and not gpu.waits
        y = x.add(1).mul_(2)
        assert (gpu.launches.total(), gpu.waits.total()) == (2, 0)
        assert bool((y > 1).all()) and y.tolist()[0][0] == 2
        y[y > 1], torch.nonzero(y), y.cpu(), torch.ones(2).to("cuda"), torch.tensor([1.0], device="cuda")
        assert gpu.waits.total() == 7
        y[y > 1] = 0.0
        assert gpu.waits.total() == 7


def test_a_capture_refuses_waits_and_its_replays_count_apart(gpu: SimulatedGpu) -> None:
    with gpu:
        x = torch.zeros(3, device="cuda")

        def step() -> None:
            x.add_(1).mul_(2)

        replay = gpu.capture(step)
        gpu.reset()
        replay()
        replay()
        assert (gpu.launches.total(), gpu.replays, gpu.nodes) == (0, 2, 4)
        with pytest.raises(RuntimeError, match="may not wait in a capture"):
            gpu.capture(lambda: print(x.sum().item()))
    assert x.tolist() == [14.0] * 3
