"""Signals outside of what a command saves: Ctrl-C while it starts, and what ends it half-way."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from sector.engine.run.stopping import ENDING, Terminated

_INTERRUPTED = 130
_AGAIN_SECONDS = 0.05


class Ended(BaseException):
    """A signal ended the command. Like KeyboardInterrupt no error, so nothing that mends errors."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def hush() -> None:
    """From here on Ctrl-C is one line: nothing has begun yet, or everything is over. Our console script's alone."""
    if Path(*sys.argv[:1]).stem == "sector" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt while a command works, what else asks to end raises Ended.

    A command that has something to save heeds them in its own way meanwhile (`stopping.py`). What was ignored when the
    command started, as by nohup, stays so.
    """
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in ENDING}
    taken = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _end)
    try:
        with _never_lost():
            yield
    finally:
        for number in taken:
            signal.signal(number, before[number])


@contextmanager
def _never_lost() -> Iterator[None]:
    """Send a signal again where its exception came while an object was deleted: Python drops what is raised there."""
    before = sys.unraisablehook

    def again(dropped: "sys.UnraisableHookArgs") -> None:
        number = _signal_of(dropped.exc_value)
        if number is None:
            before(dropped)
            return
        # Not at once: raised in here it would be dropped, too.
        timer = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


def _signal_of(error: BaseException | None) -> int | None:
    """The signal whose handler raises this; None if none does."""
    if isinstance(error, Ended):
        return error.number
    raised_by = {KeyboardInterrupt: signal.SIGINT, Terminated: signal.SIGALRM}
    return next((number for kind, number in raised_by.items() if isinstance(error, kind)), None)


def _end(number: int, frame: FrameType | None) -> None:
    raise Ended(number)


def _leave(number: int, frame: FrameType | None) -> None:
    # No exception: an import under way might take it for its own failure.
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"sector: interrupted\n")
    os._exit(_INTERRUPTED)
