"""Models of random weights for measurements: what is written is what is measured."""

import sys
from pathlib import Path

import pytest
import torch

from sector.benchmarks import random_model
from sector.engine.models.pretrained import open_pretrained


def test_the_folder_opens_as_a_pretrained_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["random_model", str(tmp_path / "model"), "--shape", "rehearsal"])
    random_model.main()
    opened, made = open_pretrained(tmp_path / "model"), random_model.random_model("rehearsal")
    assert opened.weights().keys() == made.weights().keys()
    assert all(torch.equal(tensor, made.weights()[name]) for name, tensor in opened.weights().items())
    assert opened.alphabet == made.alphabet
