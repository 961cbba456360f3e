"""The commands as users and scripts see them: help, JSON, exit codes, and one clear line for bad input."""

import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
import typer
from recorded import generation, training
from scripted import Scripted
from typer.testing import CliRunner, Result

from sector.cli._signals import Ended
from sector.cli.app import app
from sector.engine.errors import Diverged
from sector.engine.language.operands import draw_problems
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.models.checkpoint import load_checkpoint, weights_sha256
from sector.engine.run.directory import RunDir
from sector.engine.seeding import generator
from sector.engine.training.dataset import Provenance, labelled_table, write_examples, write_table
from sector.engine.training.supervised import label

SECTOR = Path(sys.executable).with_name("sector")
COMMANDS = ("run", "config", "sft", "generate", "distill", "eval", "solve", "ablate", "report")

# Hardly trained at all: what commands print does not depend on what a model knows.
SMALL: dict[str, Any] = {
    "until": 3,
    "audit_samples": 4,
    "supervised": {"max_digits": 2, "cycle_steps": 2, "max_cycles": 1, "examples": 8},
    "round": {"candidates": 8, "cycle_steps": 2, "max_cycles": 1, "probe": 4, "min_agreement": 0.0},
}


def sector(*args: object) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="sector", catch_exceptions=False)


def refused(*args: object, code: int = 2) -> str:
    """Run a command that must fail with one line on stderr and nothing on stdout; returns the line."""
    result = sector(*args)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("sector: ") and result.stderr.count("\n") == 1
    return result.stderr


def written(root: Path) -> dict[Path, int]:
    """Every file below a directory, but for locks, and when it was written."""
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file() and path.name != ".lock"}


def json_lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.toml"
    path.write_text(tomli_w.dumps(SMALL))
    return path


