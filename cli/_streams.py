"""Standard streams that are safe to use: open, able to encode every character, and with one clear error if full."""

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from sector.engine.errors import InputError

# Replacements for the characters that sector prints itself, for encodings that lack them.
_LOOKALIKES = {"\N{PLUS-MINUS SIGN}": "+-", "\N{HORIZONTAL ELLIPSIS}": "...", "\N{BULLET}": "*"}


class Unwritable(Exception):
    """Stdout cannot be written: the disk is full, or the reader of a pipe is gone."""


class Stdout:
    """Stdout that raises Unwritable on the first failed write and drops all later output."""

    def __init__(self, inner: TextIO) -> None:
        self._inner = inner

    def write(self, text: str) -> int:
        with self._as_unwritable():
            return self._inner.write(text)

    def flush(self) -> None:
        with self._as_unwritable():
            self._inner.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @contextmanager
    def _as_unwritable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Python would try to write the rest of the buffer when the process ends, and print a traceback.
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._inner.fileno())
            raise Unwritable(f"cannot write to stdout: {error.strerror or error}") from error


@contextmanager
def usable_streams() -> Iterator[None]:
    """Make stdout and stderr safe to use while the block runs. Raise InputError if stdout is closed."""
    _reserve_closed()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (stays open until the process ends)
    if sys.stdout is None:
        raise InputError("stdout is closed; redirect it to /dev/null if you do not want the result")
    codecs.register_error("sector", _replace_unencodable)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # It flushes first. Text that cannot be written fails again at the next write, which handles it.
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
    """Return the text with control characters escaped, because a terminal might obey them.

    keep: characters that are not escaped.
    """
    return "".join(
        character if character.isprintable() or character in keep else repr(character)[1:-1] for character in text
    )


def _reserve_closed() -> None:
    """Open /dev/null in the place of closed standard streams.

    Otherwise a file opened later would get the number of a stream, and receive its output. The lowest number comes
    first, since a new descriptor takes the lowest free number.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _replace_unencodable(error: UnicodeError) -> tuple[str, int]:
    """Return replacements for characters that the encoding lacks, and the index after them (a codecs error handler)."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_LOOKALIKES.get(character) or ascii(character)[1:-1] for character in text), error.end
