"""What failures cost: each is caused in a small run, the same command is given again, and the end is compared.

    .venv/bin/python -m sector.benchmarks.failures --json failures.json

Seconds to be back: from the second command (its start-up included) until it is where the first was struck; where the
first goes on by itself, from the failure to its next event. Lost:
what of the weights and of the examples of all rounds is not, to the byte, what it is without the failure.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w

from sector.benchmarks.small_run import SECTOR, ranks_of, small, workers_of, write_record

SETTINGS = small(
    round={"candidates": 600, "cycle_steps": 30, "max_cycles": 1, "max_fall": 1.0},
    filter={"checks": ("direct", "shifted", "through")},
)
# A loss that is no number at the fifth step of training at 7 digits, in a process that else is `sector`.
NAN = """
import sys
from sector.engine.training import distill
true_loss, calls = distill.Rows.loss, []
def poisoned(model, rows, weight):
    calls.append(1)
    return true_loss(model, rows, weight) * (float("nan") if len(calls) > 16 else 1.0)
distill.Rows.loss = poisoned
from sector.cli.app import main
sys.argv[0] = "sector"
main()
"""

Event = dict[str, Any]
Strike = Callable[[subprocess.Popen[str], Path], None]


def at(event: str, digits: int, **values: int) -> Callable[[Event], bool]:
    """Does an event say this?"""
    wanted = {"event": event, "digits": digits, **values}
    return lambda seen: wanted.items() <= seen.items()


def send(number: int) -> Strike:
    """A signal to the process of the run."""
    return lambda process, root: process.send_signal(number)


def kill_worker(process: subprocess.Popen[str], root: Path) -> None:
    """SIGKILL to one worker of the run, which is at work on a block."""
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)


def kill_rank(process: subprocess.Popen[str], root: Path) -> None:
    """SIGKILL to the second process of a shared training."""
    os.kill(ranks_of(process.pid)[1], signal.SIGKILL)


def fill(name: str) -> Strike:
    """From now on the disk is full for this file: the kernel says so (ENOSPC)."""

    def strike(process: subprocess.Popen[str], root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to("/dev/full")

    return strike


def truncate(name: str) -> Strike:
    """Kill the run, and cut a file of it in half."""

    def strike(process: subprocess.Popen[str], root: Path) -> None:
        process.kill()
        process.wait()
        (root / name).write_bytes((root / name).read_bytes()[: (root / name).stat().st_size // 2])

    return strike


def start_another(process: subprocess.Popen[str], root: Path) -> None:
    """A second `sector run` on the same directory, to its end; it must be refused."""
    second = subprocess.run([str(SECTOR), "run", "--out", str(root)], capture_output=True, text=True, check=False)
    assert second.returncode == 2 and f"process {process.pid}" in second.stderr, second.stderr


def nothing(process: subprocess.Popen[str], root: Path) -> None:
    """The failure comes by itself."""


_TORCHRUN = [str(SECTOR.with_name("torchrun")), "--standalone", "--nproc-per-node", "2", "--no-python", str(SECTOR)]
# What stands for `sector` where it is started otherwise.
_STARTED: dict[str, tuple[list[str], list[str]]] = {
    "nan": ([sys.executable, "-P", "-c", NAN], []),
    "torchrun": (_TORCHRUN, []),
}
# How it is called, how it is caused, when, what is done, and how the struck command is started.
Failure = tuple[str, str, Callable[[Event], bool], Strike, list[str]]
_FULL, _CUT, _GENERATING = "`/dev/full` in its place", "half of it cut off", at("generate", 7, tried=250)
FAILURES: list[Failure] = [
    ("worker killed mid-batch", "SIGKILL, one of two", _GENERATING, kill_worker, ["--workers", "2"]),
    ("process of a shared training killed", "SIGKILL, one of two", at("train", 7), kill_rank, ["torchrun"]),
    ("driver killed, supervised phase", "SIGKILL", at("train", 0), send(signal.SIGKILL), []),
    ("driver killed, generating", "SIGKILL", _GENERATING, send(signal.SIGKILL), []),
    ("driver killed, distilling", "SIGKILL", at("train", 7), send(signal.SIGKILL), []),
    ("driver killed, before the audit", "SIGKILL", at("goal", 7), send(signal.SIGKILL), []),
    ("driver killed, after the audit", "SIGKILL", at("round", 7), send(signal.SIGKILL), []),
    ("disk full, examples", _FULL, _GENERATING, fill("rounds/07/.examples.parquet.partial"), []),
    ("disk full, snapshot", _FULL, _GENERATING, fill(".training.safetensors.partial"), []),
    ("disk full, metrics", _FULL, _GENERATING, fill(".metrics.jsonl.partial"), []),
    ("truncated examples", _CUT, at("train", 7), truncate("rounds/07/examples.parquet"), []),
    ("truncated checkpoint", _CUT, at("generate", 8), truncate("checkpoints/07/model.safetensors"), []),
    ("truncated snapshot", _CUT, at("goal", 7), truncate("training.safetensors"), []),
    ("NaN in the loss", "fifth step at 7 digits", at("never", 0), nothing, ["nan"]),
    ("SIGTERM", "while distilling", at("train", 7), send(signal.SIGTERM), []),
    ("second run on the directory", "`sector run` twice", at("train", 7), start_another, []),
]


def suffer(root: Path, reached: Callable[[Event], bool], strike: Strike, how: list[str]) -> Event:
    """A run that is struck: its exit code, its last event, why it stopped, and the seconds to its next event."""
    program, options = _STARTED.get(how[0] if how else "", ([str(SECTOR)], how))
    command = [*program, "run", "--out", str(root), "--json", *options]
    told: Event = {"because": "killed", "next": None}
    struck = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "done":
                # Read on: who closes the pipe now takes from the run its last words.
                told["because"] = event["stopped_because"]
                continue
            told["last"] = event
            if struck is not None and told["next"] is None:
                told["next"] = time.perf_counter() - struck
            if struck is None and reached(event):
                struck = time.perf_counter()
                strike(process, root)
    return {**told, "code": process.returncode}


def go_on(root: Path, position: tuple[int, ...]) -> float:
    """The same command again, to its end; seconds until it was where it had been struck."""
    start, back = time.perf_counter(), None
    command = [str(SECTOR), "run", "--out", str(root), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if back is None and (event["event"] == "done" or position_of(event) >= position):
                back = time.perf_counter() - start
    assert process.returncode == 0 and back is not None, "it did not go on"
    return back


def position_of(event: Event) -> tuple[int, ...]:
    """Where in a run an event stands; later is greater."""
    order = ("mended", "generate", "train", "goal", "round", "frontier", "rollback")
    return event.get("digits", 0), order.index(event["event"]), event.get("step") or event.get("tried") or 0


def differences(root: Path, reference: Path) -> list[str]:
    """Files of weights and examples that are not the same to the byte, or not there."""
    paths = [*reference.glob("rounds/*/*.parquet"), *reference.glob("checkpoints/[0-9]*/model.safetensors")]
    names = [path.relative_to(reference) for path in paths]
    return [
        str(name)
        for name in names
        if not (root / name).exists() or (root / name).read_bytes() != (reference / name).read_bytes()
    ]


def measure(folder: Path, failure: Failure) -> Event:
    """One failure: caused, gone on from, compared."""
    name, cause, reached, strike, how = failure
    root = folder / "run"
    shutil.copytree(folder / ("empty" if "supervised" in name else "supervised"), root, symlinks=True)
    told = suffer(root, reached, strike, how)
    # What does not end the run needs no second command: then it is the time to the next event.
    back = told["next"] if told["because"] == "reached" else go_on(root, position_of(told["last"]))
    lost = differences(root, folder / "reference")
    shutil.rmtree(root)
    return {"failure": name, "cause": cause, "exit_code": told["code"], "lost": lost, "seconds_back": back}


def main() -> None:
    """Cause them all and print the table."""
    parser = argparse.ArgumentParser(description="Cause failures, and see what they cost.")
    parser.add_argument("--json", type=Path, help="where the record goes")
    asked = parser.parse_args()
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
    write_record(asked.json, "failures", failures=rows)


if __name__ == "__main__":
    main()
