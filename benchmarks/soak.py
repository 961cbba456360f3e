"""Does the loop leak? Lap after lap of a small run in one process, and what it holds after each.

    .venv/bin/python -m sector.benchmarks.soak --seconds 600 --json soak.json

A lap is a whole run (supervised start, three rounds, audits, pictures) with its own seed in its own directory, which is
removed. After each round the process's resident memory, open files and threads are counted. Laps are alike,
so that what grows from lap to lap at the same round is a leak; the first laps fill caches and pools and do not count.
"""

import argparse
import gc
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sector.benchmarks.small_run import small, write_record
from sector.engine.run.open import open_run
from sector.engine.selfplay import self_play

WARM_UP_LAPS = 2
# Hardly trained, and never refused: what a lap costs in memory does not depend on what it learns.
LAP = small(
    until=9,
    round={"candidates": 200, "cycle_steps": 10, "max_cycles": 1, "probe": 20, "max_fall": 1.0},
    filter={"vote": "majority", "checks": ("direct", "shifted", "through")},
)


def held() -> dict[str, int]:
    """Resident bytes, open files and threads of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    tasks, files = len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
    return {"bytes": pages * os.sysconf("SC_PAGE_SIZE"), "files": files, "threads": tasks}


def laps(seconds: float) -> Iterator[dict[str, Any]]:
    """What is held after every round, until the time is up and the lap is done."""
    start, lap = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        folder = Path(tempfile.mkdtemp(prefix="soak"))
        try:
            with open_run(folder / "run", {**LAP, "seed": lap}, "soak") as (run, config):
                for event in self_play(run, config):
                    if event["event"] == "round":
                        gc.collect()
                        yield {
                            "lap": lap,
                            "digits": event["metrics"].digits,
                            "at": time.perf_counter() - start,
                            **held(),
                        }
        finally:
            shutil.rmtree(folder)
        lap += 1


def growth(rows: list[dict[str, Any]], what: str) -> float:
    """Growth a lap at the last round of a lap, by least squares over the laps that count."""
    last = max(row["digits"] for row in rows)
    kept = [(row["lap"], row[what]) for row in rows if row["digits"] == last and row["lap"] >= WARM_UP_LAPS]
    if len(kept) < 2:
        return float("nan")
    counted, values = zip(*kept, strict=True)
    return float(np.polyfit(counted, values, 1)[0])


def main() -> None:
    """Run, and print a line a lap; the last line is the growth."""
    parser = argparse.ArgumentParser(description="Soak the loop.")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--json", type=Path, help="where the record goes")
    asked = parser.parse_args()
    rows = []
    for row in laps(asked.seconds):
        rows.append(row)
        if row["digits"] == LAP["until"]:
            held_now = f"{row['bytes'] / 2**20:.1f} MiB, {row['files']} files, {row['threads']} threads"
            print(f"lap {row['lap']} at {row['at']:.0f} s: {held_now}", flush=True)
    slopes = {what: growth(rows, what) for what in ("bytes", "files", "threads")}
    print(", ".join(f"{what} a lap: {slope:+,.2f}" for what, slope in slopes.items()))
    write_record(asked.json, "soak", growth_a_lap=slopes, warm_up_laps=WARM_UP_LAPS, rounds=rows)


if __name__ == "__main__":
    main()