@pytest.fixture(scope="module")
def supervised(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has just left the supervised phase."""
    out = tmp_path_factory.mktemp("runs") / "supervised"
    result = sector("sft", "--out", out, "--config", config)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def run(supervised: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(supervised, tmp_path / "run", symlinks=True))


@pytest.fixture
def trained(run: Path) -> Path:
    """A run killed between the training of its last round and the audit."""
    directory = RunDir(run)
    problems = draw_problems(3, 8, generator(0, "test"))
    write_examples(
        directory.round(3).examples, labelled_table(label(problems), PlaceLayout(), Provenance(3, 0, "native", ""))
    )
    tried = {"problem": problems.texts(), "direct": ["0"] * 8, "answer": ["0"] * 8, "votes": [5] * 8}
    write_table(directory.round(3).candidates, pa.table({**tried, "verdict": ["accepted"] * 8}))
    rejected = dict.fromkeys(
        ("unparsable", "outvoted", "not_direct", "not_commutative", "not_complement", "not_through"), 0
    )
    directory.round(3).write(generation(tried=8, accepted=8, rejected=rejected, agreement=1.0))
    directory.round(3).write(training())
    directory.save_checkpoint(directory.supervised(2).load_checkpoint(), directory.round(3))
    return run


@pytest.fixture
def true_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the engine answer truly with any weights."""
    for module in ("steps", "request"):
        monkeypatch.setattr(f"sector.engine.run.{module}.make_sampler", lambda engine, model, vllm: Scripted())


# Numbers at their ends: one too many, each in every command that takes it.
_GENERATE = ("generate", "--digits", 3, "--count", 4, "--out", "out")
ENDS = [
    *((*command, "--seed", 2**63) for command in (_GENERATE, ("eval",), ("bench",))),
    *((*command, "--seed", -1) for command in (_GENERATE, ("eval",))),
    *((*command, "--k", 101) for command in (_GENERATE, ("eval",), ("bench",), ("solve", "1+2"))),
    *((*command, "--temperature", value) for command in (_GENERATE, ("bench",)) for value in (11, "nan", "inf", 1e-9)),
    *((*_GENERATE, "--hard-share", value) for value in (1.5, -0.1, "nan")),
    *((*_GENERATE, "--count", value) for value in (10**10, 0, -1)),
    ("eval", "--samples", 10**10),
    ("eval", "--digits", 257),
    ("eval", "--digits", "1-99999999"),
    ("bench", "--count", 10**10),
    ("bench", "--repeats", 10**10),
    ("bench", "--batch", "9" * 5000),
    ("bench", "--digits", 257),
    ("profile", "generate", "--count", 4, "--out", "out", "--digits", 257),
    ("profile", "generate", "--digits", 2, "--count", 4, "--out", "out", "--steps", 10**10),
    ("profile", "generate", "--digits", 2, "--count", 4, "--out", "out", "--skip", 10**10),
    ("distill", "--data", "x", "--out", "out", "--steps", 10**10),
]
CORES = len(os.sched_getaffinity(0))

# Help


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_help(command: str) -> None:
    result = sector(command, "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.stdout and f"sector {command}" in result.stdout and "--json" in result.stdout


def test_help_of_all_and_version() -> None:
    result = sector("--help")
    assert result.exit_code == 0 and all(command in result.stdout for command in COMMANDS)
    assert sector("--version").stdout.strip().count(".") == 2


@pytest.mark.parametrize("words", [*COMMANDS, "bench", "profile generate", "profile distill"], ids=str)
def test_help_says_its_sentences_whole(words: str) -> None:
    """At 80 columns no line that we broke is broken again, and no option is explained by a piece of a sentence."""
    command = typer.main.get_command(app)
    for word in words.split():
        command = command.commands[word]  # type: ignore[attr-defined]
    lines = [line.strip(" \u2502") for line in sector(*words.split(), "--help").stdout.splitlines()]
    for line in inspect.getdoc(command.callback).splitlines()[1:]:  # type: ignore[arg-type]
        assert line.strip() in lines, line
    # Neither types of Python nor ranges, which would leave a narrow column to the meanings.
    assert not [line for line in lines if re.search(r"<bool>|<\w+\|.*>|<=|>=", line)]
    helps = {parameter.name: getattr(parameter, "help", "") for parameter in command.params}
    for name, said in helps.items():
        assert said and said[0] not in "(" and said.endswith("."), name
        assert not said.startswith(("Also ", "Of ", "And ")), name


# Bad input


def _truncated(run: Path) -> list[object]:
    weights = run / "checkpoints" / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return ["solve", "1+2", "--model", run]


def _wrong_columns(run: Path) -> list[object]:
    pq.write_table(pa.table({"x": [1]}), run.parent / "x.parquet")
    return ["distill", "--model", run, "--data", run.parent / "x.parquet", "--out", run.parent / "out"]


def _no_parquet(run: Path) -> list[object]:
    (run.parent / "x.parquet").write_text("no")
    return ["distill", "--model", run, "--data", run.parent / "x.parquet", "--out", run.parent / "out"]


def _config(text: str) -> Callable[[Path], list[object]]:
    def arguments(run: Path) -> list[object]:
        (run.parent / "bad.toml").write_text(text)
        return ["run", "--config", run.parent / "bad.toml", "--out", run.parent / "out"]

    return arguments


def _file(text: str) -> Callable[[Path], list[object]]:
    def arguments(run: Path) -> list[object]:
        (run.parent / "problems.txt").write_text(text)
        return ["solve", "--file", run.parent / "problems.txt", "--model", run]

    return arguments


def _generate(run: Path, *more: object, out: Path | None = None) -> list[object]:
    return ["generate", "--model", run, "--count", 4, "--out", out or run.parent / "out", *more]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param(lambda run: ["run", "--speed", "9"], "--speed", id="unknown option"),
        pytest.param(lambda run: ["--speed"], "--speed", id="unknown option of all"),
        pytest.param(lambda run: ["walk"], "walk", id="unknown command"),
        pytest.param(lambda run: ["slove"], "Did you mean 'solve'? See `sector --help`", id="misspelt command"),
        pytest.param(lambda run: ["eval"], "--model", id="missing option"),
        pytest.param(lambda run: _generate(run, "--digits", 0), "--digits", id="no digits"),
        pytest.param(lambda run: _generate(run, "--digits", 257), "257", id="too many digits"),
        pytest.param(lambda run: _generate(run, "--digits", "x"), "--digits", id="digits of letters"),
        pytest.param(lambda run: _generate(run, "--digits", 3, "--engine", "tpu"), "--engine", id="unknown engine"),
        pytest.param(lambda run: _generate(run, "--digits", 3, out=run), "is a directory", id="out a directory"),
        pytest.param(
            lambda run: _generate(run, "--digits", 3, out=run / "config.toml" / "x"),
            "cannot write",
            id="unwritable file",
        ),
        pytest.param(lambda run: ["solve", "1+2", "--fast"], "--fast", id="unknown option of solve"),
        pytest.param(lambda run: ["solve", "1+2", "--seed", 1], "No such option: --seed", id="seed of solve"),
        pytest.param(lambda run: ["solve"], "--file", id="nothing to solve"),
        pytest.param(lambda run: ["solve", "1+2", "--file", "x"], "--file", id="both"),
        pytest.param(_file(""), "empty", id="empty file"),
        pytest.param(lambda run: ["solve", "--file", run / "no"], "No such file", id="no file"),
        pytest.param(lambda run: ["solve", "1+2", "--model", run / "no"], "no such directory", id="no model"),
        pytest.param(lambda run: ["solve", "1+2", "--model", run.parent], "config.json", id="not a model"),
        pytest.param(_truncated, "checkpoint", id="truncated weights"),
        pytest.param(_wrong_columns, "'problem'", id="wrong columns"),
        pytest.param(_no_parquet, "parquet", id="no parquet"),
        pytest.param(lambda run: ["eval", "--model", run, "--digits", "0-3"], "0 digits", id="eval of no digits"),
        pytest.param(lambda run: ["eval", "--model", run, "--digits", "5-"], "5-", id="eval of half a range"),
        pytest.param(lambda run: ["eval", "--model", run, "--samples", 0], "it takes 1 to 1000000000", id="no samples"),
        *(
            pytest.param(
                lambda run, words=words: [*words, "--model", run],
                str(words[-2] if words[-1] != 257 else 257),
                id=" ".join(map(str, words))[:40],
            )
            for words in ENDS
        ),
        pytest.param(
            lambda run: _generate(run, "--digits", 3, "--workers", 900), f"{CORES} cores", id="more workers than cores"
        ),
        pytest.param(_config("untill = 9"), "untill", id="unknown key"),
        pytest.param(_config("until = 'x'"), "until", id="wrong type"),
        pytest.param(_config("filter = 'paper'"), "filter", id="no table"),
        pytest.param(_config("until = = 9"), "TOML", id="no toml"),
        pytest.param(lambda run: ["run", "--config", run / "no.toml"], "no.toml", id="no config"),
        pytest.param(lambda run: ["run", "--out", run.parent], "not a run directory", id="not a run directory"),
        pytest.param(lambda run: ["run", "--out", run / "config.toml"], "but a file", id="out a file"),
        pytest.param(
            lambda run: ["run", "--out", run / "config.toml" / "x"], "cannot write", id="unwritable directory"
        ),
        pytest.param(lambda run: ["run", "--until", 4, "--out", run.parent / "out"], "until", id="until too short"),
        pytest.param(lambda run: ["run", "--out", run, "--seed", 7], "seed = 0, not 7", id="other seed"),
        pytest.param(lambda run: ["run", "--out", run, "--preset", "base"], "preset = 'tiny'", id="other preset"),
        pytest.param(lambda run: ["sft", "--out", run, "--filter", "paper"], "filter.vote", id="other filter"),
    ],
)
def test_bad_input_is_one_line_and_loses_nothing(
    run: Path, arguments: Callable[[Path], list[object]], named: str
) -> None:
    command = arguments(run)
    before = written(run.parent)
    assert named in refused(*command)
    assert written(run.parent) == before
    assert not (run.parent / "out").exists()


