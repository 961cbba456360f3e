"""Locations of examples: paths of this machine, and addresses in a store that several machines reach.

An address is `s3://bucket/nine`, or of another protocol that fsspec has a driver for. A store writes a file whole or
not at all, has no locks, and its errors are those of its own libraries.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Union

from sector.engine.errors import InputError, first_line
from sector.engine.files import is_special, write_atomically

if TYPE_CHECKING:
    from upath import UPath

# The package upath is imported only for an address.
Location = Union[Path, "UPath"]
# Name of a location, or one.
LocationLike = Union[str, "os.PathLike[str]", "UPath"]


def location_of(name: LocationLike) -> Location:
    """Return the location of a name.

    Raise InputError if the driver of its protocol is not installed, or refuses the address.
    """
    text = name_of(name)
    if not is_address(text):
        return Path(text)
    protocol, _, rest = text.partition("://")
    if protocol in ("file", "local"):
        return Path(rest)
    try:
        from upath import UPath

        # Workers write files that a list from before would not show.
        location = UPath(text, use_listings_cache=False)
        location.fs  # noqa: B018  # finds the driver
    except (ImportError, ValueError) as error:
        extra = "pip install 'sector-lm[s3]'" if protocol == "s3" else f"install fsspec's driver for {protocol}"
        raise InputError(f"{text} cannot be opened ({first_line(error)}); {extra}") from error
    # A driver may connect at once, and each has its own errors.
    except Exception as error:
        raise _unreached(text, error) from error
    with reached(location):
        # A bucket without a name shows here.
        location / "name"
    if isinstance(location, Path):
        raise InputError(f"{text} names no protocol; write an address such as s3://bucket/nine/, or a path without ://")
    return location


def name_of(location: LocationLike) -> str:
    """Return the name of a location, with the slash at its end if it has one."""
    return os.fspath(location) if isinstance(location, os.PathLike) else str(location)


def is_address(name: str) -> bool:
    """Return whether a name is an address in a store."""
    return "://" in name


@contextmanager
def reached(location: Location) -> Iterator[None]:
    """Raise InputError for an error of a store, except that a file is missing or exists already."""
    try:
        yield
    except (InputError, FileNotFoundError, FileExistsError):
        raise
    # Each store has its own kinds.
    except Exception as error:
        if isinstance(location, Path):
            raise
        raise _unreached(location, error) from error


def _unreached(location: LocationLike, error: Exception) -> InputError:
    """Return the error that says that a store cannot be reached."""
    return InputError(f"{location!s} cannot be reached ({first_line(error)}); check its address and your credentials")


def read_bytes(location: Location) -> bytes:
    """Return the content of a file.

    Raise InputError if a store cannot be reached, and OSError as `Path.read_bytes`, also for a device or a pipe.
    """
    _refuse_special(location)
    with reached(location):
        return location.read_bytes()


def opened(location: Location) -> BufferedIOBase:
    """Open a file to read it; one of a store is read at once. Raise as `read_bytes`."""
    _refuse_special(location)
    return location.open("rb") if isinstance(location, Path) else BytesIO(read_bytes(location))


def _refuse_special(location: Location) -> None:
    """Raise OSError for a device or a pipe, which may keep its reader waiting for ever."""
    if isinstance(location, Path) and is_special(location):
        raise OSError(errno.EINVAL, "it is a device or a pipe", str(location))


def exists(location: Location) -> bool:
    """Return whether there is a file or a folder. Raise InputError if a store cannot be reached."""
    with reached(location):
        return location.exists()


def listed(folder: Location) -> list[Location]:
    """Return the files and folders in a folder by name; none if a store has no such folder."""
    # A store has files whose names begin alike, and no empty folders.
    if not isinstance(folder, Path) and not exists(folder):
        return []
    with reached(folder):
        return sorted(folder.iterdir(), key=lambda location: location.name)


def write_bytes(location: Location, content: bytes, mark: str) -> None:
    """Write a file whole. Raise InputError if that is refused.

    mark: part of the name of the file aside, as in `write_atomically`.
    """
    if isinstance(location, Path):
        write_atomically(location, lambda aside: aside.write_bytes(content), mark)
        return
    try:
        with reached(location):
            location.write_bytes(content)
    except FileNotFoundError as error:
        raise InputError(f"cannot write {location}: {first_line(error)}") from error


def create(location: Location, content: bytes) -> bool:
    """Write a file in a store unless it exists, and return whether it was written. Raise InputError if refused."""
    assert not isinstance(location, Path), "a folder of this machine has a lock instead"
    try:
        with reached(location):
            location.fs.pipe_file(location.path, content, mode="create")
    except FileNotFoundError as error:
        raise InputError(f"cannot write {location}: {first_line(error)}") from error
    except FileExistsError:
        return False
    return True
