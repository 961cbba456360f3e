"""The standard streams, made fit for a command: open, able to take every character, and plain where stdout is full."""

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from sector.engine.errors import InputError

# What an encoding of few characters shows in the place of those that we print ourselves.
_LOOKALIKES = {"\N{PLUS-MINUS SIGN}": "+-", "\N{HORIZONTAL ELLIPSIS}": "...", "\N{BULLET}": "*"}


class Unwritable(Exception):
    """Stdout cannot be written: a full disk, or a reader that is gone."""


class Stdout:
    """Stdout that raises Unwritable where it cannot be written, once: what is written after that is dropped."""

    def __init__(self, inner: TextIO) -> None:
        self._inner = inner

    def write(self, text: str) -> int:
        with self._named():
            return self._inner.write(text)

    def flush(self) -> None:
        with self._named():
            self._inner.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # What is left in the buffer would be tried again when the process ends, with a traceback.
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._inner.fileno())
            raise Unwritable(f"cannot write to stdout: {error.strerror or error}") from error


@contextmanager
def usable_streams() -> Iterator[None]:
    """Stdout and stderr as commands may use them, for the time of a `with`. InputError if stdout is closed."""
    _fill_closed()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (until the process ends)
    if sys.stdout is None:
        raise InputError("stdout is closed; send it to /dev/null if no result is wanted")
    codecs.register_error("sector", _instead)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # It flushes first. Text that cannot go out fails again at the next write, where it is handled.
            with suppress(OSError):
                stream.reconfigure(errors="sector")
    before = sys.stdout
    sys.stdout = cast(TextIO, Stdout(before))
    try:
        yield
        sys.stdout.flush()
    finally:
        sys.stdout = before


def printable(text: str, keep: str = "") -> str:
    """The text as a terminal may be shown it, which it might obey otherwise: control characters as escapes.

    keep: characters that stay as they are.
    """
    return "".join(each if each.isprintable() or each in keep else repr(each)[1:-1] for each in text)


def _fill_closed() -> None:
    """Give closed standard streams to nobody: a file opened later would get their number, and what is meant for them.

    Lowest first, since a new descriptor takes the lowest number that is free.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _instead(error: UnicodeError) -> tuple[str, int]:
    """What is written where the encoding lacks a character."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_LOOKALIKES.get(each) or ascii(each)[1:-1] for each in text), error.end
