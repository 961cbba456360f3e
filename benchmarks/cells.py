"""Parts of the benchmarks that measure cell by cell, one JSON line per cell.

GPU time is lent in short slices that may end at any time. So each cell is a line as soon as it is measured, and one
that fails is a line that says why.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from sector.engine.config import TrainerConfig
from sector.engine.language.examples import Examples
from sector.engine.training.distill import TrainState, train_cycle

Line = dict[str, object]


def measured(cell: Line, measure: Callable[[], Line]) -> Line:
    """Return the line of a cell with its figures, or with the error for which it has none."""
    try:
        return cell | measure()
    # Memory that runs out, a kernel that does not compile and a capture that is refused are results, too.
    except Exception as error:
        return cell | {"failed": f"{type(error).__name__}: {error}"[:2000]}
    finally:
        gc.collect()


def printed(lines: Iterable[Line]) -> list[Line]:
    """Print lines as they come, as JSON, and return them."""
    found = []
    for line in lines:
        found.append(line)
        print(json.dumps(line), flush=True)
    return found


def timed_steps(
    state: TrainState, shards: Sequence[Examples], config: TrainerConfig, warm_up: int, steps: int
) -> tuple[int, float]:
    """Train on the same shards in each step; return tokens and seconds of the steps after a warm-up."""
    training = train_cycle(state, lambda _: shards, config, warm_up + steps, 0)
    for _ in islice(training, warm_up):
        pass
    tokens, start = state.tokens, time.perf_counter()
    for _ in training:
        pass
    # The loss of each step is read by the host, so the device is done.
    return state.tokens - tokens, time.perf_counter() - start


def names_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Return the type of an argument that is some of the known names, which commas separate."""
    known = list(known)

    def names(text: str) -> list[str]:
        found = text.split(",")
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"there is no {unknown[0]!r}; choose from {', '.join(known)}")
        return found

    return names


def number(text: str) -> int:
    """Return an argument that is a whole number of at least 1."""
    found = int(text)
    if found < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {found}")
    return found


def numbers(text: str) -> list[int]:
    """Return the whole numbers in an argument, each at least 1, which commas separate."""
    return [number(part) for part in text.split(",")]
