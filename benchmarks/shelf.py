"""Put the weights of a run on the shelf that ships with the package: `python -m sector.benchmarks.shelf RUN`.

The folder is `engine/models/trained/TASK`. Its figures are measured anew with the fast policy: 1,000 uniform problems,
and 1,000 of each harder family, at each length up to that of the run. The shelf was made with

    sector run --until 29 --seed 0 --out RUN
    sector run --task multiplication --until 12 --seed 1 --out RUN
"""

import argparse
import json
from pathlib import Path

from sector.benchmarks.machine import describe, one_line
from sector.engine.api.accuracy import evaluate
from sector.engine.api.cards import run_command
from sector.engine.files import write_text
from sector.engine.models.checkpoint import TrainedModel, open_trained, save_checkpoint
from sector.engine.models.shelf import EVALUATION, MADE, SHELF
from sector.engine.run.directory import RunDir

SAMPLES = 1000


def put(root: Path, samples: int = SAMPLES, shelf: Path = SHELF) -> Path:
    """Copy the best weights of a run to the shelf, measure them, and return their folder.

    root: run directory.
    samples: problems of each score.
    shelf: folder of the shelf.
    """
    # The machine first: the commit counts as changed once the weights are written.
    machine, run, trained = one_line(describe()), RunDir(root), open_trained(root)
    folder = shelf / trained.task
    save_checkpoint(trained.model, folder)
    report = evaluate(TrainedModel(folder, folder, trained.model), f"1-{run.frontier}", samples)
    write_text(folder / EVALUATION, json.dumps(report.values, indent=1) + "\n")
    made = {
        "digits": run.frontier,
        "seed": run.read_config().seed,
        "commands": [run_command(run.read_config()), f"python -m sector.benchmarks.shelf RUN --samples {samples}"],
        "machine": machine,
        "weights_sha256": trained.weights_sha256,
    }
    write_text(folder / MADE, json.dumps(made, indent=2) + "\n")
    return folder


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    arguments = parser.parse_args()
    print(put(arguments.run, arguments.samples))


if __name__ == "__main__":
    main()
