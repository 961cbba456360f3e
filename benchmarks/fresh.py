"""A checkpoint with fresh weights, to measure a size that nobody has trained.

    python -m sector.benchmarks.fresh base DIR

It accepts nothing, but tokens cost what they cost.
"""

import argparse
from pathlib import Path

from sector.engine.models.checkpoint import save_checkpoint
from sector.engine.models.sector import PRESETS, new_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", choices=sorted(PRESETS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    taken = parser.parse_args()
    save_checkpoint(new_model(taken.preset, taken.seed), taken.out)


if __name__ == "__main__":
    main()
