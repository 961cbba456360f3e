"""`sector profile`: real steps of a real model, the trace they leave, and the lines for Nsight."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from empty_doors import empty_doors
from typer.testing import CliRunner, Result

from sector.benchmarks import profiling
from sector.benchmarks.profiling import function_name, nsight_commands
from sector.cli.app import app
from sector.engine.api.scaffold import new_task
from sector.engine.errors import InputError
from sector.engine.language.operands import draw_problems
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.models.checkpoint import save_checkpoint
from sector.engine.models.sector import new_model
from sector.engine.samplers import native
from sector.engine.seeding import generator
from sector.engine.spans import span
from sector.engine.training.dataset import Provenance, labelled_table, write_examples
from sector.engine.training.supervised import label


def profile(*args: object) -> Result:
    """Run `sector profile ...` in this process."""
    words = ["profile", *map(str, args)]
    return CliRunner().invoke(app, words, prog_name="sector", catch_exceptions=False)


def report_of(*args: object) -> dict[str, Any]:
    result = profile(*args, "--json")
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    report: dict[str, Any] = json.loads(line)
    return report


@pytest.fixture(scope="module", autouse=True)
def in_torch() -> Iterator[None]:
    """Run the native engine in plain torch, which shows every operation; its library shows one range only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "load_library", lambda: None)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that has learned nothing: how long an operation takes does not depend on that."""
    path = tmp_path_factory.mktemp("profiling") / "model"
    save_checkpoint(new_model("tiny", 0, digit_order="msd"), path)
    return path


@pytest.fixture(scope="module")
def data(model: Path) -> Path:
    path = model.with_name("3.parquet")
    problems = draw_problems(3, 8, generator(0, "test"))
    write_examples(path, labelled_table(label(problems), PlaceLayout(), Provenance(3, 0, "native", "")))
    return path


@pytest.fixture(scope="module")
def generating(model: Path) -> dict[str, Any]:
    options = ["--digits", 3, "--count", 4, "--k", 1, "--skip", 1, "--steps", 2]
    return report_of("generate", "--model", model, *options, "--out", model.with_name("out"))


@pytest.fixture(scope="module")
def distilling(model: Path, data: Path) -> dict[str, Any]:
    options = ["--data", data, "--skip", 2, "--steps", 3]
    return report_of("distill", "--model", model, *options, "--out", model.with_name("out"))


def ranges_in(trace: Path) -> list[str]:
    """Names of the ranges in a trace file."""
    events = json.loads(trace.read_text())["traceEvents"]
    return [event["name"] for event in events if event.get("cat") == "user_annotation"]


def test_a_trace_of_generating_holds_the_ranges_of_the_loop(generating: dict[str, Any], model: Path) -> None:
    trace = Path(generating["trace"])
    assert trace == model.with_name("out") / "generate-trace.json"
    ranges = ranges_in(trace)
    assert ranges.count("generate step") == generating["steps"] == 2
    assert ranges.count("vote") == ranges.count("commutative") == 2
    assert {"think + answer", "answer", "complement", "count", "prefix", "decode", "draw"} <= set(ranges)
    assert {"ProfilerStep#1", "ProfilerStep#2"} <= set(ranges) and "ProfilerStep#3" not in ranges


def test_a_trace_of_distilling_holds_its_ranges_from_every_thread(distilling: dict[str, Any]) -> None:
    events = json.loads(Path(distilling["trace"]).read_text())["traceEvents"]
    ranges = ranges_in(Path(distilling["trace"]))
    assert ranges.count("distill step") == ranges.count("optimizer") == distilling["steps"] == 3
    # Eight shards a step.
    assert ranges.count("forward") == ranges.count("backward") == 24
    main = {event["tid"] for event in events if event["name"] == "distill step"}
    workers = {event["tid"] for event in events if event["name"] == "backward"}
    products = {event["tid"] for event in events if event["name"] == "aten::mm"}
    assert workers and not workers & main and workers <= products


@pytest.mark.parametrize("name", ["generating", "distilling"], ids=str)
def test_the_figures(name: str, request: pytest.FixtureRequest) -> None:
    report = request.getfixturevalue(name)
    assert {"operations", "ranges", "shares", "cores_used", "trace", "hardware", "versions", "commit"} <= report.keys()
    operations = report["operations"]
    assert operations == sorted(operations, key=lambda row: -row["self_seconds"])
    # Every layer of the model multiplies matrices, whatever else happens.
    assert next(row for row in operations if row["name"] == "aten::mm")["calls"] > 10
    assert sum(row["share"] for row in operations if row["on"] == "cpu") == pytest.approx(1)
    shares = report["shares"]
    assert sum(shares.values()) == pytest.approx(1) and all(0 <= share <= 1 for share in shares.values())
    assert shares.get("operations", shares.get("kernels")) > 0
    # Self times of one thread cannot exceed the time of the steps.
    seconds, cores = report["steps"] * report["seconds_a_step"], report["hardware"]["cores"]
    assert sum(row["self_seconds"] for row in operations) < 1.1 * seconds * (1 + cores)
    assert report["seconds_a_step_unrecorded"] > 0
    # The step is one thread's, from its begin to its end.
    step = next(row for row in report["ranges"] if row["name"].endswith(" step"))
    assert step["threads"] == pytest.approx(1, abs=0.05) and "share" not in step


def test_the_trace_names_no_host_and_nothing_half_written_is_left(generating: dict[str, Any]) -> None:
    trace = Path(generating["trace"])
    assert not {"host_name", "traceName"} & json.loads(trace.read_text()).keys()
    assert not list(trace.parent.glob(".*"))


def test_for_people(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # So many problems that matrix products stand far up in the table; of two it is noise what does.
    result = profile("generate", "--model", model, "--digits", 8, "--count", 64, "--steps", 1, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    for text in ("aten::mm", "self ms", "vote", "operations", "idle"):
        assert text in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert f"trace: {tmp_path / 'generate-trace.json'};" in result.stderr
    # Nothing but what we say, also from libraries.
    assert capfd.readouterr() == ("", "")
    percentages = [float(each) for each in re.findall(r"([\d.]+) %", result.stdout)]
    assert percentages and max(percentages) <= 100 and "threads" in result.stdout


@pytest.mark.parametrize("command", ["generate", "distill"], ids=str)
def test_help(command: str) -> None:
    result = profile(command, "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.stdout and f"sector profile {command}" in result.stdout and "--json" in result.stdout
    assert command in profile("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param(["walk"], "walk", id="unknown command"),
        pytest.param(["generate", "--digits", 3], "--model", id="no model given"),
        pytest.param(["generate", "--digits", 3, "--model", "no"], "no such directory", id="no model"),
        pytest.param(["generate", "--digits", 257, "--model", "MODEL"], "257", id="too many digits"),
        pytest.param(["generate", "--digits", 3, "--model", "MODEL", "--skip", 0], "--skip", id="no warm-up"),
        pytest.param(["generate", "--digits", 3, "--model", "MODEL", "--steps", 0], "--steps", id="no steps"),
        pytest.param(["generate", "--digits", 3, "--model", "MODEL", "--engine", "tpu"], "--engine", id="engine"),
        pytest.param(["distill", "--model", "MODEL"], "--data", id="no data given"),
        pytest.param(["distill", "--model", "MODEL", "--data", "no"], "no", id="no data"),
        pytest.param(["distill", "--model", "MODEL", "--data", "MODEL/config.json"], "parquet", id="no parquet"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    model: Path, tmp_path: Path, arguments: Sequence[object], named: str
) -> None:
    out = tmp_path / "out"
    result = profile(*[str(word).replace("MODEL", str(model)) for word in arguments], "--out", out)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("sector: ") and result.stderr.count("\n") == 1 and named in result.stderr
    assert not out.exists()


def test_a_trace_is_not_written_where_a_file_lies(model: Path) -> None:
    result = profile("generate", "--model", model, "--digits", 3, "--out", model / "config.json")
    assert result.exit_code == 2 and "cannot write" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_there_is_nothing_to_mark(model: Path, tmp_path: Path) -> None:
    result = profile("generate", "--model", model, "--digits", 3, "--out", tmp_path / "out", "--nsight")
    assert result.exit_code == 2 and "--nsight" in result.stderr and not (tmp_path / "out").exists()


# Nsight


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        ("_decode_kernel", "_decode_kernel"),
        ("void at::native::vectorized_elementwise_kernel<4, f<float>, std::array<char*, 3ul> >(int, f)",
         "vectorized_elementwise_kernel"),
        ("void cutlass::Kernel2<cutlass_80_simt_sgemm_128x32_8x5_tn_align1>(Params)", "Kernel2"),
        ("void at::native::(anonymous namespace)::softmax<float, (int)8>(float*, int)", "softmax"),
        ("sm90_xmma_gemm_f32f32_tn_n_tilesize64x64", "sm90_xmma_gemm_f32f32_tn_n_tilesize64x64"),
    ],
    ids=["triton", "torch", "cutlass", "anonymous", "cublas"],
)  # fmt: skip
def test_the_bare_name_of_a_kernel(kernel: str, name: str) -> None:
    assert function_name(kernel) == name


def test_nsight_commands_are_lines_for_a_shell() -> None:
    command = ["sector", "profile", "generate", "--model", "my runs/first", "--nsight"]
    lines = nsight_commands("void f<4>(int)", command, Path("my out"))
    for tool, line in lines.items():
        words = shlex.split(line)
        assert words[0] == tool and words[-len(command) :] == command
        assert any(word.endswith(f"=my out/{tool}") for word in words)
    assert "--capture-range=cudaProfilerApi" in shlex.split(lines["nsys"])
    assert {"--profile-from-start=off", "--kernel-name=f"} <= set(shlex.split(lines["ncu"]))


@pytest.mark.parametrize("fails", [False, True], ids=["to the end", "an error on the way"])
def test_nsight_sees_the_recorded_steps_alone(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    log: list[str] = []

    def work() -> Iterator[None]:
        for step in range(4):
            if fails and step == 2:
                raise InputError("no more")
            with span(f"step {step}"):
                yield

    @contextmanager
    def nvtx(name: str) -> Iterator[None]:
        log.append(name)
        yield

    for name in ("start", "stop"):
        monkeypatch.setattr(torch.cuda.profiler, name, lambda name=name: log.append(name))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    monkeypatch.setattr(torch.cuda.nvtx, "range", nvtx)
    with pytest.raises(InputError) if fails else nullcontext():
        profiling._marked(work(), skip=1, steps=2)
    second = [] if fails else ["step 2", "wait"]
    assert log == ["start", "step 1", "wait", *second, "stop"]


def test_for_a_kernel_at_fault_the_lines_repeat_the_command(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"kernel": "void f<4>(int)", "steps": 1, "seconds_a_step": 1.0}
    monkeypatch.setattr("sector.benchmarks.profiling.profile_distill", lambda *_, **__: dict(figures))
    options = ["--model", model, "--data", "a.parquet", "--data", "b c.parquet", "--out", "out", "--steps", 7]
    result = profile("distill", *options, "--json")
    lines = json.loads(result.stdout)["nsight"]
    words = shlex.split(lines["ncu"])
    again = words[words.index("sector") :]
    assert again[:3] == ["sector", "profile", "distill"] and again[-1] == "--nsight" and "--json" not in again
    assert [again[index + 1] for index, word in enumerate(again) if word == "--data"] == ["a.parquet", "b c.parquet"]
    assert again[again.index("--steps") + 1] == "7" and again[again.index("--model") + 1] == str(model)
    assert result.stderr.splitlines() == [lines["nsys"], lines["ncu"]]


def test_the_lines_for_a_task_of_the_user_name_its_file(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_doors(monkeypatch)
    figures = {"kernel": "void f<4>(int)", "steps": 1, "seconds_a_step": 1.0}
    monkeypatch.setattr("sector.benchmarks.profiling.profile_distill", lambda *_, **__: dict(figures))
    reference = new_task("mine", tmp_path / "mine.py")
    learned = shutil.copytree(model, tmp_path / "learned") / "config.json"
    learned.write_text(json.dumps(json.loads(learned.read_text()) | {"task": "mine"}))
    result = profile("distill", "--model", learned.parent, "--data", "a", "--out", "out", "--task", reference, "--json")
    words = shlex.split(json.loads(result.stdout)["nsight"]["ncu"])
    assert words[words.index("--task") + 1] == reference
