"""Soak the loop with everything on: laps of a small run with workers and trackers, killed every few minutes.

    .venv/bin/python -m sector.benchmarks.soak --seconds 3600 --json soak.json

A lap is a whole run (supervised phase, three rounds, audits, plots) with its own seed, two workers, TensorBoard, and
those of the other trackers that are installed, in a directory that is removed afterwards. One process, the driver, does
lap after lap. It is killed with SIGKILL every few minutes, started again, and resumes the lap that it was in.

Two kinds of leak are sought. Inside a driver: its resident memory, open files and threads at the end of its laps, which
all do the same work. Outside of it: memory, files, threads and processes of the whole tree, shared memory, and disk,
sampled through the hour; what kills leave behind would add up there. Ray's own session folders count apart.
"""

import argparse
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import psutil

from sector.benchmarks.small_run import small, write_record
from sector.engine.run.disk import size_of
from sector.engine.run.events import PhaseAudited

WARM_UP_LAPS = 2
TRACKERS = tuple(name for name in ("wandb", "trackio") if find_spec(name))
WORKERS = 2
# Marks the processes of a soak, also those whose parent was killed.
_MARK = "SECTOR_SOAK"
_SHARED = Path("/dev/shm")
# Little training, and no rollback: the memory of a lap does not depend on the quality of the model.
LAP = small(
    until=9,
    round={"candidates": 500, "cycle_steps": 10, "max_cycles": 1, "probe": 20, "max_fall": 1.0},
    filter={"vote": "majority", "checks": ("direct", "shifted", "through")},
)


def held() -> dict[str, int]:
    """Return the resident bytes, open files and threads of this process."""
    process = psutil.Process()
    return {"bytes": process.memory_info().rss, "files": process.num_fds(), "threads": process.num_threads()}


def drive(folder: Path) -> None:
    """Do laps until the process is killed, and append the figures of each lap to `laps.jsonl`."""
    import sector

    log = folder / "laps.jsonl"
    begun = time.time()
    while True:
        lap = len(log.read_text(encoding="utf-8").splitlines()) if log.exists() else 0
        run = folder / f"lap{lap}"
        settings: dict[str, Any] = {**LAP, "seed": lap}
        with sector.run(run, workers=WORKERS, track=TRACKERS, **settings) as events:
            last = [event.metrics for event in events if isinstance(event, PhaseAudited)]
        gc.collect()
        line = {"lap": lap, "driver": begun, "at": time.time(), "phases": len(last), **held()}
        shutil.rmtree(run)
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def processes_of(folder: Path) -> list[psutil.Process]:
    """List the processes of a soak, orphans too."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(_MARK) == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def sample(folder: Path) -> dict[str, int]:
    """Return the figures of all processes of a soak, and the bytes that it takes on disk and in shared memory."""
    sums = dict.fromkeys(("bytes", "files", "threads", "processes"), 0)
    for process in processes_of(folder):
        with suppress(psutil.Error):
            figures = (process.memory_info().rss, process.num_fds(), process.num_threads(), 1)
            sums = {name: sums[name] + figure for name, figure in zip(sums, figures, strict=True)}
    ray = size_of(folder / "ray")
    return {**sums, "disk_bytes": size_of(folder) - ray, "ray_disk_bytes": ray, "shared_bytes": size_of(_SHARED)}


def soak(folder: Path, seconds: float, kill_seconds: float, sample_seconds: float) -> Iterator[dict[str, Any]]:
    """Run a driver, kill it every `kill_seconds` and start another; yield a sample every `sample_seconds`."""
    environment = {**os.environ, _MARK: str(folder), "RAY_TMPDIR": str(folder / "ray"), "WANDB_MODE": "offline"}
    environment |= {"WANDB_SILENT": "true", "WANDB_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "sector.benchmarks.soak", "--drive", str(folder)]
    start, kills, orphans = time.perf_counter(), 0, 0
    while (now := time.perf_counter() - start) < seconds:
        with (folder / "driver.log").open("ab") as log:
            driver = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
        ends = min(now + kill_seconds, seconds)
        while (now := time.perf_counter() - start) < ends:
            time.sleep(sample_seconds)
            if driver.poll() is not None:
                raise RuntimeError(f"the driver ended by itself: {(folder / 'driver.log').read_text()[-2000:]}")
            yield {"at": now, "kills": kills, "orphans": orphans, **sample(folder)}
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        kills += 1
        # Ray's processes notice the death of their driver.
        _, alive = psutil.wait_procs(processes_of(folder), timeout=60)
        orphans = len(alive)


def growth(laps: Sequence[dict[str, Any]], figure: str) -> float:
    """Return the growth of a figure per lap inside a driver: the mean slope over drivers, without their first laps."""
    slopes = []
    for driver in {lap["driver"] for lap in laps}:
        points = [lap[figure] for lap in laps if lap["driver"] == driver][WARM_UP_LAPS:]
        if len(points) > 1:
            slopes.append(float(np.polyfit(range(len(points)), points, 1)[0]))
    return fmean(slopes) if slopes else float("nan")


def quarters(samples: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Return the largest value of each figure in each quarter of the time."""
    end = samples[-1]["at"]
    rows = []
    for quarter in range(4):
        within = [row for row in samples if quarter / 4 <= row["at"] / end <= (quarter + 1) / 4]
        rows.append({name: max(row[name] for row in within) for name in samples[0]} if within else {})
    return rows


def main() -> None:
    """Soak, print a row a quarter and the growth inside a driver."""
    parser = argparse.ArgumentParser(description="Soak the loop with workers, trackers and kills.")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--kill-seconds", type=float, default=240.0, help="seconds between two kills of the driver")
    parser.add_argument("--sample-seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path, help="file for the record")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(options.drive)
    # A short name, since Ray puts sockets below it.
    folder = Path(tempfile.mkdtemp(prefix="soak"))
    try:
        samples = list(soak(folder, options.seconds, options.kill_seconds, options.sample_seconds))
        log = folder / "laps.jsonl"
        laps = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
        for process in processes_of(folder):
            process.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for number, row in enumerate(quarters(samples), start=1):
        print(f"quarter {number}: {row}")
    slopes = {figure: growth(laps, figure) for figure in ("bytes", "files", "threads")}
    print(f"{len(laps)} laps; a lap inside a driver: {slopes}")
    write_record(
        options.json,
        "soak",
        laps=laps,
        samples=samples,
        quarters=quarters(samples),
        growth_a_lap=slopes,
        trackers=TRACKERS,
    )


if __name__ == "__main__":
    main()
