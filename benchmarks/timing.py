"""Time a function with torch's benchmark timer."""

from collections.abc import Callable

import torch
from torch.utils.benchmark import Measurement, Timer


def timed(run: Callable[[], object], seconds: float) -> Measurement:
    """Call `run` for about `seconds`, after a warm-up; on a GPU the timer waits for its work.

    The timer would use one thread, so it is told to leave torch's count of threads as it is.
    """
    return Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads()).blocked_autorange(
        min_run_time=seconds
    )
