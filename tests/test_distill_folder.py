"""Training on a folder of parts: as on one file if it is small, as a stream in windows if not."""

import json
from pathlib import Path

import pytest
from two_ranks import command_of_two
from typer.testing import CliRunner

import sector
from sector.cli.app import app
from sector.engine.models.checkpoint import save_checkpoint
from sector.engine.models.sector import new_model

# Two parts and more than one window of 250 rows.
COUNT = 500


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and the same rows as a folder and as a file."""
    home = tmp_path_factory.mktemp("home")
    save_checkpoint(new_model("tiny", 0), home / "model")
    model = sector.load("addition")
    for out, form in ((f"{home}/folder/", {"part_rows": 250}), (f"{home}/one.parquet", {})):
        sector.generate(model, 5, COUNT, out, k=1, seed=4, **form)
    return home


def command(home: Path, data: str, *more: object) -> list[str]:
    fixed = ["distill", "--model", home / "model", "--data", home / data, "--steps", 4, "--json"]
    return [str(word) for word in [*fixed, *more]]


def report(home: Path, data: str, out: Path, *more: object) -> dict:
    result = CliRunner().invoke(app, command(home, data, *more, "--out", out), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_folder_gives_the_weights_of_one_file_with_its_rows(home: Path, tmp_path: Path) -> None:
    one, folder = report(home, "one.parquet", tmp_path / "one"), report(home, "folder", tmp_path / "folder")
    keys = ("weights_sha256", "examples", "loss", "tokens", "digits", "replay_examples")
    assert {key: one[key] for key in keys} == {key: folder[key] for key in keys} and one["examples"] > 450


def test_a_stream_gives_the_same_weights_in_any_number_of_processes(home: Path, tmp_path: Path) -> None:
    held = report(home, "folder", tmp_path / "held")
    alone = report(home, "folder", tmp_path / "one", "--window", 250)
    with command_of_two(*command(home, "folder", "--window", 250, "--out", tmp_path / "two")) as (first, second):
        together, silent = json.loads(first.stdout.read()), second.stdout.read()
    assert together["weights_sha256"] == alone["weights_sha256"] != held["weights_sha256"]
    assert together["examples"] == alone["examples"] == held["examples"] and not silent


def test_a_damaged_part_is_named_before_anything_is_trained(home: Path, tmp_path: Path) -> None:
    for path in (home / "folder").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    part = tmp_path / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:1000])
    result = CliRunner().invoke(
        app, command(tmp_path, str(tmp_path), "--out", tmp_path / "out", "--model", home / "model")
    )
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert (
        "part-00001.parquet is damaged or missing; the `sector generate` that wrote it makes it again" in result.stderr
    )
    assert not (tmp_path / "out").exists()
