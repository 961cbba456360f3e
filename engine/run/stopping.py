"""Ending when asked to: the step at hand is finished and saved; what takes too long is left as it is.

SIGTERM asks, SIGHUP (the terminal is gone), and Ctrl-C; a second Ctrl-C does not wait. Leaving at any moment is safe
(what lies in a run directory is written aside and renamed), but a step saved is a step not done again.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sector.engine.run.events import TrainingStep

# Whoever sends SIGTERM waits 30 seconds as a rule, and then kills.
PATIENCE_SECONDS = 20.0
# What asks a process to end, Ctrl-C aside.
ENDING = (signal.SIGTERM, signal.SIGHUP)
_HINT = b"sector: saving the step at hand; Ctrl-C again to leave it\n"


class Terminated(BaseException):
    """Asked to end, and nothing finished in time. Like KeyboardInterrupt no error, so nothing that mends errors."""


class Stopping:
    """asked: has someone asked this process to end? interrupted: by Ctrl-C?"""

    def __init__(self) -> None:
        self.asked = self.interrupted = False
        self._seen = False

    def ask(self, number: int, frame: FrameType | None) -> None:
        """A handler of signals."""
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        self.interrupted |= number == signal.SIGINT
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)
        # Not by print: the signal may have come in the middle of one.
        if number == signal.SIGINT and sys.stderr is not None and sys.stderr.isatty():
            os.write(sys.stderr.fileno(), _HINT)

    def ends_after(self, event: object) -> bool:
        """Is this event of a run the last one to wait for? Called with every event, in order.

        A step of training is saved before its event comes; asked in between, only the next one is.
        """
        ends = self._seen or (self.asked and not isinstance(event, TrainingStep))
        self._seen = self.asked
        return ends


@contextmanager
def stop_on_signals() -> Iterator[Stopping]:
    """Signals ask to stop; Terminated is raised where the work then is after `PATIENCE_SECONDS`. Main thread only.

    A signal that was ignored when the process started stays ignored: SIGHUP under nohup, Ctrl-C in the background.
    """
    stopping = Stopping()
    before = {number: signal.getsignal(number) for number in (*ENDING, signal.SIGINT)}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, stopping.ask)
    alarm = signal.signal(signal.SIGALRM, _give_up)
    try:
        yield stopping
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        for number, handler in before.items():
            signal.signal(number, handler)


def _give_up(number: int, frame: FrameType | None) -> None:
    raise Terminated
