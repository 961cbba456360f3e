"""Cells on a GPU: bad arguments are named, and a cell of the improved policy that fails shows in the exit code."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sector.benchmarks import gpu_cells, text_cells, train_cells

MODEL = Path(__file__).parent / "data" / "taught"


def _arguments(monkeypatch: pytest.MonkeyPatch, model: Path, words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_cells", str(model), "--digits", "2", "--repeats", "1", *words.split()])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--decode kernels,kernel", "there is no 'kernel'; choose from auto, megakernel, kernels, verify, hf"),
        ("--dtypes float16", "there is no 'float16'; choose from float32, bfloat16"),
        ("--rows 4,0", "must be at least 1, not 0"),
        ("--repeats 0", "must be at least 1, not 0"),
    ],
    ids=["decode", "dtypes", "rows", "repeats"],
)
def test_bad_arguments_are_named(
    words: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _arguments(monkeypatch, MODEL, words)
    with pytest.raises(SystemExit) as exit_:
        gpu_cells.main()
    assert exit_.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: argument {words.split()[0]}: {message}\n")


@pytest.mark.parametrize("cells", [text_cells, train_cells])
@pytest.mark.parametrize("option", ["--rows", "--steps"])
def test_counts_of_training_are_at_least_one(
    cells: ModuleType, option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["cells", option, "0"])
    with pytest.raises(SystemExit) as exit_:
        cells.main()
    assert exit_.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: argument {option}: must be at least 1, not 0\n")


def test_a_missing_model_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _arguments(monkeypatch, tmp_path / "none", "--rows 2")
    assert gpu_cells.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"gpu_cells: no such directory: {tmp_path / 'none'}; ")


def test_a_cell_that_fails_shows_in_the_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other cells are measured."""
    _arguments(monkeypatch, MODEL, "--rows 2 --compare 2 --dtypes float32 --decode kernels,hf")

    def refused(*_: object) -> None:
        raise RuntimeError("no memory")

    assert gpu_cells.main() == 0
    monkeypatch.setattr(gpu_cells, "HuggingFaceSampler", refused)
    capsys.readouterr()
    assert gpu_cells.main() == 1
    *_, kernels, hf = map(json.loads, capsys.readouterr().out.splitlines())
    assert kernels["accepted"] == 2 and kernels["differing"] == 0
    assert hf["failed"] == "RuntimeError: no memory"
