"""Signals that end a command: Ctrl-C during startup and shutdown, and SIGTERM or SIGHUP while nothing can be saved."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from sector.engine.run.stop_signals import ENDING, Terminated

_INTERRUPTED = 130
_RESEND_SECONDS = 0.05


class Ended(BaseException):
    """A signal ended the command. Not an Exception, like KeyboardInterrupt, so that no handler of errors catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def leave_on_interrupt() -> None:
    """Make Ctrl-C print one line and exit at once, before a command begins and after it is over.

    Do so in the console script `sector` only: a program that imports this package keeps its own handler.
    """
    if Path(*sys.argv[:1]).stem == "sector" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C, and Ended on SIGTERM and SIGHUP, while the block runs.

    A command that has a step to save replaces these handlers meanwhile (`stop_signals.py`). A signal that was ignored
    when the command started, as under nohup, stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in ENDING}
    replaced = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    for number in replaced:
        signal.signal(number, _end)
    try:
        with _resend_dropped():
            yield
    finally:
        for number in replaced:
            signal.signal(number, before[number])


@contextmanager
def _resend_dropped() -> Iterator[None]:
    """Send a signal again if Python dropped its exception, as it does with exceptions raised in a destructor."""
    before = sys.unraisablehook

    def resend(dropped: "sys.UnraisableHookArgs") -> None:
        number = _signal_of(dropped.exc_value)
        if number is None:
            before(dropped)
            return
        # Later, from a timer: Python would drop an exception that is raised inside this hook, too.
        timer = threading.Timer(_RESEND_SECONDS, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()

    sys.unraisablehook = resend
    try:
        yield
    finally:
        sys.unraisablehook = before


def _signal_of(error: BaseException | None) -> int | None:
    """Return the signal whose handler raises this exception, or None."""
    if isinstance(error, Ended):
        return error.number
    raised_by = {KeyboardInterrupt: signal.SIGINT, Terminated: signal.SIGALRM}
    return next((number for kind, number in raised_by.items() if isinstance(error, kind)), None)


def _end(number: int, frame: FrameType | None) -> None:
    raise Ended(number)


def _leave(number: int, frame: FrameType | None) -> None:
    # Exit without an exception: an import under way might take the exception for a failure of its own.
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"sector: interrupted\n")
    os._exit(_INTERRUPTED)
