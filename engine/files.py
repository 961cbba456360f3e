"""Writing so that a kill at any moment leaves the old file or the new one, never half of either."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from sector.engine.errors import InputError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a path beside `path`, then rename it over `path`. InputError if the disk will not have it."""
    aside = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A link in this place would lead the writing elsewhere. Devices may stand in for a disk that is full.
        if not aside.is_char_device():
            aside.unlink(missing_ok=True)
        write(aside)
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def check_writable(path: Path) -> None:
    """InputError unless something can be written at `path`: to be known before long work, not after it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def point_link(link: Path, target: str) -> None:
    """Make the symbolic link `link` point to `target` (relative to it), replacing an older link at once."""

    def symlink(aside: Path) -> None:
        aside.unlink(missing_ok=True)
        aside.symlink_to(target)

    write_atomically(link, symlink)
