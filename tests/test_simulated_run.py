"""A round of self-play on a simulated GPU: an audit, generation and training; nothing that a GPU refuses."""

from pathlib import Path

import pytest
import small_text_run
from simulated_gpu import GPU, SimulatedGpu, gpu
from small_run import SMALL, give_weights, start
from small_text import save_text_model, small_text_model

from sector.engine.models import checkpoint
from sector.engine.run import plan, steps
from sector.engine.selfplay import self_play

__all__ = ["gpu"]


def test_a_round_of_self_play(gpu: SimulatedGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, config = start(tmp_path / "run", until=7, audit_samples=2, round={**SMALL["round"], "candidates": 40})
    give_weights(run)
    for module in (checkpoint, plan, steps):
        monkeypatch.setattr(module, "best_device", lambda: GPU)
    with gpu:
        for _ in self_play(run, config):
            pass
    supervised, first = run.metrics()
    assert (supervised.digits, first.digits) == (6, 7)
    assert first.accepted and first.tokens_trained
    # Generated in graphs, and trained in graphs.
    assert gpu.replays > 10
    assert gpu.waits and gpu.launches


def test_a_round_of_text(gpu: SimulatedGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_text_model(small_text_model(initializer_range=0.05), tmp_path / "model")
    fewer = {"supervised": {"cycle_steps": 20}}
    run = small_text_run.start(tmp_path / "run", model, **fewer)
    for module in (checkpoint, plan, steps):
        monkeypatch.setattr(module, "best_device", lambda: GPU)
    with gpu:
        for _ in self_play(run, run.read_config()):
            pass
    _, first = run.metrics()
    assert first.digits == 3 and first.tokens_trained
    assert gpu.replays > 10
