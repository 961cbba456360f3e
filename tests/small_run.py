"""Runs small enough for a test: their settings, how to start one, and how to kill one."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sector.engine.checkpoint import load_checkpoint, weights_sha256
from sector.engine.config import RunConfig, run_config
from sector.engine.rundir import RunDir

SECTOR = Path(sys.executable).with_name("sector")

# Small enough for a test, and so little trained that no round meets its goal: every cycle is used.
SMALL: dict[str, Any] = {
    "until": 8,
    "audit_samples": 20,
    "supervised": {"cycle_steps": 300, "max_cycles": 1, "examples": 50},
    "round": {
        "candidates": 300,
        "cycle_steps": 8,
        "max_cycles": 2,
        "probe": 40,
        "target_agreement": 1.0,
        "min_agreement": 0.0,
    },
    "filter": {"vote": "unanimous", "second_look": "off", "direct": False},
}


def start(root: Path, **changes: Any) -> tuple[RunDir, RunConfig]:
    config = run_config({**SMALL, **changes})
    run = RunDir(root)
    run.root.mkdir(parents=True, exist_ok=True)
    run.write_config(config)
    return run, config


def final_weights(root: Path) -> str:
    return weights_sha256(load_checkpoint(root / "checkpoints" / "latest"))


def kill_when(root: Path, reached: Callable[[dict[str, Any]], bool]) -> bool:
    """Run `sector run` on the directory and kill -9 it at the first event that matches; False if it ended before."""
    command = [str(SECTOR), "run", "--out", str(root), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if reached(json.loads(line)):
                process.send_signal(signal.SIGKILL)
                return True
    return False
