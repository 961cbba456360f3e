"""The measurements of `sector bench`: contests, the roofline's count of work, memory, kernels, the trainer."""

import io
import json
import mmap
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from scripted import Scripted
from small_text import small_text_model
from typer.testing import CliRunner, Result

from sector.benchmarks import contest, kernel_times, memory, peers, roofline, training
from sector.benchmarks import record as recording
from sector.benchmarks.contest import Contest, ContestResult, Workload, engines, ratios, summary, variants
from sector.benchmarks.roofline import card, improved_work, measure_ceilings, operations
from sector.cli.app import app
from sector.cli.bench import view
from sector.engine.config import FILTERS, Filter
from sector.engine.language.operands import draw_problems
from sector.engine.language.place_ids import DigitOrder
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.models.checkpoint import load_checkpoint, save_checkpoint
from sector.engine.models.sector import SectorForCausalLM, new_model
from sector.engine.policy.improve import improve
from sector.engine.samplers.protocol import Sampling
from sector.engine.tasks.addition import TASK as ADDITION

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _ceilings_in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "_SECONDS", 0.01)
    monkeypatch.setattr(roofline, "_COPY_BYTES", 1 << 22)
    monkeypatch.setattr(roofline, "_CPU_TOKENS", 512)
    monkeypatch.setattr(kernel_times, "_SECONDS", 0.01)


@pytest.fixture(scope="module")
def model() -> SectorForCausalLM:
    return new_model("tiny", seed=1, initializer_range=0.25).eval()


