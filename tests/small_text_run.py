"""Runs of the loop on a pretrained model that are small enough for a test: how to start and how to kill one."""

from pathlib import Path
from typing import Any

from sector.engine.config import merged, run_config
from sector.engine.models.checkpoint import load_checkpoint, weights_sha256
from sector.engine.run.directory import RunDir
from sector.engine.selfplay import self_play

# So little trained that it does not think; the round learns those samples of fast answers that parse.
SMALL: dict[str, Any] = {
    "until": 3,
    "audit_samples": 4,
    "supervised": {"max_digits": 2, "cycle_steps": 60, "max_cycles": 1, "examples": 20},
    "round": {
        "candidates": 100,
        "cycle_steps": 4,
        "max_cycles": 2,
        "probe": 8,
        "probe_trained": 0,
        "min_agreement": 0.0,
    },
    "filter": {
        "vote": "off",
        "checks": [],
        "k": 1,
        "think": False,
        "through": "off",
        "temperature": 1.0,
    },
}
RATE = {"supervised": {"trainer": {"learning_rate": 3e-3}}}


def start(root: Path, pretrained: Path, **changes: Any) -> RunDir:
    run = RunDir(root)
    run.root.mkdir(parents=True)
    run.write_config(run_config(merged(merged({**SMALL, "pretrained": str(pretrained)}, RATE), changes)))
    return run


def weights_of(run: RunDir, digits: int) -> str:
    return weights_sha256(load_checkpoint(run.round(digits).checkpoint))


def kill(run: RunDir, at: str, step: int) -> None:
    """Run to the first event of a kind, and of a step if it has one."""
    for event in self_play(run, run.read_config()):
        if event.kind == at and getattr(event, "step", step) == step:
            return
