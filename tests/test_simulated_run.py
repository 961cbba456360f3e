"""A round of self-play on a simulated GPU: an audit, generation and training; nothing that a GPU refuses."""

from pathlib import Path

import pytest
from simulated_gpu import GPU, SimulatedGpu, gpu
from small_run import SMALL, give_weights, start

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
