"""Time a function with torch's benchmark timer."""

from collections.abc import Callable

import torch
from torch.utils.benchmark import Measurement, Timer

# Calls that are timed even if they take longer than asked for: a minimum or median of fewer is noise.
_LEAST_CALLS = 10


def timed(run: Callable[[], object], seconds: float) -> Measurement:
    """Call `run` for at least `seconds`, after a warm-up; on a GPU the timer waits for its work."""
    # By default the timer would restrict operations to one thread.
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    call_seconds = timer.timeit(1).mean
    return timer.blocked_autorange(min_run_time=max(seconds, _LEAST_CALLS * call_seconds))
