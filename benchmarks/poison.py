"""Demonstrate the guard against the error avalanche: a round that learns wrong answers is rolled back.

    .venv/bin/python -m sector.benchmarks.poison --json poison.json

A small run, trained well enough to agree with itself, plays its round at 7 digits with poisoned labels: every digit of
every accepted answer is one higher. In the first run only the first attempt is poisoned, in the second all attempts.
The guard sees no true sum; it measures how far the model agrees with itself at trained lengths.
"""

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from sector.benchmarks.small_run import small, write_record
from sector.engine.errors import NoAgreement
from sector.engine.run.open import open_run
from sector.engine.run.phase import Phase
from sector.engine.run.phases import Phases
from sector.engine.selfplay import run_phases
from sector.engine.shares import percent

GUARDED = small(
    until=7,
    supervised={"cycle_steps": 700, "examples": 200},
    round={"cycle_steps": 30, "max_cycles": 1},
)
_MOVED = str.maketrans("0123456789", "1234567890")


def supervise(root: Path) -> None:
    """Run the supervised phase of a run."""
    with open_run(root, GUARDED, "poison") as (run, config):
        for _ in Phases(run, config).supervise():
            pass


class PoisonedPhases(Phases):
    """Phases of a run in which all answers of the first `attempts` attempts at 7 digits are wrong."""

    attempts = 0

    def write_accepted(self, phase: Phase, examples: pa.Table) -> None:
        if phase.num_failed < self.attempts:
            answers = [text.zfill(8).translate(_MOVED) for text in examples.column("answer").to_pylist()]
            at = examples.column_names.index("answer")
            examples = examples.set_column(at, examples.schema.field(at), pa.array(answers, pa.string()))
        super().write_accepted(phase, examples)


def play(root: Path, attempts: int) -> Iterator[dict[str, Any]]:
    """Continue a run whose first `attempts` attempts at 7 digits are poisoned; yield its events, and last its end."""
    with open_run(root, {}, "poison") as (run, config):
        ended = "reached"
        try:
            phases = PoisonedPhases(run, config)
            phases.attempts = attempts
            yield from (event.as_json() for event in run_phases(phases))
        except NoAgreement as error:
            ended = str(error)
        yield {"event": "done", "ended": ended, "best": (root / "checkpoints" / "best").readlink().name}


def _line(event: dict[str, Any]) -> str | None:
    """Return the line that shows an event; None for events that are not shown."""
    match event:
        case {"event": "goal", "digits": digits, "trained": trained}:
            return f"trained on {digits} digits: lowest agreement at trained lengths {percent(trained)}"
        case {"event": "rollback", "digits": digits, "failed": failed, "before": before, "trained": trained}:
            return f"rolled back, attempt {failed} at {digits} digits: {percent(before)} fell to {percent(trained)}"
        case {"event": "round", "digits": digits, "label_error": float(error)}:
            return f"round at {digits} digits: label error {percent(error, 2)}"
        case {"event": "done", "ended": ended, "best": best}:
            return f"{ended}; best weights: {best}"
    return None


def main() -> None:
    """Play both runs, and print their events."""
    parser = argparse.ArgumentParser(description="Poison labels, and show the guard at work.")
    parser.add_argument("--json", type=Path, help="file for the record")
    options = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="poison") as name:
        folder = Path(name)
        supervise(folder / "supervised")
        for title, attempts in (("first attempt poisoned", 1), ("every attempt poisoned", 9)):
            print(title)
            root = Path(shutil.copytree(folder / "supervised", folder / title, symlinks=True))
            events = [event for event in play(root, attempts) if _line(event)]
            runs[title] = events
            for event in events:
                print(f"  {str(_line(event)).replace(str(folder), '')}", flush=True)
    write_record(options.json, "poison", runs=runs)


if __name__ == "__main__":
    main()
