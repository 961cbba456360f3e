"""Cells of training a model of text: one line for each set of settings, also for one that fails."""

import json
import sys

import pytest

from sector.benchmarks import text_cells
from sector.benchmarks.text_cells import CELLS


def _arguments(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["text_cells", "--shape", "rehearsal", "--steps", "1", *words.split()])


def test_a_cell_for_each_setting_that_saves_memory(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    _arguments(monkeypatch, "--digits 3 --rows 5")
    text_cells.main()
    machine, *cells = map(json.loads, capsys.readouterr().out.splitlines())
    assert machine["hardware"] and [cell["cell"] for cell in cells] == list(CELLS)
    for cell in cells:
        assert cell["tokens_per_s"] > 0 and cell["peak_bytes"] > 0 and cell["rows"] == 10, cell
        assert (cell["trained_parameters"] < cell["parameters"] / 2) == ("lora_rank" in cell["settings"])


def test_a_cell_that_fails_is_a_line_that_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    _arguments(monkeypatch, "--cells lora,float32 --digits 2 --rows 2")
    text_cells.main()
    _, lora, plain = map(json.loads, capsys.readouterr().out.splitlines())
    assert lora["failed"] == "InputError: trainer.lora_rank needs peft; pip install 'sector-lm[lora]'"
    assert plain["steps"] == 1 and "failed" not in plain
