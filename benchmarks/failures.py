"""The cost of failures: cause each in a small run, repeat the command, and compare the results with an undisturbed run.

    .venv/bin/python -m sector.benchmarks.failures --json failures.json

Seconds to be back: from the start of the second command until it reaches the place of the failure. If the first command
recovers by itself: from the failure to its next event. Lost: the files of weights and examples, of all rounds, that
are not equal to the byte to those of the undisturbed run.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from sector.benchmarks.small_run import SECTOR, ranks_of, small, workers_of, write_record

SETTINGS = small(
    round={"candidates": 600, "cycle_steps": 30, "max_cycles": 1, "max_fall": 1.0},
    filter={"checks": ("direct", "shifted", "through")},
)
# A process that runs `sector`, except that the loss is NaN from the fifth step of training at 7 digits on.
NAN = """
import sys
from sector.engine.training.place_rows import Rows
true_loss, calls = Rows.loss, []
def poisoned(model, rows, weight):
    calls.append(1)
    return true_loss(model, rows, weight) * (float("nan") if len(calls) > 16 else 1.0)
Rows.loss = poisoned
from sector.cli.app import main
sys.argv[0] = "sector"
main()
"""

Event = dict[str, Any]
Strike = Callable[[subprocess.Popen[str], Path], None]


def at(event: str, digits: int, **values: int) -> Callable[[Event], bool]:
    """Return a function that tells whether an event has these values."""
    expected = {"event": event, "digits": digits, **values}
    return lambda actual: expected.items() <= actual.items()


def send(number: int) -> Strike:
    """Return a strike that sends a signal to the process of the run."""
    return lambda process, root: process.send_signal(number)


def kill_worker(process: subprocess.Popen[str], root: Path) -> None:
    """Kill one worker of the run while it solves a block."""
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)


def kill_rank(process: subprocess.Popen[str], root: Path) -> None:
    """Kill the second process of a shared training."""
    os.kill(ranks_of(process.pid)[1], signal.SIGKILL)


def fill(name: str) -> Strike:
    """Return a strike after which the disk is full for one file: the kernel returns ENOSPC."""

    def strike(process: subprocess.Popen[str], root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to("/dev/full")

    return strike


def truncate(name: str) -> Strike:
    """Return a strike that kills the run and cuts one of its files in half."""

    def strike(process: subprocess.Popen[str], root: Path) -> None:
        process.kill()
        process.wait()
        (root / name).write_bytes((root / name).read_bytes()[: (root / name).stat().st_size // 2])

    return strike


def start_another(process: subprocess.Popen[str], root: Path) -> None:
    """Start a second `sector run` on the same directory, which must be refused."""
    # The first run is stopped meanwhile: on a busy machine it could end before the second has started.
    process.send_signal(signal.SIGSTOP)
    try:
        second = subprocess.run([str(SECTOR), "run", "--out", str(root)], capture_output=True, text=True, check=False)
    finally:
        process.send_signal(signal.SIGCONT)
    assert second.returncode == 2 and f"process {process.pid}" in second.stderr, second.stderr


def nothing(process: subprocess.Popen[str], root: Path) -> None:
    """Do nothing: the process fails by itself."""


_TORCHRUN = [str(SECTOR.with_name("torchrun")), "--standalone", "--nproc-per-node", "2", "--no-python", str(SECTOR)]
_NAN = [sys.executable, "-P", "-c", NAN]


class Failure(NamedTuple):
    """One failure and how it is caused.

    name: the failure in words.
    cause: how it is caused, in words.
    reached: function that returns whether an event is the one after which the failure is caused.
    strike: function that causes the failure.
    program: the words that start `sector`.
    options: further options of `sector run`.
    """

    name: str
    cause: str
    reached: Callable[[Event], bool]
    strike: Strike
    program: Sequence[str] = (str(SECTOR),)
    options: Sequence[str] = ()


_FULL, _CUT, _GENERATING = "`/dev/full` in its place", "half of it cut off", at("generate", 7, tried=250)
FAILURES = [
    Failure("worker killed mid-batch", "SIGKILL, one of two", _GENERATING, kill_worker, options=["--workers", "2"]),
    Failure("process of a shared training killed", "SIGKILL, one of two", at("train", 7), kill_rank, _TORCHRUN),
    Failure("driver killed, supervised phase", "SIGKILL", at("train", 0), send(signal.SIGKILL)),
    Failure("driver killed, generating", "SIGKILL", _GENERATING, send(signal.SIGKILL)),
    Failure("driver killed, distilling", "SIGKILL", at("train", 7), send(signal.SIGKILL)),
    Failure("driver killed, before the audit", "SIGKILL", at("goal", 7), send(signal.SIGKILL)),
    Failure("driver killed, after the audit", "SIGKILL", at("round", 7), send(signal.SIGKILL)),
    Failure("disk full, examples", _FULL, _GENERATING, fill("rounds/07/.examples.parquet.partial")),
    Failure("disk full, snapshot", _FULL, _GENERATING, fill(".training.safetensors.partial")),
    Failure("disk full, metrics", _FULL, _GENERATING, fill(".metrics.jsonl.partial")),
    Failure("truncated examples", _CUT, at("train", 7), truncate("rounds/07/examples.parquet")),
    Failure("truncated checkpoint", _CUT, at("generate", 8), truncate("checkpoints/07/model.safetensors")),
    Failure("truncated snapshot", _CUT, at("goal", 7), truncate("training.safetensors")),
    Failure("NaN in the loss", "fifth step at 7 digits", at("never", 0), nothing, _NAN),
    Failure("SIGTERM", "while distilling", at("train", 7), send(signal.SIGTERM)),
    Failure("second run on the directory", "`sector run` twice", at("train", 7), start_another),
]


def suffer(root: Path, failure: Failure) -> Event:
    """Run and strike; return the exit code, the last event, why the run stopped, and the seconds to its next event."""
    command = [*failure.program, "run", "--out", str(root), "--json", *failure.options]
    result: Event = {"because": "killed", "next": None}
    struck = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "done":
                # Read to the end: a closed pipe would disturb the end of the run.
                result["because"] = event["stopped_because"]
                continue
            result["last"] = event
            if struck is not None and result["next"] is None:
                result["next"] = time.perf_counter() - struck
            if struck is None and failure.reached(event):
                struck = time.perf_counter()
                failure.strike(process, root)
    return {**result, "code": process.returncode}


def go_on(root: Path, position: tuple[int, ...]) -> float:
    """Repeat the command, to its end; return the seconds until it reached a position (`position_of`)."""
    start, back = time.perf_counter(), None
    command = [str(SECTOR), "run", "--out", str(root), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if back is None and (event["event"] == "done" or position_of(event) >= position):
                back = time.perf_counter() - start
    assert process.returncode == 0 and back is not None, "the run did not continue"
    return back


def position_of(event: Event) -> tuple[int, ...]:
    """Return the position of an event in a run; later positions are greater."""
    order = ("mended", "generate", "train", "goal", "round", "frontier", "rollback")
    return event.get("digits", 0), order.index(event["event"]), event.get("step") or event.get("tried") or 0


def differences(root: Path, reference: Path) -> list[str]:
    """Return the files of weights and examples that are missing or not equal to the byte."""
    paths = [*reference.glob("rounds/*/*.parquet"), *reference.glob("checkpoints/[0-9]*/model.safetensors")]
    names = [path.relative_to(reference) for path in paths]
    return [
        str(name)
        for name in names
        if not (root / name).exists() or (root / name).read_bytes() != (reference / name).read_bytes()
    ]


def measure(folder: Path, failure: Failure) -> Event:
    """Cause one failure, repeat the command, and compare the results."""
    root = folder / "run"
    shutil.copytree(folder / ("empty" if "supervised" in failure.name else "supervised"), root, symlinks=True)
    result = suffer(root, failure)
    # A run that survives needs no second command.
    back = result["next"] if result["because"] == "reached" else go_on(root, position_of(result["last"]))
    lost = differences(root, folder / "reference")
    shutil.rmtree(root)
    return {
        "failure": failure.name,
        "cause": failure.cause,
        "exit_code": result["code"],
        "lost": lost,
        "seconds_back": back,
    }


def main() -> None:
    """Cause all failures and print the table."""
    parser = argparse.ArgumentParser(description="Cause failures, and measure their cost.")
    parser.add_argument("--json", type=Path, help="file for the record")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="failures") as name:
        folder = Path(name)
        (folder / "settings.toml").write_text(tomli_w.dumps(SETTINGS), encoding="utf-8")
        (folder / "empty").mkdir()
        prepare = [str(SECTOR), "sft", "--out", str(folder / "supervised"), "--config", str(folder / "settings.toml")]
        subprocess.run(prepare, check=True, capture_output=True)
        shutil.copy(folder / "supervised" / "config.toml", folder / "empty" / "config.toml")
        shutil.copytree(folder / "supervised", folder / "reference", symlinks=True)
        go_on(folder / "reference", (99,))
        print(
            "| failure | how it was caused | exit code | lost | seconds to be back |\n| --- | --- | --- | --- | --- |"
        )
        for failure in FAILURES:
            row = measure(folder, failure)
            rows.append(row)
            shown = [row["failure"], row["cause"], str(row["exit_code"]), ", ".join(row["lost"]) or "nothing"]
            print(f"| {' | '.join(shown)} | {row['seconds_back']:.1f} |", flush=True)
    write_record(options.json, "failures", failures=rows)


if __name__ == "__main__":
    main()
