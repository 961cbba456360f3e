"""Runs small enough to be made many times over: their settings, and what can be seen of one from outside."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from sector.benchmarks.machine import describe
from sector.engine.config import merged

SECTOR = Path(sys.executable).with_name("sector")

# A minute's work, and so little trained that no round meets its goal: every cycle is used.
SMALL: dict[str, Any] = {
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


def small(**changes: Any) -> dict[str, Any]:
    """The settings of a small run, with some of them replaced."""
    return merged(SMALL, changes)


def write_record(path: Path | None, name: str, **figures: Any) -> None:
    """Write what a benchmark of that name measured, if it was asked for, with how that came about.

    load_average: tells of other work on the machine.
    """
    if path is None:
        return
    command = shlex.join(["python", "-m", f"sector.benchmarks.{name}", *sys.argv[1:]])
    record = {**figures, "command": command, "load_average": os.getloadavg(), **describe()}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found = children.get(pid, [])
    return found + [each for child in found for each in descendants(child)]


def workers_of(pid: int) -> list[int]:
    """Process ids of the workers that a process has hired."""
    return [each for each in descendants(pid) if _read(each, "cmdline").startswith("ray::Worker")]


def ranks_of(pid: int) -> dict[int, int]:
    """Process ids of what torchrun has started, by rank."""
    found: dict[int, int] = {}
    for each in descendants(pid):
        environment = dict(part.partition("=")[::2] for part in _read(each, "environ").split("\0"))
        # Below a process of torchrun others have its environment: the parents come first.
        if "RANK" in environment:
            found.setdefault(int(environment["RANK"]), each)
    return found


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
