"""Small runs that benchmarks and tests repeat many times: their settings and their records."""

import json
import os
import shlex
import sys
from pathlib import Path

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


def small(**changes: object) -> dict[str, object]:
    """Return the settings of a small run, with some of them replaced."""
    return merged(SMALL, changes)


def write_record(path: Path | None, name: str, **figures: object) -> None:
    """Write the figures of a benchmark, its command and a description of the machine; do nothing if `path` is None.

    The record includes the load average, which shows whether other work disturbed the measurement.
    """
    if path is None:
        return
    command = shlex.join(["python", "-m", f"sector.benchmarks.{name}", *sys.argv[1:]])
    record = {**figures, "command": command, "load_average": os.getloadavg(), **describe()}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
