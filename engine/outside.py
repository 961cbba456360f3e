"""Code of users: tasks, engines and checks of a file, of a module, or installed as an entry point.

Code is imported only because a user names it, as `FILE.py:NAME` or `MODULE:NAME`, or has installed it. No file of a
run, no checkpoint and no parquet file can name code: they hold the names of tasks, engines and checks, which are only
looked up. This module imports no torch.
"""

import hashlib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.abc import SourceLoader
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, Protocol, TypeVar

from sector.engine.errors import InputError, first_line

_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Named(Protocol):
    """A task, an engine or a check."""

    @property
    def name(self) -> str: ...


Thing = TypeVar("Thing", bound=Named)
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Origin:
    """Code that a task, an engine or a check was loaded from.

    kind: `task`, `engine` or `check`.
    reference: `FILE.py:NAME` with the whole path, or `MODULE:NAME`.
    source: bytes of the file; b'' for a module without a file.
    installed: whether it is an installed entry point, which needs no option.
    """

    kind: str
    reference: str
    source: bytes
    installed: bool = False

    @property
    def sha256(self) -> str:
        """Digest of the file."""
        return hashlib.sha256(self.source).hexdigest()


class Door(Generic[Thing]):
    """Names of one kind, tasks for example: those of this package, and those that users add.

    kind: noun of the kind.
    usage: how a user names a file, for messages.
    built_in: function that returns the names of this package, which nothing can replace.
    things: tasks, engines or checks of users by name, those that are loaded.
    origins: their origins by name.
    """

    def __init__(self, kind: str, usage: str, built_in: Callable[[], Sequence[str]], home: str) -> None:
        """Prepare a door; no code is imported.

        home: module of this package with two functions. `thing_of(member)` returns the task, engine or check that a
            member of a user's module is, or None. `offers(member)` returns whether a member looks like one.
        """
        self.kind, self.usage, self.built_in = kind, usage, built_in
        self._home = home
        self.things: dict[str, Thing] = {}
        self.origins: dict[str, Origin] = {}
        _DOORS[kind] = self

    @property
    def group(self) -> str:
        """Group of entry points."""
        return f"sector.{self.kind}s"

    def installed(self) -> dict[str, EntryPoint]:
        """Return the installed entry points by name. None is imported; names of this package win."""
        return {name: points[0] for name, points in _installed(self.group).items() if name not in self.built_in()}

    def names(self) -> tuple[str, ...]:
        """Return all names, those of this package first. No code is imported."""
        return (*self.built_in(), *sorted({*self.things, *self.installed()}))

    def has(self, name: object) -> bool:
        """Return whether there is a thing of a name. No code is imported."""
        return isinstance(name, str) and name in self.names()

    def unknown(self, name: object) -> str:
        """Return the message for a name that nothing has, with the mend."""
        return (
            f"unknown {self.kind} {name!r}; choose one of {', '.join(self.names())}; or install the package that "
            f"brings it, or name its file as {self.usage}"
        )

    def find(self, name: str) -> Thing:
        """Return the task, engine or check of a user by its name. Raise InputError if none has it."""
        if name not in self.things:
            if name not in self.installed():
                raise InputError(self.unknown(name))
            if len(values := {point.value for point in _installed(self.group)[name]}) > 1:
                raise InputError(
                    f"several packages bring the {self.kind} {name!r} ({', '.join(sorted(values))}); uninstall all but "
                    "one"
                )
            self._load(Origin(self.kind, self.installed()[name].value, b"", installed=True), name)
        return self.things[name]

    def origin_of(self, name: str) -> Origin | None:
        """Return the origin of a thing; None if it belongs to this package, or is not loaded."""
        if name in self.installed():
            self.find(name)
        return self.origins.get(name)

    def load(self, reference: str) -> Thing:
        """Import the code that a user names, and register the task, engine or check in it.

        Raise InputError if it holds none.

        reference: `FILE.py:NAME` or `MODULE:NAME`.
        """
        place, colon, name = reference.rpartition(":")
        if not (place and colon and name):
            raise InputError(f"{reference!r} names no {self.kind}; write FILE.py:NAME or MODULE:NAME")
        if not place.endswith(".py"):
            return self._load(Origin(self.kind, reference, b""))
        path = Path(place).absolute()
        try:
            source = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {place}: {error.strerror or error}; write {self.usage}") from error
        return self._load(Origin(self.kind, f"{path}:{name}", source))

    def named(self, value: Value) -> Value | str:
        """Return the name of the thing that a user means, and load it if the value is a reference to code.

        Other values are returned as they are. Raise InputError if a reference leads to no thing.
        """
        return self.load(value).name if isinstance(value, str) and ":" in value else value

    def register(self, thing: Thing) -> None:
        """Make a thing of a user known by its name. Raise InputError if another one has that name."""
        if thing.name in self.built_in() or self.things.get(thing.name, thing) is not thing:
            raise InputError(f"there is a {self.kind} {thing.name!r} already; give yours another name")
        self.things[thing.name] = thing

    def _load(self, origin: Origin, point: str | None = None) -> Thing:
        """Import the code of an origin and register its thing, in the place of an earlier one of the same reference.

        point: name of the entry point, if it is one.
        """
        thing, origin = self._imported(origin)
        if point is not None and thing.name != point:
            raise InputError(
                f"the entry point {point!r} of {self.group} holds the {self.kind} {thing.name!r}; give both one name"
            )
        earlier = self.origins.get(thing.name)
        if earlier is not None and earlier.reference == origin.reference:
            del self.things[thing.name]
        elif thing.name in self.installed() and not origin.installed:
            raise InputError(
                f"{origin.reference}: there is an installed {self.kind} {thing.name!r}; give yours another name"
            )
        self.register(thing)
        self.origins[thing.name] = origin
        return thing

    def _imported(self, origin: Origin) -> tuple[Thing, Origin]:
        """Import the code of an origin; return its thing, and the origin with the bytes of its file."""
        place, _, name = origin.reference.rpartition(":")
        try:
            module = _import_file(place, origin.source) if place.endswith(".py") else import_module(place)
            if not place.endswith(".py") and (module.__file__ or "").endswith(".py"):
                source = Path(str(module.__file__)).read_bytes()
                origin = Origin(self.kind, origin.reference, source, origin.installed)
            return self._member(module, name), origin
        except InputError as error:
            raise InputError(f"{origin.reference}: {error}") from error
        # The code is the user's, and may fail in any way.
        except Exception as error:
            raise InputError(
                f"{origin.reference} cannot be loaded ({type(error).__name__}: {first_line(error)})"
            ) from error

    def _member(self, module: ModuleType, name: str) -> Thing:
        """Return the task, engine or check of a name in a module. Raise InputError if it is not there, or misnamed."""
        # Imported by name, since that module comes with torch and imports this one.
        home = import_module(self._home)
        thing: Thing | None = home.thing_of(getattr(module, name, None))
        if thing is None:
            own = [key for key, value in vars(module).items() if _is_own(value, module) and home.offers(value)]
            raise InputError(f"there is no {self.kind} {name!r}; the module has {', '.join(own) or 'none'}")
        if not isinstance(getattr(thing, "name", None), str) or not _NAME.fullmatch(thing.name):
            raise InputError(
                f"{name} has no valid name; give it a name of lower case letters, digits and _, which configs hold"
            )
        return thing


_DOORS: dict[str, Door[Any]] = {}


def load_origins(origins: Sequence[Origin]) -> None:
    """Load the code that another process of this program has loaded."""
    for origin in origins:
        _DOORS[origin.kind]._load(origin)


def origins() -> list[Origin]:
    """Return the origins of all code that was loaded."""
    return [origin for door in _DOORS.values() for origin in door.origins.values()]


def is_plain_name(name: object) -> bool:
    """Return whether a value could be the name of a task, an engine or a check; a reference to code cannot."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


@cache
def _installed(group: str) -> dict[str, list[EntryPoint]]:
    """Return the entry points of a group by name; several packages may have taken one name."""
    points: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=group):
        points.setdefault(point.name, []).append(point)
    return points


def _is_own(value: object, module: ModuleType) -> bool:
    """Return whether a module defines a value itself; values that are no classes count as its own."""
    return not isinstance(value, type) or value.__module__ == module.__name__


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
    name = f"sector_outside_{hashlib.sha256(path.encode(errors='surrogateescape') + source).hexdigest()[:16]}"
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
