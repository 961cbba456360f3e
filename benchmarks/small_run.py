"""Small runs that benchmarks and tests repeat many times: their settings, their processes and their records."""

import json
import os
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from sector.benchmarks.machine import describe
from sector.engine.config import merged

SECTOR = Path(sys.executable).with_name("sector")

# A run of one minute, trained so little that no round meets its goal, so that every cycle is used.
SMALL: dict[str, object] = {
    "until": 8,
    "audit_samples": 20,
    "supervised": {"cycle_steps": 300, "max_cycles": 1, "examples": 50},
    "round": {
        "candidates": 300,
        "pool": 2,
        "cycle_steps": 8,
        "max_cycles": 2,
        "probe": 40,
        "target_agreement": 1.0,
        "min_agreement": 0.0,
    },
    "filter": {"vote": "unanimous", "checks": ["complement"]},
}


def small(**changes: Any) -> dict[str, object]:
    """Return the settings of a small run, with some of them replaced."""
    return merged(SMALL, changes)


def write_record(path: Path | None, name: str, **figures: Any) -> None:
    """Write the figures of a benchmark, its command and a description of the machine; do nothing if `path` is None.

    The record includes the load average, which shows whether other work disturbed the measurement.
    """
    if path is None:
        return
    command = shlex.join(["python", "-m", f"sector.benchmarks.{name}", *sys.argv[1:]])
    record = {**figures, "command": command, "load_average": os.getloadavg(), **describe()}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def workers_of(pid: int) -> list[int]:
    """Return the process ids of the Ray workers of a process."""
    processes = psutil.Process(pid).children(recursive=True)
    return [process.pid for process in processes if _title(process).startswith("ray::Worker")]


def ranks_of(pid: int) -> dict[int, int]:
    """Return the process ids of the processes that torchrun has started, by rank."""
    ranks: dict[int, int] = {}
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):
            rank = process.environ().get("RANK")
            # Children inherit the rank of their parents, and parents come first.
            if rank is not None:
                ranks.setdefault(int(rank), process.pid)
    return ranks


def _title(process: psutil.Process) -> str:
    """Return the first word of a command line; nothing if the process is gone."""
    try:
        return (process.cmdline() or [""])[0]
    except psutil.Error:
        return ""
