"""Writing so that a kill at any moment leaves the old file or the new one, never half of either; reading any text."""

import codecs
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sector.engine.errors import InputError

# The longest first: the mark of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_SPECIAL = (Path.is_char_device, Path.is_block_device, Path.is_fifo, Path.is_socket)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a path beside `path`, then rename it over `path`. InputError if the disk will not have it."""
    aside = _aside(path)
    try:
        _make_room(path, aside)
        write(aside)
        os.replace(aside, path)
    except OSError as error:
        # Where its folder is none, there is nothing to remove.
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically. Names that are bytes and no text, as Python holds them, are written as escapes."""
    content = text.encode("utf-8", errors="backslashreplace")
    write_atomically(path, lambda aside: aside.write_bytes(content))


def read_text(path: Path) -> str:
    """A text file in any of the encodings that `decoded` knows. InputError if it cannot be read, or is no text."""
    try:
        return decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def decoded(content: bytes, source: str) -> str:
    """Text from bytes: UTF-8, or UTF-16 and UTF-32 where a byte order mark or their zeros tell. InputError if neither.

    The mark is no part of the text.
    """
    try:
        return content.decode(_encoding(content))
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is no text file in UTF-8 (byte {error.start + 1}); save it as UTF-8") from error


def check_writable(path: Path, folder: bool = False) -> None:
    """InputError unless something can be written at `path`: to be known before long work, not after it.

    Folders that are not there yet are not made: the work may be refused for another reason.
    folder: `path` may be one that exists; a file may not take its place.
    """
    try:
        if path.is_dir() and not folder:
            raise InputError(f"cannot write {path}: it is a directory; name a file in it")
        _refuse_special(path)
        # What cannot be made is known by making it: a name may be too long, a disk full or read-only.
        home = next(each for each in path.absolute().parents if os.path.lexists(each))
        aside = _aside(home / path.name)
        if not aside.is_char_device():
            aside.unlink(missing_ok=True)
            aside.touch()
            aside.unlink()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _make_room(path: Path, aside: Path) -> None:
    """Make the folder, and see that nothing is in the way. InputError if a file would replace what is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _refuse_special(path)
    # A link in this place would lead the writing elsewhere. Devices may stand in for a disk that is full.
    if not aside.is_char_device():
        aside.unlink(missing_ok=True)


def _refuse_special(path: Path) -> None:
    if any(is_special(path) for is_special in _SPECIAL):
        raise InputError(f"cannot write {path}: it is a device or a pipe, which a file would replace; name a file")


@contextmanager
def in_utf8(path: Path) -> Iterator[str]:
    """Name a file or folder in UTF-8, for libraries that open no other name; valid while the block runs."""
    # Python writes bytes that are no text as these characters.
    if not any("\udc80" <= character <= "\udcff" for character in str(path)):
        yield str(path)
        return
    number = os.open(path, os.O_RDONLY)
    try:
        yield f"/dev/fd/{number}"
    finally:
        os.close(number)


def point_link(link: Path, target: str) -> None:
    """Make the symbolic link `link` point to `target` (relative to it), replacing an older link at once."""

    def symlink(aside: Path) -> None:
        aside.unlink(missing_ok=True)
        aside.symlink_to(target)

    write_atomically(link, symlink)


def _encoding(content: bytes) -> str:
    """How a text is encoded, by its first bytes; every second byte is zero in UTF-16 of what we read."""
    if marked := next((name for mark, name in _MARKS if content.startswith(mark)), None):
        return marked
    even, odd = content[::2], content[1::2]
    if content and len(even) == len(odd):
        if not any(odd) and all(even):
            return "utf-16-le"
        if not any(even) and all(odd):
            return "utf-16-be"
    return "utf-8"
