"""The loop on a pretrained model: a small random one, from its directory to its first round, killed and resumed."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tomli_w
from small_text import save_text_model, small_text_model
from small_text_run import RATE, SMALL, kill, start, weights_of
from two_ranks import command_of_two
from typer.testing import CliRunner, Result

from sector.cli.app import app
from sector.engine.config import run_config
from sector.engine.errors import InputError
from sector.engine.models.checkpoint import load_checkpoint, weights_sha256
from sector.engine.models.text import TextModel
from sector.engine.run.directory import RunDir
from sector.engine.run.phases import Phases
from sector.engine.selfplay import self_play


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_model(small_text_model(initializer_range=0.05), tmp_path_factory.mktemp("pretrained") / "model")


def _sector(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="sector", catch_exceptions=False)


@pytest.fixture(scope="module")
def finished(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = start(tmp_path_factory.mktemp("runs") / "first", pretrained)
    for _ in self_play(run, run.read_config()):
        pass
    return run


def test_defaults_of_a_pretrained_start(pretrained: Path) -> None:
    config = run_config({"pretrained": str(pretrained), "round": {"trainer": {"learning_rate": 5e-5}}})
    assert config.engine == "native" and config.supervised.trainer.learning_rate == 2e-4
    assert config.round.trainer.learning_rate == 5e-5 and config.round.trainer.weight_decay == 0.01
    assert config.round.candidates == run_config({"schedule": "paper"}).round.candidates


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"digit_order": "lsd"}, "plain text has the most significant digit first; leave out digit_order"),
        (
            {"filter": {"use_chain": False, "think_through": False, "checks": ["direct"]}},
            "only two guesses, one per operand order; lower k",
        ),
    ],
    ids=["lsd", "guesses"],
)
def test_settings_that_text_does_not_take(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        run_config({"pretrained": "model", **given})


def test_a_whole_run(finished: RunDir, pretrained: Path) -> None:
    assert weights_of(finished, 0) == weights_sha256(load_checkpoint(pretrained))
    assert len({weights_of(finished, digits) for digits in (0, 2, 3)}) == 3
    supervised, first = finished.metrics()
    assert not supervised.is_round and first.is_round and first.digits == 3
    assert first.accepted > 0 and first.tokens_trained > 0 and first.label_error is not None
    model = load_checkpoint(finished.root)
    assert isinstance(model, TextModel)
    row = pq.read_table(finished.round(3).examples).slice(0, 1).to_pylist()[0]
    assert model.tokenizer.decode(row["prompt_ids"]) == f"{row['problem']}="
    assert model.tokenizer.decode(row["answer_ids"]) == f"{row['answer'].zfill(3)}\n"
    assert row["engine"] == "native" and row["weights_sha256"] == weights_of(finished, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="vLLM is for Linux")
def test_a_whole_run_on_vllm(finished: RunDir, pretrained: Path, tmp_path: Path) -> None:
    config = tmp_path / "small.toml"
    config.write_text(tomli_w.dumps({**SMALL, "supervised": SMALL["supervised"] | RATE["supervised"]}))
    settings = [f"--set=vllm.{each}" for each in ("max_digits=8", "memory_mib=64", "rows=64")]
    run = RunDir(tmp_path / "run")
    result = _sector(
        "run",
        "--pretrained",
        pretrained,
        "--engine",
        "vllm",
        "--config",
        config,
        *settings,
        "--out",
        run.root,
        "--json",
    )
    assert result.exit_code == 0, result.output
    done = json.loads(result.stdout.splitlines()[-1])
    assert done["event"] == "done" and done["frontier"] == 3
    # What the weights are before samples are drawn does not depend on the engine.
    assert weights_of(run, 2) == weights_of(finished, 2)
    row = pq.read_table(run.round(3).examples).slice(0, 1).to_pylist()[0]
    assert row["engine"] == "vllm" and row["weights_sha256"] == weights_of(run, 2)


@pytest.mark.parametrize(
    ("at", "step"), [("train", 30), ("goal", 0), ("generate", 0)], ids=["train", "goal", "generate"]
)
def test_a_killed_run_ends_with_the_sameweights_of(
    finished: RunDir, pretrained: Path, tmp_path: Path, at: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sector.engine.run.phases.SNAPSHOT_STEPS", 20)
    mine = Path(shutil.copytree(pretrained, tmp_path / "model"))
    run = start(tmp_path / "run", mine)
    kill(run, at, step)
    # What it started from is its own by now.
    shutil.rmtree(mine)
    for _ in self_play(run, run.read_config()):
        pass
    assert [weights_of(run, digits) for digits in (0, 2, 3)] == [weights_of(finished, digits) for digits in (0, 2, 3)]


def test_commands_take_a_finished_run(finished: RunDir, tmp_path: Path) -> None:
    out = tmp_path / "3.parquet"
    generated = _sector(
        "generate", "--model", finished.root, "--digits", 3, "--count", 40, "--out", out, "--engine", "hf",
        "--filter", "none", "--k", 1, "--json",
    )  # fmt: skip
    assert generated.exit_code == 0, generated.output
    assert json.loads(generated.stdout)["tried"] == 40
    data = finished.round(3).examples
    distilled = _sector("distill", "--model", finished.root, "--data", data, "--out", tmp_path / "new", "--steps", 2)
    assert distilled.exit_code == 0, distilled.output
    assert isinstance(load_checkpoint(tmp_path / "new"), TextModel)
    scored = _sector("eval", "--model", tmp_path / "new", "--digits", "1-2", "--samples", 4, "--json")
    assert [line["samples"] for line in json.loads(scored.stdout)["lengths"]] == [4, 4]
    solved = _sector("solve", "12+34", "--model", tmp_path / "new", "--json")
    assert json.loads(solved.stdout)["problem"] == "12+34"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["bench", "--kernels"], "is a model of text; --kernels takes sector's own model of addition"),
        (["bench", "--savings"], "is a model of text; --savings takes sector's own model of addition"),
    ],
    ids=["kernels", "savings"],
)
def test_what_models_of_text_do_not_do(finished: RunDir, command: list[Any], reason: str) -> None:
    result = _sector(*command, "--model", finished.root)
    assert result.exit_code == 2 and reason in result.stderr
    assert result.stderr.strip().count("\n") == 0


def test_workers_generate_what_one_process_does(finished: RunDir, tmp_path: Path) -> None:
    options = ["--model", finished.root, "--digits", 2, "--count", 300, "--filter", "none"]
    for name, more in (("alone", []), ("crew", ["--workers", 2])):
        written = _sector("generate", *options, *more, "--out", tmp_path / f"{name}.parquet", "--json")
        assert written.exit_code == 0, written.output
        assert json.loads(written.stdout.splitlines()[-1])["accepted"] > 0
    assert (tmp_path / "alone.parquet").read_bytes() == (tmp_path / "crew.parquet").read_bytes()


def test_sft_takes_settings_one_by_one(pretrained: Path, tmp_path: Path) -> None:
    settings = ["supervised.max_digits=2", "supervised.cycle_steps=1", "supervised.max_cycles=1", "audit_samples=1"]
    settings += ["supervised.examples=2", "round.probe=1", "round.probe_trained=0", "filter.k=1"]
    asked = [word for setting in settings for word in ("--set", setting)]
    result = _sector("sft", "--out", tmp_path / "run", "--pretrained", pretrained, *asked)
    assert result.exit_code == 0, result.output
    config = RunDir(tmp_path / "run").read_config()
    assert config.pretrained == str(pretrained) and config.supervised.cycle_steps == 1


def test_the_layout_of_a_run_is_its_tokenizers(finished: RunDir) -> None:
    layout = Phases(finished, finished.read_config())._layout
    assert layout.num_variants == 1 and layout.pad_id == 0


def test_two_processes_train_a_model_of_text_to_the_weights_of_one(
    pretrained: Path, finished: RunDir, tmp_path: Path
) -> None:
    """Tolerance: none."""
    run = start(tmp_path / "two", pretrained)
    with command_of_two("run", "--out", run.root):
        pass
    for digits in (2, 3):
        assert weights_of(run, digits) == weights_of(finished, digits)
