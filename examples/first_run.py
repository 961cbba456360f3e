"""Teach a model to add, and watch its accuracy by length grow: the loop as an iterator of events.

A repeated call resumes the run, also after Ctrl-C.
"""

import argparse
from pathlib import Path

import sector
from sector import events


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/first"), help="run directory")
    parser.add_argument("--until", type=int, default=29, help="digits at which the run is done")
    options = parser.parse_args()
    run = sector.run(options.out, until=options.until)
    try:
        for event in run:
            show(event)
    except sector.NoAgreement as error:
        print(f"stopped: {error}")
    print(f"done: {run.frontier} digits; pictures are in {options.out / 'plots'}")


def show(event: events.Event) -> None:
    """Print an event, if it tells something new."""
    match event:
        case events.Generated(digits, tried, of, accepted):
            print(f"{digits} digits: {accepted} of {tried} accepted, {of} to try", end="\r")
        case events.PhaseAudited(metrics):
            print(f"\nafter {metrics.digits} digits, label error {metrics.label_error}: accuracy by length")
            for digits, accuracy in metrics.accuracy.items():
                print(f"{digits:4} {'#' * round(50 * accuracy)} {accuracy:.0%}")


if __name__ == "__main__":
    main()
