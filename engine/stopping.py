"""Ending when asked to: SIGTERM lets the step at hand finish and be saved; what takes too long is left as it is.

Leaving at any moment is safe (what lies in a run directory is written aside and renamed), but a step saved is a step
not done again.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Whoever sends SIGTERM waits 30 seconds as a rule, and then kills.
PATIENCE_SECONDS = 20.0


class Terminated(BaseException):
    """Asked to end, and nothing finished in time. Like KeyboardInterrupt no error, so nothing that mends errors."""


class Stopping:
    """asked: has someone asked this process to end?"""

    def __init__(self) -> None:
        self.asked = False

    def ask(self, signum: int, frame: FrameType | None) -> None:
        """A handler of SIGTERM."""
        self.asked = True
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)


@contextmanager
def heed_sigterm() -> Iterator[Stopping]:
    """SIGTERM asks to stop; Terminated is raised where the work then is after `PATIENCE_SECONDS`. Main thread only."""
    stopping = Stopping()
    before = signal.signal(signal.SIGTERM, stopping.ask), signal.signal(signal.SIGALRM, _give_up)
    try:
        yield stopping
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGALRM, before[1])


def _give_up(signum: int, frame: FrameType | None) -> None:
    raise Terminated