@pytest.fixture(scope="module")
def checkpoint(model: SectorForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "model"
    save_checkpoint(model, path)
    return path


def terms(settings: Filter = FILTERS["none"], temperature: float = 0.0) -> Contest:
    return Contest(settings.model_copy(update={"k": 2}), ADDITION, PlaceLayout(), temperature, seed=3, hard_share=0.5)


def sector(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="sector", catch_exceptions=False)


@pytest.mark.parametrize("name", [*FILTERS, "direct"], ids=str)
@pytest.mark.parametrize("digits", [1, 2, 7], ids="digits{}".format)
def test_the_roofline_counts_the_tokens_that_come_out(name: str, digits: int) -> None:
    settings = FILTERS.get(name, Filter(checks=("direct",), think_through=False))
    problems = draw_problems(digits, 6, torch.Generator().manual_seed(2))
    sampling = Sampling(0.0, 0, torch.arange(6), 0)
    improved = improve(Scripted(), problems, settings, PlaceLayout(), sampling)
    assert improved.accepted.all()
    assert improved.tokens == 6 * improved_work(digits, settings, DigitOrder.MSD).generated


def test_work_by_hand(model: SectorForCausalLM) -> None:
    """One digit, no second look: `< a ) + b ) c`, `=`, two digits and the end, of which the last is not read."""
    work = improved_work(1, FILTERS["none"], DigitOrder.MSD)
    assert (work.tokens, work.generated) == (10, 3)
    # The prefix of 7 attends to itself; mark and digits to it and to what is before them in the branch.
    assert work.pairs == 28 + 3 * 7 + 6
    matrices = 3 * (4 * 64 * 64 + 2 * 64 * 256)
    assert operations(model, work) == 2 * 10 * matrices + 2 * 3 * 64 * 32 + 4 * 64 * 3 * 55


def test_what_the_prompts_of_a_chain_begin_with_is_read_once() -> None:
    first, last = (improved_work(7, FILTERS["strict"], order) for order in (DigitOrder.MSD, DigitOrder.LSD))
    # `<` and the leading digits of a, at each of five stages of two looks. The other order takes the first digit away.
    assert last.tokens - first.tokens == 2 * (7 + 6 + 5 + 4 + 3)
    assert first.generated == last.generated
    assert first.pairs == last.pairs - 2 * (28 + 21 + 15 + 10 + 6)


def test_a_card_says_what_the_ceilings_allow(model: SectorForCausalLM) -> None:
    ceilings = measure_ceilings(model)
    # No machine that runs this does less than a GFLOP or a GB a second, or more than 10 PFLOP or 100 TB.
    assert 1e9 < ceilings.operations_per_s < 1e16 and 1e9 < ceilings.copy_bytes_per_s < 1e14
    figures = card(model, ceilings, 7, FILTERS["strict"], batch=100)
    allowed = figures["candidates_per_s"] * figures["operations_a_candidate"]
    assert allowed == pytest.approx(ceilings.operations_per_s)
    json.dumps(figures)


@pytest.mark.parametrize("temperature", [0.0, 0.7], ids="temperature{}".format)
@pytest.mark.parametrize("name", ["strict", "paper"], ids=str)
def test_engines_and_savings_give_the_same_examples(name: str, temperature: float, model: SectorForCausalLM) -> None:
    contenders = [*engines(["native", "hf"], model), *variants(model)]
    names = [
        "native",
        "hf",
        "no drafts",
        "no shared prefix",
        "no shared beginning",
        "keep finished",
        "not compiled",
        "keep decided",
        "plain",
    ]
    assert [each.name for each in contenders] == names
    workloads = [Workload(3, 5, 3), Workload(2, 4, 4)]
    asked = terms(FILTERS[name], temperature).run(contenders, workloads, 1, CPU, lambda *_: None)
    for (cells, unlike), workload in zip(asked, workloads, strict=True):
        assert unlike == 0
        assert [cell.contender for cell in cells] == names and {cell.workload for cell in cells} == {workload}


def test_a_contest_sees_what_is_unlike_and_takes_turns(model: SectorForCausalLM) -> None:
    problems = Workload(3, 12, 12).problems(ADDITION, 3, 0.5)
    wrong = contest.Contender("wrong", Scripted({problems.texts()[4]: 1, problems.texts()[7]: 1}))
    right = contest.Contender("right", Scripted())
    seen: list[str] = []
    # What is thought through comes out right after all.
    looks = FILTERS["strict"].model_copy(update={"think_through": False})
    asked = terms(looks).run([right, wrong], [Workload(3, 12, 12)], 3, CPU, lambda *at: seen.append(at[2]))
    ((cells, unlike),) = asked
    assert unlike == 2
    assert [cell.accepted for cell in cells] == [12, 10]
    assert [text.split(",")[0] for text in seen] == ["right", "wrong", "wrong", "right", "right", "wrong"]


def test_the_warm_up_is_of_full_size() -> None:
    """Otherwise the first timed repetition on a GPU would capture the graphs of its sizes."""
    sampler = Scripted()
    asked = terms().run([contest.Contender("one", sampler)], [Workload(3, 70, 0)], 1, CPU, lambda *_: None)
    assert len(list(asked)) == 1
    half = len(sampler.asked) // 2
    assert half >= 70 and sampler.asked[:half] == sampler.asked[half:]


def test_figures_are_medians_and_ratios_are_of_the_first() -> None:
    one = ContestResult("one", Workload(4, 100, 10), [1.0, 2.0, 9.0], 400, 80, 5)
    more = ContestResult("one", Workload(8, 100, 10), [2.0, 2.0, 2.0], 800, 60, 7)
    two = ContestResult("two", Workload(4, 100, 10), [4.0, 4.0, 4.0], 400, 80, 6)
    figures = summary([one, more, two])
    assert figures["one"] == {"tokens_per_s": 300, "accepted_per_s": 35, "peak_memory_bytes": 7}
    assert ratios(figures, "one") == {"one/two": {"tokens_per_s": 3, "accepted_per_s": 1.75}}
    assert (one.as_json()["accepted_per_s_low"], one.as_json()["accepted_per_s_high"]) == (80 / 9, 80)


def test_peak_memory_is_that_of_the_work_since_the_reset() -> None:
    # Straight from the system: an allocator may keep what is given back to it.
    memory.reset_peak(CPU)
    before = memory.peak_bytes(CPU)
    with mmap.mmap(-1, 1 << 27) as more:
        more.write(b"1" * len(more))
        during = memory.peak_bytes(CPU)
        assert during - before > 0.9 * len(more)
    memory.reset_peak(CPU)
    assert memory.peak_bytes(CPU) < during


def test_every_kernel_case_runs(model: SectorForCausalLM) -> None:
    lines = kernel_times.measure_kernels(model, 5, 33, copy_bytes_per_s=1e10)
    names = ["digit_sampler", "decode_attention", "majority", "prompt_ids", "parse_answers"]
    assert [line["kernel"] for line in lines] == names
    assert all(line["bytes"] > 0 and line["share_of_copy_rate"] > 0 for line in lines)


@pytest.mark.parametrize("plain", [False, True], ids=["ours", "plain"])
def test_both_training_steps_train(plain: bool, checkpoint: Path) -> None:
    figures = training.measure(checkpoint, digits=3, steps=2, plain=plain)
    assert figures["tokens_per_s"] > 0
    assert ("shares" in figures) is not plain


def test_the_plain_step_is_the_same_step(model: SectorForCausalLM) -> None:
    """Without augmentation, our shared rows have the loss of the textbook's separate ones."""
    from sector.engine.config import TrainerConfig
    from sector.engine.language.place_layout import PlaceLayout
    from sector.engine.training.distill import start_training
    from sector.engine.training.place_rows import lay_out
    from sector.engine.training.supervised import label

    config = TrainerConfig(gap_share=0.0)
    examples = label(draw_problems(4, 16, torch.Generator().manual_seed(1)))
    rows = lay_out(examples, DigitOrder.MSD, config, torch.Generator().manual_seed(0))
    variants = torch.randint(0, 3, (16,), generator=torch.Generator().manual_seed(0))
    plain = training._plain_loss(start_training(model, config), examples, config, PlaceLayout(DigitOrder.MSD, variants))
    torch.testing.assert_close(rows.loss(model, config.fast_weight), plain)


def test_the_command_keeps_its_contract(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    options = ["--digits", "1,2", "--count", 4, "--batch", "2,4", "--repeats", 2, "--k", 1, "--savings", "--kernels"]
    result = sector("bench", "--model", checkpoint, "--engine", "native,hf", *options, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    record: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    assert record == json.loads(out.read_text())
    assert record.keys() >= {"engines", "ratios", "hardware", "versions", "commit"}
    assert record["engines"].keys() == {"native", "hf"}
    assert all(
        each.keys() == {"tokens_per_s", "accepted_per_s", "peak_memory_bytes"} for each in record["engines"].values()
    )
    assert record["ratios"].keys() == {"native/hf"}
    assert record["ratios"]["native/hf"].keys() == {"tokens_per_s", "accepted_per_s"}
    assert {(cell["digits"], cell["batch"]) for cell in record["cells"]} == {(1, 2), (1, 4), (2, 2), (2, 4)}
    assert len(record["cells"]) == 4 * 9 and record["differing"] == 0
    assert all(cell["share_of_roofline"] > 0 for cell in record["cells"])


# Peers take a minute to make: on one process.
PEERS = pytest.mark.xdist_group("peers")


@pytest.fixture(scope="module")
def beside_peers(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of the console script, which holds itself to AVX2."""
    options = ["--engine", "native", "--digits", "2", "--count", "6", "--repeats", "1", "--k", "1", "--isa", "avx2"]
    command = [Path(sys.executable).with_name("sector"), "bench", "--model", checkpoint, *options, "--peers", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


@PEERS
def test_peers_keep_the_contract(beside_peers: dict[str, Any]) -> None:
    figures, shape = beside_peers["peers"], beside_peers["equal_shape"]
    assert list(figures) == ["ctranslate2", "onnxruntime-genai", "native"]
    rows, new = 6, PlaceLayout().simplification_length(2)
    assert (shape["rows"], shape["prompt_tokens"], shape["new_tokens"]) == (rows, 2 * 2 + 6, new)
    for name, own in figures.items():
        if "why" in own:
            assert find_spec(peers._MODULES[name][0]) is None and own["tokens_per_s"] is None
            continue
        assert 0 < own["low"] <= own["tokens_per_s"] <= own["high"]
        # The plain ones never end before they must.
        assert own["tokens"] == rows * new or name == "native"
    assert figures["native"]["accepted_per_s"] == beside_peers["engines"]["native"]["accepted_per_s"]


def test_training_keeps_the_contract(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "TRAINING_STEPS", 2)
    monkeypatch.setattr(training, "_measure_in_fresh_process", training.measure)
    options = ["--engine", "native", "--digits", 2, "--count", 2, "--repeats", 1, "--k", 1, "--training"]
    result = sector("bench", "--model", checkpoint, *options, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout.splitlines()[-1])
    (each,) = record["training"]
    assert each["digits"] == 2 and each["tokens_per_s"] > 0
    assert each["ratio_to_eager"] == pytest.approx(each["tokens_per_s"] / each["plain_tokens_per_s"])
    assert each["shares"].keys() == {"lay_out", "forward", "backward", "exchange", "optimizer"}
    assert sum(each["shares"].values()) == pytest.approx(1) and min(each["shares"].values()) >= 0
    assert 0 < each["in_phases"] <= 1
    assert "of a step: lay out" in _shown(record)


@PEERS
def test_a_narrower_instruction_set_is_what_torch_uses(beside_peers: dict[str, Any]) -> None:
    assert beside_peers["hardware"]["instruction_set"] in ("AVX2", "DEFAULT")


def test_an_instruction_set_that_comes_too_late(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    result = sector("bench", "--model", checkpoint, "--isa", "avx2")
    assert result.exit_code == 2 and result.stderr.startswith("sector: --isa avx2 comes too late")
    assert "ATEN_CPU_CAPABILITY" not in os.environ


def test_what_is_no_peer_is_null_and_says_why(
    checkpoint: Path, model: SectorForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two peers are not installed, and the output of our engine is compared with that of another model."""
    monkeypatch.setitem(peers._MODULES, "ctranslate2", ("no_such_module",))
    monkeypatch.setitem(peers._MODULES, "onnxruntime-genai", ("no_such_module",))
    other, written = new_model("tiny", seed=2, initializer_range=0.25), peers._Shape.written_natively
    monkeypatch.setattr(peers._Shape, "written_natively", lambda shape, _: written(shape, other))
    beside = peers.compare(checkpoint, model, 2, 3, 1, 0, lambda *_: None)
    missing = {"tokens_per_s": None, "low": None, "high": None, "why": "not installed; pip install 'sector-lm[peers]'"}
    different = {**missing, "why": "it writes other tokens than transformers"}
    assert beside["peers"] == {"ctranslate2": missing, "onnxruntime-genai": missing, "native": different}
    json.dumps(peers.with_additions(beside, [], 10))


def test_what_tokens_make_in_additions() -> None:
    rates: dict[str, Any] = {"ctranslate2": None, "native": 50.0}
    beside = {
        "peers": {name: {"tokens_per_s": rate} for name, rate in rates.items()},
        "equal_shape": {"digits": 20},
    }
    cells = [
        {"engine": "native", "digits": 8, "accepted_per_s": 1.0},
        {"engine": "hf", "digits": 20, "accepted_per_s": 2.0},
        {"engine": "native", "digits": 20, "accepted_per_s": 3.0},
    ]
    record = peers.with_additions(beside, cells, tokens_an_addition=10)
    assert record["peers"]["ctranslate2"]["additions_per_s_at_most"] is None
    assert record["peers"]["native"]["additions_per_s_at_most"] == 5
    assert record["peers"]["native"]["accepted_per_s"] == 3
    assert peers.with_additions(beside, cells[:2], 10)["peers"]["native"]["accepted_per_s"] is None


@PEERS
def test_the_record_of_peers_as_tables(beside_peers: dict[str, Any]) -> None:
    shown = _shown(beside_peers)
    for text in ("equal shape", "ctranslate2", "onnxruntime-genai", "rotates by place", "generated tokens"):
        assert text in shown


def _shown(record: dict[str, Any]) -> str:
    """Return the record as it is shown on a wide screen."""
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(view(record))
    return console.export_text()


def test_the_command_shows_tables(checkpoint: Path) -> None:
    options = ["--digits", 2, "--count", 4, "--batch", 4, "--repeats", 1, "--k", 1, "--kernels"]
    result = sector("bench", "--model", checkpoint, *options)
    assert result.exit_code == 0, result.output
    for text in ("accepted/s", "native", "hf", "candidates/s", "digit_sampler", "torch"):
        assert text in result.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures for many minutes where there is a GPU")
def test_the_gpu_script_says_that_there_is_none(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "benchmarks" / "gpu.sh"
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([script, tmp_path / "out"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1].startswith("gpu.sh: ")


def test_a_fresh_checkpoint_of_any_size(tmp_path: Path) -> None:
    save_checkpoint(new_model("base", seed=0), tmp_path / "base")
    assert 13e6 < sum(weight.numel() for weight in load_checkpoint(tmp_path / "base").parameters()) < 15e6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(["--engine", "native,nothing"], "unknown engine 'nothing'", id="engine"),
        pytest.param(["--digits", "0"], "there are no problems of 0 digits", id="digits"),
        pytest.param(["--digits", "257"], "no problems of 257 digits", id="too_long"),
        pytest.param(["--dtype", "bfloat16"], "--dtype bfloat16 is for GPUs", id="dtype"),
        pytest.param(["--batch", "0"], "--batch '0' is not a list of sizes", id="batch"),
        pytest.param(["--batch", "10,x"], "is not a list of sizes", id="batch_text"),
        pytest.param(["--out", "/proc/nothing/bench.json"], "cannot write", id="out"),
    ],
)
def test_what_cannot_be_measured(options: list[str], said: str, checkpoint: Path) -> None:
    result = sector("bench", "--model", checkpoint, "--count", 2, *options)
    assert result.exit_code == 2
    assert result.stderr.startswith("sector: ") and result.stderr.count("\n") == 1 and said in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("task", ["multiplication", "text"])
def test_other_models_are_measured_without_the_limit_of_the_hardware(task: str, tmp_path: Path) -> None:
    if task == "text":
        save_checkpoint(small_text_model(), tmp_path / "model")
    else:
        save_checkpoint(new_model("tiny", 0, task=task), tmp_path / "model")
    options = ("--digits", 3, "--count", 4, "--batch", 4, "--repeats", 1, "--engine", "native,hf", "--json")
    result = sector("bench", "--model", tmp_path / "model", *options)
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["roofline"] == [] and record["differing"] == 0
    assert [cell["share_of_roofline"] for cell in record["cells"]] == [None, None]
    assert all(cell["tokens"] > 0 for cell in record["cells"])
    assert sector("bench", "--model", tmp_path / "model", "--peers").exit_code == 2
