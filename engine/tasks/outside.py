"""Tasks from outside of this package: of a file, of a module, or installed as an entry point of `sector.tasks`.

Their code is imported only because a user names it, as `FILE.py:NAME` or `MODULE:NAME`, or has installed it. No file of
a run, no checkpoint and no parquet file can name code: they hold the names of tasks, which are only looked up.
"""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.abc import SourceLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from sector.engine import tasks
from sector.engine.errors import InputError, first_line
from sector.engine.tasks.declared import Declaration, as_task
from sector.engine.tasks.task import Task


@dataclass(frozen=True, slots=True)
class Origin:
    """Code that a task was loaded from.

    reference: `FILE.py:NAME` with the whole path, or `MODULE:NAME`.
    source: bytes of the file; b'' for a module without a file.
    installed: whether it is an installed entry point, which needs no option.
    """

    reference: str
    source: bytes
    installed: bool = False

    @property
    def sha256(self) -> str:
        """Digest of the file."""
        return hashlib.sha256(self.source).hexdigest()


# Origins of the tasks that were loaded, by name.
_origins: dict[str, Origin] = {}


def load_task(reference: str) -> Task:
    """Import the code that a user names, and register its task. InputError names the fault if there is no such task.

    reference: `FILE.py:NAME` or `MODULE:NAME`, where NAME is a `Declaration` or a `Task`.
    """
    place, colon, name = reference.rpartition(":")
    if not (place and colon and name):
        raise InputError(f"{reference!r} names no task; write FILE.py:NAME or MODULE:NAME")
    if not place.endswith(".py"):
        return _load(Origin(reference, b""))
    path = Path(place).absolute()
    try:
        return _load(Origin(f"{path}:{name}", path.read_bytes()))
    except OSError as error:
        raise InputError(f"cannot read {place}: {error.strerror or error}; --task names FILE.py:NAME") from error


def load_installed(name: str) -> Task:
    """Import and register the task of an installed entry point, whose name must be that of the task."""
    return _load(Origin(tasks.installed()[name].value, b"", installed=True), name)


def load_origins(origins: Sequence[Origin]) -> None:
    """Load tasks that another process of this program has loaded."""
    for origin in origins:
        _load(origin)


def origins() -> list[Origin]:
    """Return the origins of all tasks that were loaded."""
    return list(_origins.values())


def origin_of(name: str) -> Origin | None:
    """Return the origin of a task; None for a task of this package."""
    if name in tasks.installed() and name not in _origins:
        load_installed(name)
    return _origins.get(name)


def _load(origin: Origin, point: str | None = None) -> Task:
    """Import the code of an origin and register its task, in the place of an earlier one of the same reference.

    point: name of the entry point, if it is one.
    """
    place, _, name = origin.reference.rpartition(":")
    try:
        module = _import_file(place, origin.source) if place.endswith(".py") else import_module(place)
        if not place.endswith(".py") and (module.__file__ or "").endswith(".py"):
            origin = Origin(origin.reference, Path(str(module.__file__)).read_bytes(), origin.installed)
        task = _task(module, name)
    except InputError as error:
        raise InputError(f"{origin.reference}: {error}") from error
    # The code is the user's, and may fail in any way.
    except Exception as error:
        raise InputError(
            f"{origin.reference} cannot be loaded ({type(error).__name__}: {first_line(error)})"
        ) from error
    if point is not None and task.name != point:
        raise InputError(f"the entry point {point!r} of sector.tasks holds the task {task.name!r}; give both one name")
    earlier = _origins.get(task.name)
    if earlier is not None and earlier.reference == origin.reference:
        tasks.unregister(task.name)
    elif task.name in tasks.installed() and not origin.installed:
        raise InputError(f"{origin.reference}: there is an installed task {task.name!r}; give yours another name")
    tasks.register(task)
    _origins[task.name] = origin
    return task


def _task(module: ModuleType, name: str) -> Task:
    """Return the task of a name in a module. InputError if there is none."""
    member: Any = getattr(module, name, None)
    member = member() if isinstance(member, type) and issubclass(member, Declaration | Task) else member
    if isinstance(member, Declaration):
        return as_task(member)
    if isinstance(member, Task):
        return member
    names = [key for key, value in vars(module).items() if _is_task_class(value, module)]
    raise InputError(f"there is no task {name!r}; the module has {', '.join(names) or 'none'}")


def _is_task_class(value: Any, module: ModuleType) -> bool:
    """Return whether a value is a class of tasks that a module itself defines."""
    return isinstance(value, type) and issubclass(value, Declaration | Task) and value.__module__ == module.__name__


class _Bytes(SourceLoader):
    """Loader of a module from the bytes of a file, so that the digest is that of the code that runs.

    There is no compiled copy of it: none is read, and none is left behind.
    """

    def __init__(self, path: str, source: bytes) -> None:
        self._path, self._source = path, source

    def get_filename(self, fullname: str) -> str:
        """Return the path of the file, for tracebacks."""
        return self._path

    def get_data(self, path: str | bytes) -> bytes:
        """Return the bytes of the file."""
        return self._source


def _import_file(path: str, source: bytes) -> ModuleType:
    """Import the bytes of a file as a module that is named after their digest."""
    name = f"sector_task_{hashlib.sha256(path.encode(errors='surrogateescape') + source).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, path, loader=_Bytes(path, source))
    assert spec is not None and spec.loader is not None, "a loader with a file has a spec"
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
