"""The shelf: trained weights that ship with the package, in the form of checkpoints.

    trained/addition/    a checkpoint; its audited figures (eval-fast.json), and how they were made (made.json)

The name of a folder is the name of its task. `sector.benchmarks.shelf` makes the folders again.
"""

from pathlib import Path

SHELF = Path(__file__).with_name("trained")
# Files beside those of a checkpoint.
EVALUATION, MADE = "eval-fast.json", "made.json"


def shelf_names() -> list[str]:
    """Return the names of the weights that ship with the package, sorted."""
    return sorted(path.parent.name for path in SHELF.glob("*/config.json"))


def from_shelf(path: Path) -> Path | None:
    """Return the checkpoint that a path names as weights of the shelf; None if there is none of that name."""
    return SHELF / path if str(path) in shelf_names() else None
