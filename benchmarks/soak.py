"""Test the loop for leaks: repeat a small run in one process and measure the process after each round.

    .venv/bin/python -m sector.benchmarks.soak --seconds 600 --json soak.json

A lap is a whole run (supervised phase, three rounds, audits, plots) with its own seed, in a directory that is removed
afterwards. After each round the resident memory, open files and threads of the process are recorded. All laps do the
same work, so growth from lap to lap at the same round is a leak. The first laps fill caches and pools; they do not
count.
"""

import argparse
import gc
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from sector.benchmarks.small_run import small, write_record
from sector.engine.run.events import PhaseAudited
from sector.engine.run.open import open_run
from sector.engine.selfplay import self_play

WARM_UP_LAPS = 2
# Little training, and no rollback: the memory of a lap does not depend on the quality of the model.
LAP = small(
    until=9,
    round={"candidates": 200, "cycle_steps": 10, "max_cycles": 1, "probe": 20, "max_fall": 1.0},
    filter={"vote": "majority", "checks": ("direct", "shifted", "through")},
)


def held() -> dict[str, int]:
    """Return the resident bytes, open files and threads of this process."""
    process = psutil.Process()
    return {"bytes": process.memory_info().rss, "files": process.num_fds(), "threads": process.num_threads()}


def laps(seconds: float) -> Iterator[dict[str, Any]]:
    """Yield the figures after each round; stop after the lap in which the time is up."""
    start, lap = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        folder = Path(tempfile.mkdtemp(prefix="soak"))
        try:
            with open_run(folder / "run", {**LAP, "seed": lap}, "soak") as (run, config):
                for event in self_play(run, config):
                    if isinstance(event, PhaseAudited):
                        gc.collect()
                        yield {
                            "lap": lap,
                            "digits": event.metrics.digits,
                            "at": time.perf_counter() - start,
                            **held(),
                        }
        finally:
            shutil.rmtree(folder)
        lap += 1


def growth(rows: list[dict[str, Any]], figure: str) -> float:
    """Return the growth of a figure per lap, by least squares over the last rounds of the laps after the warm-up."""
    last = max(row["digits"] for row in rows)
    points = [(row["lap"], row[figure]) for row in rows if row["digits"] == last and row["lap"] >= WARM_UP_LAPS]
    if len(points) < 2:
        return float("nan")
    lap_numbers, values = zip(*points, strict=True)
    return float(np.polyfit(lap_numbers, values, 1)[0])


def main() -> None:
    """Run laps, and print one line per lap and the growth at the end."""
    parser = argparse.ArgumentParser(description="Test the loop for leaks.")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--json", type=Path, help="file for the record")
    options = parser.parse_args()
    rows = []
    for row in laps(options.seconds):
        rows.append(row)
        if row["digits"] == LAP["until"]:
            figures = f"{row['bytes'] / 2**20:.1f} MiB, {row['files']} files, {row['threads']} threads"
            print(f"lap {row['lap']} at {row['at']:.0f} s: {figures}", flush=True)
    slopes = {figure: growth(rows, figure) for figure in ("bytes", "files", "threads")}
    print(", ".join(f"{figure} a lap: {slope:+,.2f}" for figure, slope in slopes.items()))
    write_record(options.json, "soak", growth_a_lap=slopes, warm_up_laps=WARM_UP_LAPS, rounds=rows)


if __name__ == "__main__":
    main()
