"""The guard against the error avalanche at work: rounds that learn wrong answers are taken back.

    .venv/bin/python -m sector.benchmarks.poison --json poison.json

A small run, trained well enough to have something to lose, plays its round at 7 digits with poisoned labels: every
digit of every accepted answer is moved on by one. In the first run that happens to the first attempt, in the second to
all of them. The guard sees no true sum: what it goes by is how far the model agrees with itself at trained lengths.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa

from sector.benchmarks.small_run import small, write_record
from sector.engine.errors import NoAgreement
from sector.engine.run.directory import RunDir
from sector.engine.run.open import open_run
from sector.engine.run.phases import Phases, event_json
from sector.engine.selfplay import self_play
from sector.engine.shares import percent
from sector.engine.training.dataset import write_examples

GUARDED = small(
    until=7,
    supervised={"cycle_steps": 700, "examples": 200},
    round={"cycle_steps": 30, "max_cycles": 1},
)
_MOVED = str.maketrans("0123456789", "1234567890")


def supervise(root: Path) -> None:
    """A run that has something to lose, before its first round."""
    with open_run(root, GUARDED, "poison") as (run, config):
        for _ in Phases(run, config).supervise():
            pass


def poisoned(run: RunDir, attempts: int) -> Callable[[Path, pa.Table], None]:
    """Writes examples; those of the first so many attempts at 7 digits with answers wrong, all in the same way."""

    def write(path: Path, table: pa.Table) -> None:
        if run.round(7).num_failed < attempts:
            answers = [text.zfill(8).translate(_MOVED) for text in table.column("answer").to_pylist()]
            at = table.column_names.index("answer")
            table = table.set_column(at, table.schema.field(at), pa.array(answers, pa.string()))
        write_examples(path, table)

    return write


def play(root: Path, attempts: int) -> Iterator[dict[str, Any]]:
    """The events of a run gone on with, whose first so many attempts at 7 digits are poisoned; last, how it ended."""
    with open_run(root, {}, "poison") as (run, config):
        ended = "reached"
        try:
            with mock.patch("sector.engine.run.phases.write_examples", poisoned(run, attempts)):
                yield from map(event_json, self_play(run, config))
        except NoAgreement as error:
            ended = str(error)
        yield {"event": "done", "ended": ended, "best": (root / "checkpoints" / "best").readlink().name}


def _line(event: dict[str, Any]) -> str | None:
    """What is shown of an event."""
    match event:
        case {"event": "goal", "digits": digits, "trained": trained}:
            return f"trained on {digits} digits: agrees with itself on {percent(trained)} at trained lengths"
        case {"event": "rollback", "digits": digits, "failed": failed, "before": before, "trained": trained}:
            return f"taken back, attempt {failed} at {digits} digits: {percent(before)} fell to {percent(trained)}"
        case {"event": "round", "digits": digits, "label_error": float(error)}:
            return f"round at {digits} digits: label error {percent(error, 2)}"
        case {"event": "done", "ended": ended, "best": best}:
            return f"{ended}; best weights: {best}"
    return None


def main() -> None:
    """Both runs, event by event."""
    parser = argparse.ArgumentParser(description="Poison labels, and see what the guard does.")
    parser.add_argument("--json", type=Path, help="where the record goes")
    asked = parser.parse_args()
    told: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="poison") as name:
        folder = Path(name)
        supervise(folder / "supervised")
        for title, attempts in (("first attempt poisoned", 1), ("every attempt poisoned", 9)):
            print(title)
            root = Path(shutil.copytree(folder / "supervised", folder / title, symlinks=True))
            events = [event for event in play(root, attempts) if _line(event)]
            told[title] = events
            for event in events:
                print(f"  {str(_line(event)).replace(str(folder), '')}", flush=True)
    write_record(asked.json, "poison", runs=told)


if __name__ == "__main__":
    main()
