"""Write a checkpoint with random weights, to measure a size without training it.

    python -m sector.benchmarks.fresh base DIR

The improved policy accepts nothing with such weights, but a token takes as long as with trained ones.
"""

import argparse
from pathlib import Path

from sector.engine.models.checkpoint import save_checkpoint
from sector.engine.models.sector import new_model
from sector.engine.models.sector_config import PRESETS


def main() -> None:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", choices=sorted(PRESETS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    save_checkpoint(new_model(options.preset, options.seed), options.out)


if __name__ == "__main__":
    main()
