"""Kill `sector generate --out DIR/` at shares of its work, start it again, and compare bytes and seconds.

    .venv/bin/python -m sector.benchmarks.kills --count 40000 --workers 2 --json kills.json

An undisturbed call comes first. Then the driver is killed with SIGKILL when a share of the parts is there, and the same
command goes on. The seconds lost are those of both calls together beyond the undisturbed one: the parts that were under
way, and a second start of driver and workers.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sector.benchmarks.cells import printed
from sector.benchmarks.small_run import SECTOR, write_record

SHARES = (0.1, 0.5, 0.9)


def digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file of a data set."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".")
    }


def generate(words: list[str], folder: Path, killed_when: Callable[[], bool]) -> tuple[float, dict[str, Any] | None]:
    """Run the command until it ends or is to be killed; return its seconds, and its report if it ended.

    Raise RuntimeError if it fails.
    """
    start = time.perf_counter()
    command = [str(SECTOR), "generate", *words, "--out", f"{folder}/", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            if killed_when():
                process.kill()
            time.sleep(0.02)
        out, said = process.communicate()
    seconds = time.perf_counter() - start
    if process.returncode not in (0, -9):
        raise RuntimeError(said.strip())
    return seconds, None if process.returncode else json.loads(out)


def num_parts(folder: Path) -> int:
    """Return the count of parts of a folder so far."""
    return sum(1 for _ in folder.glob("part-*.parquet"))


def strikes(words: list[str], times: int) -> Iterator[dict[str, Any]]:
    """Yield the undisturbed call, then `times` strikes at each share."""
    with tempfile.TemporaryDirectory(prefix="kills") as home:
        whole, folder = Path(home, "whole"), Path(home, "struck")
        undisturbed, report = generate(words, whole, lambda: False)
        expected = digests(whole)
        assert report is not None, "nothing killed it"
        yield {"share": None, "seconds": undisturbed, "parts": report["parts"]}
        for share in SHARES:
            for _ in range(times):
                enough = max(1, round(share * report["parts"]))
                first, _ = generate(words, folder, lambda enough=enough: num_parts(folder) >= enough)  # type: ignore[misc]
                kept = num_parts(folder)
                second, again = generate(words, folder, lambda: False)
                yield {
                    "share": share,
                    "kept": kept,
                    "made_again": again["this_call"]["parts"] if again else None,
                    "same_bytes": digests(folder) == expected,
                    "seconds": first + second,
                    "lost": first + second - undisturbed,
                }
                shutil.rmtree(folder)


def main() -> None:
    """Strike, and print a row a strike."""
    parser = argparse.ArgumentParser(description="Kill the generation of a data set, and go on.")
    parser.add_argument("--model", default="addition")
    parser.add_argument("--digits", type=int, default=12)
    parser.add_argument("--count", type=int, default=40_000)
    parser.add_argument("--part-rows", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file for the record")
    options = parser.parse_args()
    names = ("model", "digits", "count", "part_rows", "workers")
    words = [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]
    write_record(options.json, "kills", rows=printed(strikes(words, options.times)))


if __name__ == "__main__":
    main()
