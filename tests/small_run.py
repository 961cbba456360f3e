"""Runs small enough for a test: how to start one, how to kill one, and whether two ended alike."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from forked import forked

from sector.benchmarks.small_run import small
from sector.engine.config import RunConfig, run_config
from sector.engine.models.checkpoint import load_checkpoint, weights_sha256
from sector.engine.run.directory import RunDir
from sector.engine.run.records import TrainingRecord

# A round takes a second. Neither goal is met, since some answers never agree: every cycle is used.
SMALL = small(
    audit_samples=8,
    round={
        # A block, and a short one.
        "candidates": 260,
        "cycle_steps": 5,
        "probe": 10,
        "probe_trained": 4,
        "target_trained": 1.0,
        "max_fall": 1.0,
        "trainer": {"shard_rows": 4, "warmup_steps": 2},
    },
)

# Weights and record of a supervised phase that has learned enough to agree with itself on most problems; made by
#     sector sft --out DIR --set supervised.cycle_steps=700 --set supervised.max_cycles=1
# and taken from DIR/checkpoints/06 and DIR/rounds/supervised. That a phase trains such weights is for other tests.
SUPERVISED = Path(__file__).parent / "data" / "supervised"


def start(root: Path, **changes: Any) -> tuple[RunDir, RunConfig]:
    config = run_config({**SMALL, **changes})
    run = RunDir(root)
    run.root.mkdir(parents=True, exist_ok=True)
    run.write_config(config)
    return run, config


def give_weights(run: RunDir) -> None:
    """Give a new run the weights of a supervised phase on six digits, so that its own phase is only an audit."""
    run.save_checkpoint(load_checkpoint(SUPERVISED), run.supervised(6))
    run.supervised(6).write(TrainingRecord.model_validate_json((SUPERVISED / "training.json").read_text()))


def final_weights(root: Path) -> str:
    return weights_sha256(load_checkpoint(root / "checkpoints" / "latest"))


def kill_when(root: Path, reached: Callable[[dict[str, Any]], bool]) -> bool:
    """Run `sector run` on the directory and kill -9 it at the first event that matches; False if it ended before."""
    with forked("run", "--out", root, "--json") as process:
        for line in process.stdout:
            if reached(json.loads(line)):
                process.kill()
                return True
    return False


def assert_same(root: Path, finished: Path) -> None:
    """The same weights, and the same data to the byte; nothing left over."""
    assert final_weights(root) == final_weights(finished)
    for path in sorted(finished.glob("rounds/*/*.parquet")):
        assert (root / path.relative_to(finished)).read_bytes() == path.read_bytes(), path.name
    digits = [line.digits for line in RunDir(root).metrics()]
    assert digits == [line.digits for line in RunDir(finished).metrics()]
    for name in ("latest", "best"):
        assert os.readlink(root / "checkpoints" / name) == os.readlink(finished / "checkpoints" / name)
    left = [path for path in root.rglob(".*") if path.name != ".lock"]
    assert not left and not (root / "training.safetensors").exists()


def workers_of(pid: int) -> list[int]:
    """The process ids of the Ray workers of a process."""
    processes = psutil.Process(pid).children(recursive=True)
    return [process.pid for process in processes if _title(process).startswith("ray::Worker")]


def _title(process: psutil.Process) -> str:
    """The first word of a command line; nothing if the process is gone."""
    try:
        return (process.cmdline() or [""])[0]
    except psutil.Error:
        return ""