def test_an_existing_directory_is_never_replaced(run: Path) -> None:
    data = run / "rounds" / "supervised" / "examples.parquet"
    assert "exists" in refused("distill", "--model", run, "--data", data, "--out", run)


def test_a_run_in_use_is_left_alone(run: Path) -> None:
    with RunDir(run).lock():
        assert "in use" in refused("run", "--out", run)


# Data for machines


@pytest.mark.usefixtures("true_engine")
def test_generate(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "7.parquet"
    result = sector("generate", "--model", run, "--digits", 7, "--count", 12, "--out", out, "--seed", 3, "--json")
    assert result.exit_code == 0, result.output
    (report,) = json_lines(result)
    assert report["tried"] == report["accepted"] == 12 and report["engine"] == "native"
    assert report["rejected"] == dict.fromkeys(
        ("unparsable", "outvoted", "not_direct", "not_commutative", "not_complement", "not_through"), 0
    )
    assert {"tokens", "seconds", "tokens_per_s", "accepted_per_s", "weights_sha256"} <= report.keys()
    rows = pq.read_table(out).to_pylist()
    assert len(rows) == 12 and len(rows[0]["guesses"]) == 5 and rows[0]["seed"] == 3
    first, second = (int(operand) for operand in rows[0]["problem"].split("+")[:2])
    assert int(rows[0]["answer"]) - first - second in (0, 1)
    assert len(out.with_suffix(".preview.jsonl").read_text().splitlines()) == 12


@pytest.mark.parametrize("engine", ["native", "hf"], ids=str)
def test_generate_when_nothing_is_accepted(run: Path, tmp_path: Path, engine: str) -> None:
    out = tmp_path / "3.parquet"
    result = sector("generate", "--model", run, "--digits", 3, "--count", 4, "--out", out, "--engine", engine, "--json")
    (report,) = json_lines(result)
    assert report["accepted"] == 0 and sum(report["rejected"].values()) == 4
    assert report["weights_sha256"] == weights_sha256(load_checkpoint(run))
    line = refused("distill", "--model", run, "--data", out, "--out", tmp_path / "out")
    assert "no examples" in line


@pytest.mark.usefixtures("true_engine")
def test_distill_one_round(run: Path, tmp_path: Path) -> None:
    for digits in (2, 3):
        sector("generate", "--model", run, "--digits", digits, "--count", 6, "--out", tmp_path / f"{digits}.parquet")
    data = ["--data", tmp_path / "2.parquet", "--data", tmp_path / "3.parquet"]
    results = [
        sector("distill", "--model", run, *data, "--out", tmp_path / out, "--steps", 3, "--json") for out in ("a", "b")
    ]
    assert all(result.exit_code == 0 for result in results), results[0].output
    (report,) = json_lines(results[0])
    # Six of two digits, and what the run keeps of the supervised phase.
    assert (report["digits"], report["examples"], report["replay_examples"]) == (3, 6, 6 + 16)
    assert report["steps"] == 3 and report["tokens"] > 0
    sha = weights_sha256(load_checkpoint(tmp_path / "a"))
    assert sha == report["weights_sha256"] == weights_sha256(load_checkpoint(tmp_path / "b"))
    assert sha != weights_sha256(load_checkpoint(run))


@pytest.mark.usefixtures("true_engine")
@pytest.mark.parametrize("policy", ["fast", "slow", "improved"], ids=str)
def test_eval(run: Path, policy: str) -> None:
    result = sector("eval", "--model", run, "--digits", "1-2,8", "--samples", 10, "--policy", policy, "--json")
    assert result.exit_code == 0, result.output
    (report,) = json_lines(result)
    assert (report["policy"], report["samples"]) == (policy, 10)
    assert [score["digits"] for score in report["lengths"]] == [1, 2, 8]
    assert all(
        {"digits", "correct", "samples", "accuracy", "low", "high"} == score.keys() for score in report["lengths"]
    )
    assert all(score["accuracy"] == 1 and score["low"] < 0.8 and score["high"] == 1 for score in report["lengths"])
    assert {score["family"] for score in report["suite"]} == {
        "carry chains",
        "carry runs",
        "unequal lengths",
        "leading zeros",
    }
    assert json.loads((run / "plots" / f"eval-{policy}.json").read_text()) == report
    assert (run / "plots" / f"eval-{policy}.png").exists()


@pytest.mark.usefixtures("true_engine")
def test_the_families_of_an_eval_hold_as_many_samples(run: Path, tmp_path: Path) -> None:
    result = sector("eval", "--model", run, "--digits", "1,7", "--samples", 1001, "--out", tmp_path, "--json")
    (report,) = json_lines(result)
    families = ("carry chains", "carry runs", "unequal lengths", "leading zeros")
    cells = [(digits, family) for digits in (1, 7) for family in families]
    assert [(score["digits"], score["family"]) for score in report["suite"]] == cells
    assert all((score["samples"], score["correct"], score["accuracy"]) == (1001, 1001, 1) for score in report["suite"])


def test_a_smaller_eval_does_not_replace_a_larger_one(run: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(run, tmp_path / "copy", symlinks=True))
    record = root / "plots" / "eval-fast.json"

    def evaluate(digits: str, samples: int, *more: object) -> str:
        return sector("eval", "--model", root, "--digits", digits, "--samples", samples, "--no-suite", *more).stderr

    assert f"record: {record}" in evaluate("1-3", 5)
    larger = record.read_bytes()
    for digits, samples in (("1-3", 4), ("1-2", 5), ("1,5", 9)):
        assert f"not written: {record} holds more" in evaluate(digits, samples)
        assert record.read_bytes() == larger
    evaluate("2", 4, "--out", record.parent)
    assert json.loads(record.read_text())["samples"] == 4
    evaluate("1-4", 5)
    record.write_text("{")
    evaluate("2", 4)
    assert json.loads(record.read_text())["samples"] == 4


def test_eval_as_a_table(run: Path, tmp_path: Path) -> None:
    model = run / "checkpoints" / "02"
    result = sector("eval", "--model", model, "--digits", "1-3", "--samples", 5, "--no-suite")
    assert result.exit_code == 0
    assert "0.0 %" in result.stdout and "carry chains" not in result.stdout
    assert "--out" in result.stderr
    result = sector("eval", "--model", model, "--digits", "1-3", "--samples", 5, "--out", tmp_path / "eval")
    assert "carry chains" in result.stdout and (tmp_path / "eval" / "eval-fast.png").exists()
    lines = result.stdout.splitlines()
    assert "95 % interval" in lines[1]
    assert len({len(places) for places in re.findall(r"\.(\d+)", " ".join(lines[2:]))}) == 1


@pytest.mark.usefixtures("true_engine")
@pytest.mark.parametrize("policy", ["fast", "slow", "improved"], ids=str)
def test_solve_a_file(run: Path, tmp_path: Path, policy: str) -> None:
    (tmp_path / "problems.txt").write_text("123+456\n\n0012+x\n9+9+1\n 5 + 7 \n")
    result = sector("solve", "--model", run, "--file", tmp_path / "problems.txt", "--policy", policy, "--json")
    assert result.exit_code == 2
    lines = json_lines(result)
    assert [line["problem"] for line in lines] == ["123+456", "0012+x", "9+9+1", "5 + 7"]
    assert [line["answer"] for line in lines] == ["579", None, "19", "12"]
    assert all(line["policy"] == policy for line in lines)
    assert [("error" in line) for line in lines] == [False, True, False, False]


@pytest.mark.usefixtures("true_engine")
def test_solve_from_stdin_and_by_the_newest_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    (run.parent / "runs").mkdir()
    run.rename(run.parent / "runs" / "one")
    result = CliRunner().invoke(app, ["solve", "--file", "-"], input="1+2\n")
    assert result.stdout == "1+2 = 3\n"
    result = CliRunner().invoke(app, ["solve", "--file", "-"], input="")
    assert result.exit_code == 2 and "stdin is empty" in result.stderr


@pytest.mark.usefixtures("true_engine")
@pytest.mark.parametrize("policy", ["fast", "slow", "improved"], ids=str)
@pytest.mark.parametrize("problem", ["456+789", "1" * 19 + "+2", "1" * 60 + "+2"], ids=["short", "between", "long"])
def test_solve_shows_its_thinking(run: Path, policy: str, problem: str) -> None:
    first, second = problem.split("+")
    result = sector("solve", problem, "--model", run, "--policy", policy, "--show")
    answer = str(int(first) + int(second))
    assert result.exit_code == 0 and result.stdout.splitlines()[-1] == f"{problem} = {answer}"
    assert max(len(line) for line in result.stdout.splitlines()[:-1]) <= 80 and "…" not in result.stdout
    for word in {
        "fast": ["direct answer"],
        "slow": ["what remains"],
        "improved": ["vote", "complement", "swapped", "agrees"],
    }[policy]:
        assert word in result.stdout


@pytest.mark.usefixtures("true_engine")
@pytest.mark.parametrize("columns", [20, 40, 60], ids="columns{}".format)
def test_a_narrow_terminal_shows_numbers_as_wide_as_it_is(
    run: Path, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = sector("solve", "1" * 30 + "+2", "--model", run, "--policy", "improved", "--show").stdout.splitlines()
    shown = [line.strip() for line in lines[:-1]]
    assert all(len(line) <= columns for line in lines[:-1])
    # Only the end of a number is short: two short lines in a row would be a number cut into pieces.
    short = [line.isdecimal() and len(line) <= 4 for line in shown]
    assert any(line.isdecimal() for line in shown) and (True, True) not in list(pairwise(short))


BAD = ["12+x", "-5+3", "9" * 257 + "+1", "", "1+2\x1b[31mRED\x07"]


@pytest.mark.usefixtures("true_engine")
@pytest.mark.parametrize("way", ["arguments", "file"], ids=str)
@pytest.mark.parametrize("bad", [[], BAD, BAD[:1]], ids=["none", "many", "one"])
def test_what_is_no_problem_costs_itself_and_the_exit_code(run: Path, tmp_path: Path, way: str, bad: list[str]) -> None:
    texts = ["1+2", *(text for text in bad if text or way == "arguments"), "9+9+1"]
    (tmp_path / "problems.txt").write_text("\n".join(texts))
    given = texts if way == "arguments" else ["--file", tmp_path / "problems.txt"]
    result = sector("solve", *given, "--model", run, "--json")
    lines = json_lines(result)
    assert [line["problem"] for line in lines] == texts
    assert [line["answer"] for line in lines] == ["3", *[None] * (len(texts) - 2), "19"]
    assert [("error" in line) for line in lines] == [False, *[True] * (len(texts) - 2), False]
    assert result.exit_code == (2 if bad else 0) and result.stderr.count("\n") == bool(bad)
    if bad:
        assert f"{len(texts) - 2} of {len(texts)} problems" in result.stderr
    plain = sector("solve", *given, "--model", run)
    # Each reason once: of a single problem on stderr, of several on their lines.
    assert (plain.stderr.count("'12+x'"), plain.stdout.count("'12+x'")) == ((bad == BAD[:1]), (bad == BAD))
    assert plain.exit_code == result.exit_code and len(plain.stdout.splitlines()) == len(texts)
    assert plain.stdout.startswith("1+2 = 3\n") and plain.stdout.endswith("9+9+1 = 19\n")
    assert plain.stdout.replace("\n", "").isprintable()


def test_solve_without_an_answer_says_why(run: Path) -> None:
    result = sector("solve", "123+456", "--model", run)
    assert result.exit_code == 0
    assert "does not parse" in result.stdout


# Runs


def test_sft_leaves_a_run_that_run_goes_on_with(supervised: Path, config: Path, tmp_path: Path) -> None:
    assert {"config.toml", "metrics.jsonl", "rounds", "checkpoints", "plots"} <= {p.name for p in supervised.iterdir()}
    result = sector("sft", "--out", tmp_path / "other", "--config", config, "--json")
    events = json_lines(result)
    assert {event["event"] for event in events} == {"train", "goal", "round", "done"}
    assert events[-1] == {**events[-1], "event": "done", "frontier": 2, "stopped_because": "reached"}
    best = [load_checkpoint(root) for root in (supervised, tmp_path / "other")]
    assert weights_sha256(best[0]) == weights_sha256(best[1])


def test_run_stops_where_agreement_ends(run: Path) -> None:
    result = sector("run", "--out", run, "--json")
    assert result.exit_code == 3
    done = json_lines(result)[-1]
    assert (done["event"], done["frontier"]) == ("done", 2) and done["seconds"] > 0
    assert done["stopped_because"].startswith("no agreement: ")
    assert result.stderr.count("\n") == 1 and str(run / "checkpoints" / "best") in result.stderr
    assert load_checkpoint(run)


def test_run_resumes_to_the_end(trained: Path) -> None:
    result = sector("run", "--out", trained, "--until", 3, "--seed", 0, "--json")
    assert result.exit_code == 0, result.output
    events = json_lines(result)
    assert [event["event"] for event in events] == ["round", "frontier", "done"]
    assert (events[-1]["frontier"], events[-1]["stopped_because"]) == (3, "reached")


def test_until_alone_may_change(trained: Path) -> None:
    before = (trained / "config.toml").read_text()
    result = sector("run", "--out", trained, "--until", 4, "--json")
    assert result.exit_code == 3
    assert (trained / "config.toml").read_text() == before.replace("until = 3", "until = 4")


def test_until_is_raised_or_kept_but_never_below_what_is_reached(trained: Path) -> None:
    assert sector("run", "--out", trained).exit_code == 0
    before = (trained / "config.toml").read_text()
    assert "has reached 3 digits" in refused("run", "--out", trained, "--until", 2)
    assert (trained / "config.toml").read_text() == before
    for command in (["run", "--until", 3], ["run"], ["sft"]):
        events = json_lines(sector(*command, "--out", trained, "--json"))
        assert events[-1]["frontier"] == 3, command
        said = sector(*command, "--out", trained).stdout
        assert "Done: 3 digits" in said and "\nNext:\n" in said


def test_where_there_is_no_terminal_lines_are_plain(trained: Path) -> None:
    result = sector("run", "--out", trained)
    assert result.exit_code == 0 and result.stderr == ""
    assert "Round at 3 digits: accepted 8 of 8, label error 0.00 %" in result.stdout
    assert f"sector eval --model {trained} --digits 1-3" in result.stdout
    assert "\x1b" not in result.stdout


def test_options_win_over_the_config(config: Path, tmp_path: Path) -> None:
    result = sector(
        "sft", "--out", tmp_path / "out", "--config", config, "--seed", 5, "--filter", "paper", "--engine", "hf"
    )
    assert result.exit_code == 0, result.output
    settled = RunDir(tmp_path / "out").read_config()
    assert (settled.seed, settled.engine, settled.until) == (5, "hf", 3)
    assert (settled.filter.vote, settled.filter.checks) == ("majority", ("commutative",))


def test_divergence_is_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_: object) -> Any:
        raise Diverged("loss is nan at step 3")
        yield

    monkeypatch.setattr("sector.engine.selfplay.self_play", diverge)
    assert "loss is nan at step 3" in refused("run", "--out", run, code=1)


@pytest.mark.parametrize(
    ("raised", "code"),
    [(Ended(signal.SIGHUP), 128 + signal.SIGHUP), (KeyboardInterrupt(), 130)],
    ids=["SIGHUP", "Ctrl-C"],
)
def test_a_signal_inside_of_compiled_code_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int
) -> None:
    """As in Ray's: Python says of it that it returned with an exception set."""

    def wait(*_: object, **__: object) -> Any:
        raise SystemError("returned a result with an exception set") from raised

    monkeypatch.setattr("sector.engine.api.labels.generate", wait)
    line = refused("generate", "--model", run, "--digits", 3, "--count", 4, "--out", run / "out", code=code)
    assert "before it was done" in line


def test_ctrl_c_is_one_line_and_the_run_goes_on_later(config: Path, tmp_path: Path) -> None:
    values = {**SMALL, "supervised": {**SMALL["supervised"], "cycle_steps": 100_000}}
    (tmp_path / "long.toml").write_text(tomli_w.dumps(values))
    command = [SECTOR, "run", "--out", tmp_path / "run", "--config", tmp_path / "long.toml", "--json"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell that runs tests in the background has them ignore Ctrl-C.
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes, **heed) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "train"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(out.splitlines()[-1])["stopped_because"] == "interrupted"
    assert err.count("\n") == 1 and "resumes" in err
    with RunDir(tmp_path / "run").lock():
        assert RunDir(tmp_path / "run").exists
