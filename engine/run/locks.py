"""Locks of directories: one process at a time writes to a run or to a folder of parts."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from sector.engine.errors import InputError
from sector.engine.files import refuse_address, write_text

LOCK = ".lock"
HOLDER = ".holder.json"


@contextmanager
def locked(root: Path, work: str) -> Iterator[None]:
    """Lock a directory for this process; create it if it is missing.

    If no file is added, no lock stays behind; a directory that stays empty is removed again, with the parents that were
    created for it.

    Raise InputError if another process holds the lock, naming it, or if the directory cannot be written.

    work: name of the work that other processes may do there, for the message.
    """
    refuse_address(root)
    lock, holder = FileLock(root / LOCK), root / HOLDER
    created = [path for path in (root, *root.parents) if not path.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        before = _names(root)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"{root} is in use by another {work}{_who(holder)}; wait for it or choose another --out"
        ) from error
    except OSError as error:
        raise InputError(f"cannot write to {root}: {error.strerror or error}") from error
    try:
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        write_text(holder, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}) + "\n")
        yield
    finally:
        holder.unlink(missing_ok=True)
        if _names(root) - {LOCK} == before:
            (root / LOCK).unlink()
        lock.release()
        with suppress(OSError):
            for path in created:
                path.rmdir()


def _names(root: Path) -> set[str]:
    """Return the names of all files in a directory, except for that of the process that holds its lock."""
    return {path.name for path in root.iterdir()} - {HOLDER}


def _who(holder: Path) -> str:
    """Describe the process that holds a lock; empty if it is not known."""
    try:
        process = json.loads(holder.read_text(encoding="utf-8"))
        return f" (process {process['pid']} on {process['host']} since {process['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
