"""Stop on signals: finish and save the current step, or give up waiting for it after a while.

SIGTERM, SIGHUP (the terminal was closed) and Ctrl-C ask to stop; a second Ctrl-C stops at once. Stopping at any moment
is safe, since all writes are atomic, but a saved step need not be done again. Reasons of the loop itself to stop stand
at `errors.NoAgreement`.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sector.engine.run.events import TrainingStep

# Most supervisors wait 30 seconds after SIGTERM, and then kill.
PATIENCE_SECONDS = 20.0
# Signals that ask a process to end, besides Ctrl-C.
ENDING = (signal.SIGTERM, signal.SIGHUP)
HINT = "saving the step at hand; Ctrl-C again to leave it"


class Terminated(BaseException):
    """The process was asked to stop. Not an Exception, as KeyboardInterrupt, so that no error handler catches it."""


class Stopping:
    """Requests to stop.

    asked: whether this process is to stop.
    interrupted: whether Ctrl-C is the reason.
    is_shown: whether a display on the terminal shows HINT; a line written into it would be drawn over.
    """

    def __init__(self) -> None:
        self.asked = self.interrupted = self.is_shown = False
        self._seen = False

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: note the request and start the timer. Raise KeyboardInterrupt at a second Ctrl-C."""
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        self.interrupted |= number == signal.SIGINT
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)
        # `print` is not reentrant, and the signal may have interrupted one.
        if number == signal.SIGINT and not self.is_shown and sys.stderr is not None and sys.stderr.isatty():
            os.write(sys.stderr.fileno(), f"sector: {HINT}\n".encode())

    def ends_after(self, event: object) -> bool:
        """Return whether to stop after an event of a run or a grid. Called with every event, in order.

        A training step is saved before its event. If the request came between the two, the step may not be saved, so
        the next step is awaited.
        """
        ends = self._seen or (self.asked and not isinstance(event, TrainingStep))
        self._seen = self.asked
        return ends


@contextmanager
def stop_on_signals() -> Iterator[Stopping]:
    """Turn signals into requests to stop; raise Terminated `PATIENCE_SECONDS` after the first. Main thread only.

    A signal that is ignored already stays ignored: SIGHUP under nohup, Ctrl-C in a background process.
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
    """Handle the timer: raise Terminated."""
    raise Terminated
