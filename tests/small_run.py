"""Runs small enough for a test: how to start one, how to kill one, and whether two ended alike."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sector.benchmarks.small_run import SECTOR, SMALL
from sector.engine.checkpoint import load_checkpoint, weights_sha256
from sector.engine.config import RunConfig, run_config
from sector.engine.rundir import RunDir


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


def assert_same(root: Path, finished: Path) -> None:
    """The same weights, and the same data to the byte; nothing left over."""
    assert final_weights(root) == final_weights(finished)
    for path in sorted(finished.glob("rounds/*/*.parquet")):
        assert (root / path.relative_to(finished)).read_bytes() == path.read_bytes(), path.name
    digits = [line["digits"] for line in RunDir(root).metrics()]
    assert digits == [line["digits"] for line in RunDir(finished).metrics()]
    for name in ("latest", "best"):
        assert os.readlink(root / "checkpoints" / name) == os.readlink(finished / "checkpoints" / name)
    left = [path for path in root.rglob(".*") if path.name != ".lock"]
    assert not left and not (root / "training.safetensors").exists()
