"""`sector export`: two folders as hubs keep them, which other libraries read as they are."""

import os
import shlex
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from datasets import load_dataset
from small_run import final_weights
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import sector
from sector.cli.app import app
from sector.engine.api.cards import run_command
from sector.engine.api.settings import chosen_settings
from sector.engine.config import run_config
from sector.engine.errors import InputError
from sector.engine.run.directory import RunDir
from sector.engine.tasks import find_task


def refused(*words: object) -> str:
    """The line by which a command is refused."""
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 2 and result.stdout == "" and result.stderr.count("\n") == 1, result.output
    return result.stderr


@pytest.fixture(scope="module")
def exported(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("hub") / "new" / "small"
    result = CliRunner().invoke(app, ["export", str(finished_run), "--to", str(to)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == f"model: {to / 'model'}"
    return to


def rows_of(folder: Path) -> pd.DataFrame:
    (file,) = (folder / "dataset" / "data").glob("*.parquet")
    return pd.read_parquet(file)


def test_the_folders_hold_nothing_else(exported: Path) -> None:
    files = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    model = {"README.md", "config.json", "generation_config.json", "learned.json", "model.safetensors"}
    model |= {"chat_template.jinja", "tokenizer_config.json"}
    data = {"dataset/README.md", "dataset/data/train-00000-of-00001.parquet"}
    assert files == {f"model/{name}" for name in model} | data
    assert [path.name for path in exported.parent.iterdir()] == ["small"]


def test_transformers_reads_the_model(exported: Path, finished_run: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(exported / "model")
    assert AutoTokenizer.from_pretrained(exported / "model").task == "addition"
    best = sector.load(finished_run)
    assert all(
        torch.equal(*pair) for pair in zip(model.state_dict().values(), best.model.state_dict().values(), strict=True)
    )
    assert sector.load(exported / "model").weights_sha256 == final_weights(finished_run)


def test_datasets_reads_the_rows_and_their_card(exported: Path, tmp_path: Path) -> None:
    rows = load_dataset(str(exported / "dataset"), split="train", cache_dir=str(tmp_path))
    assert {"prompt", "completion"} <= set(rows.column_names) and isinstance(rows[0]["prompt"], str)
    assert len(rows) == len(rows_of(exported))
    front = yaml.safe_load((exported / "dataset" / "README.md").read_text().split("---")[1])
    assert front["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]


def test_rows_are_the_examples_as_text(exported: Path, finished_run: Path) -> None:
    rows, run = rows_of(exported), RunDir(finished_run)
    for line in run.metrics():
        folder = run.round(line.digits) if line.is_round else run.supervised(line.digits)
        examples = pd.read_parquet(folder.examples)
        mine = rows[rows["round"] == (line.digits if line.is_round else 0)]
        answers = mine[mine["kind"] == "answer"]
        assert list(answers["problem"]) == list(examples["problem"])
        assert [int(text) for text in answers["completion"]] == [int(text) for text in examples["answer"]]
        assert [list(guesses) for guesses in answers["guesses"]] == [list(guesses) for guesses in examples["guesses"]]
        steps = mine[mine["kind"] == "simplification"]
        assert list(steps["completion"]) == [text for text in examples["simplification"] if text]
    assert all(rows["prompt"] == rows["problem"] + rows["kind"].map({"answer": "=", "simplification": ">"}))


def test_chains_are_whole_and_lead_to_the_guesses(exported: Path) -> None:
    rows = rows_of(exported)
    of_rounds = rows[(rows["round"] > 0) & (rows["kind"] == "answer")]
    assert len(of_rounds) > 20
    for row in of_rounds.to_dict("records"):
        assert row["chain"][0] == row["simplification"] and len(row["chain"]) == len(row["guesses"])
        found = "".join(step.rpartition("|")[2] for step in reversed(row["chain"]))
        # Each guess ends in the digits that were found before it.
        assert row["guesses"][-1].zfill(len(found)).endswith(found)


def test_the_tokenizer_reads_each_row(exported: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported / "model")
    rows = rows_of(exported)
    for row in rows.sample(50, random_state=0).to_dict("records"):
        ids = tokenizer(row["prompt"] + row["completion"])["input_ids"]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert text.replace("=0", "=") == (row["prompt"] + row["completion"]).replace("=0", "=") and len(ids) > 4


def test_the_cards_give_the_commands(exported: Path, finished_run: Path) -> None:
    config = RunDir(finished_run).read_config()
    for name in ("model", "dataset"):
        card = (exported / name / "README.md").read_text()
        assert run_command(config) in card and final_weights(finished_run) in card and str(finished_run) not in card
    words = shlex.split(run_command(config))
    settings = [text for option, text in pairwise(words) if option == "--set"]
    values, _ = chosen_settings(None, settings, until=int(words[5]), seed=int(words[7]))
    assert run_config(values) == config


def test_a_card_tells_the_evaluation_of_its_weights(finished_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run", symlinks=True))
    audited = (sector.export(run, tmp_path / "before").model / "README.md").read_text()
    assert "by the audit at the end of the run" in audited and "| 2 | 8 | 8 |" in audited
    scores = sector.evaluate(run, "1-2", 20).values
    card = (sector.export(run, tmp_path / "after").model / "README.md").read_text()
    assert "`sector eval --model RUN --digits 1-2 --samples 20 --seed 0`" in card
    assert f"| 2 | {scores['lengths'][1]['correct']} | 20 |" in card and "Lowest accuracy on harder problems" in card


@pytest.mark.parametrize("task", ["multiplication", "subtraction"], ids=str)
def test_other_tasks(task: str, tmp_path: Path) -> None:
    few = {"max_digits": 2, "cycle_steps": 1, "max_cycles": 1, "examples": 6}
    list(sector.run(tmp_path / "run", task=task, until=2, audit_samples=2, supervised=few, round={"probe": 2}))
    written = sector.export(tmp_path / "run", tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert written.rows == len(rows) and set(rows["task"]) == {task} and all(rows["completion"] != "")
    whole = rows[(rows["kind"] == "answer") & (rows["digits"] == 2)]
    parse: Any = find_task(task).parse
    assert len(parse(list(whole["problem"][:1]), 2)) == 1
    tokenizer = AutoTokenizer.from_pretrained(written.model)
    for text in rows["prompt"] + rows["completion"]:
        read = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
        # The model writes a zero in front of an answer that has none in the rows.
        assert read in (text, text.replace("=", "=0"))
    assert f"--task {task}" in (written.model / "README.md").read_text()


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for name in ("taken", "link", "file"):
        assert "exists; choose another --to" in refused("export", finished_run, "--to", tmp_path / name)
    assert "not a run directory" in refused("export", tmp_path / "no", "--to", tmp_path / "out")
    assert "not a run directory" in refused("export", finished_run / "checkpoints", "--to", tmp_path / "out")
    assert "cannot write" in refused("export", finished_run, "--to", tmp_path / "file" / "out")
    assert "leave out --wide-heads" in refused("export", finished_run, "--to", tmp_path / "out", "--wide-heads")
    with pytest.raises(InputError, match="exists"):
        sector.export(finished_run, tmp_path / "taken")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_export_that_fails_leaves_nothing(finished_run: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(finished_run, tmp_path / "run", symlinks=True))
    file = damaged / "rounds" / "08" / "examples.parquet"
    file.write_bytes(file.read_bytes()[:100])
    # What a kill left before, as a link that must not be followed.
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    (tmp_path / ".out.partial").symlink_to("mine")
    assert "08" in refused("export", damaged, "--to", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "run"] and os.listdir(tmp_path / "mine")
