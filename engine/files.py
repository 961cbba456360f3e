"""Write files atomically, so that a kill leaves the old file or the new one; read text in any encoding."""

import codecs
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sector.engine.errors import InputError

# Longest first: the byte order mark of UTF-32 starts with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_SPECIAL = (Path.is_char_device, Path.is_block_device, Path.is_fifo, Path.is_socket)


def write_atomically(path: Path, write: Callable[[Path], object], mark: str = "") -> None:
    """Call `write` with a path beside `path`, then rename it to `path`. Raise InputError if the system refuses.

    mark: part of the name of the path beside, if several processes may write the same file at a time.
    """
    aside = aside_of(path, mark)
    try:
        _make_room(path, aside)
        write(aside)
        os.replace(aside, path)
    except OSError as error:
        # If its folder is not a folder, there is nothing to remove.
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 atomically. Surrogates, from file names that are not UTF-8, are written as escapes."""
    content = text.encode("utf-8", errors="backslashreplace")
    write_atomically(path, lambda aside: aside.write_bytes(content))


def read_text(path: Path) -> str:
    """Read a text file in an encoding that `decoded` knows. Raise InputError if it cannot be read or is not text."""
    try:
        return decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def decoded(content: bytes, source: str) -> str:
    """Decode text, without its byte order mark. Raise InputError naming `source` if it is not text.

    The encoding is UTF-8, unless a byte order mark or zero bytes show UTF-16 or UTF-32.
    """
    try:
        return content.decode(_encoding(content))
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not a text file in UTF-8 (byte {error.start + 1}); save it as UTF-8") from error


def check_writable(path: Path, folder: bool = False) -> None:
    """Raise InputError unless `path` can be written; called before long work, so that its result is not lost.

    Missing folders are not created, since the work may be refused for another reason.
    folder: whether `path` may be an existing folder.
    """
    refuse_address(path)
    try:
        if path.is_dir() and not folder:
            raise InputError(f"cannot write {path}: it is a directory; name a file in it")
        _refuse_special(path)
        # Only an attempt shows whether it works: the name may be too long, the disk full or read-only.
        if path.is_dir():
            aside = aside_of(path / "file")
        else:
            home = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
            aside = aside_of(home / path.name)
        if not aside.is_char_device():
            aside.unlink(missing_ok=True)
            aside.touch()
            aside.unlink()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def refuse_address(path: Path) -> None:
    """Raise InputError if `path` is an address such as s3://bucket/nine, unless a folder `s3:` exists here."""
    # A path has one slash where an address has two; a drive has one letter.
    first, *rest = path.parts or ("",)
    if len(first) > 2 and first.endswith(":") and not os.path.lexists(first):
        raise InputError(
            f"cannot write {first}//{'/'.join(rest)}: it is an address, where only `sector generate --out` writes, a "
            "folder; name a path of this machine"
        )


def aside_of(path: Path, mark: str = "") -> Path:
    """Return the path of the temporary file beside `path`, which is renamed to `path` once it is complete."""
    return path.with_name(f".{path.name}{mark}.partial")


def _make_room(path: Path, aside: Path) -> None:
    """Create the folder, and remove a leftover of a kill. Raise InputError if `path` is a device or a pipe."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _refuse_special(path)
    # A link here would redirect the write. A device is kept: tests use /dev/full as a full disk.
    if not aside.is_char_device():
        aside.unlink(missing_ok=True)


def is_special(path: Path) -> bool:
    """Return whether `path` is a device, a pipe or a socket: a reader may wait for ever, a writer would replace it."""
    return any(holds(path) for holds in _SPECIAL)


def _refuse_special(path: Path) -> None:
    """Raise InputError if `path` is a device, a pipe or a socket, which a rename would replace."""
    if is_special(path):
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
    """Point the symbolic link `link` to `target`, a path relative to it, atomically."""

    def symlink(aside: Path) -> None:
        aside.unlink(missing_ok=True)
        aside.symlink_to(target)

    write_atomically(link, symlink)


def _encoding(content: bytes) -> str:
    """Guess the encoding of a text: by its byte order mark, or as UTF-16 if every second byte is zero."""
    if encoding := next((name for mark, name in _MARKS if content.startswith(mark)), None):
        return encoding
    even, odd = content[::2], content[1::2]
    if content and len(even) == len(odd):
        if not any(odd) and all(even):
            return "utf-16-le"
        if not any(even) and all(odd):
            return "utf-16-be"
    return "utf-8"
