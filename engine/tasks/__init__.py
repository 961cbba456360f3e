"""Tasks: problems, their sealed truth, and the checks by which a model tests itself.

May import: `language`. Open `task.py` first: the protocol of a task. Every other module here is one task, except
`check.py` (relations between problems), `oracle.py` (the sealed truth), `mistakes.py` (kinds of errors), `declared.py`
(tasks in plain Python) and `outside.py` (tasks of users).
"""

import pkgutil
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from sector.engine.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from sector.engine.tasks.oracle import Truth
    from sector.engine.tasks.task import Task

DEFAULT = "addition"
# Modules of this room that are not tasks.
_NOT_TASKS = {"check", "declared", "mistakes", "oracle", "outside", "task"}
# Tasks from outside of this package, by name.
_registered: "dict[str, Task]" = {}


def register(task: "Task") -> None:
    """Make a task from outside of this package known by its name. InputError if another task has that name."""
    if task.name in built_in() or _registered.get(task.name, task) is not task:
        raise InputError(f"there is a task {task.name!r} already; give yours another name")
    _registered[task.name] = task


def unregister(name: str) -> None:
    """Forget a task from outside of this package."""
    del _registered[name]


def task_names() -> tuple[str, ...]:
    """Return the names of all tasks, sorted. No module of a task is imported."""
    return tuple(sorted({*built_in(), *_registered, *installed()}))


def is_task(name: Any) -> bool:
    """Return whether there is a task of a name. No module of a task is imported."""
    return isinstance(name, str) and (name in built_in() or name in _registered or name in installed())


def no_such_task(name: Any) -> str:
    """Return the message for a name that no task has, with the mend."""
    return (
        f"unknown task {name!r}; choose one of {', '.join(task_names())}; or install the package that brings it, or "
        "name its file as --task FILE.py:NAME"
    )


@cache
def installed() -> dict[str, EntryPoint]:
    """Return the installed entry points of `sector.tasks` by name. None is imported; names of this package win."""
    points = entry_points(group="sector.tasks")
    return {point.name: point for point in points if point.name not in built_in()}


@cache
def built_in() -> tuple[str, ...]:
    """Return the names of the tasks of this package, whose modules are named after them."""
    return tuple(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NOT_TASKS)


def find_task(name: str) -> "Task":
    """Return the task of a name. InputError if there is none."""
    if name in _registered:
        return _registered[name]
    if name in built_in():
        return _import(name)
    if name not in installed():
        raise InputError(no_such_task(name))
    # Imported by name, since that module imports this one.
    task: Task = import_module(f"{__name__}.outside").load_installed(name)
    return task


@cache
def _import(name: str) -> "Task":
    """Return a task of this package."""
    task: Task = import_module(f"{__name__}.{name}").TASK
    assert task.name == name, f"the module {name} holds the task {task.name}"
    return task


def task_of(problems: Any) -> "Task":
    """Return the task of some problems."""
    return find_task(problems.task)


def truth_of(problems: Any) -> "Truth":
    """Return the truth of the task of some problems."""
    return task_of(problems).truth


def true_answers(problems: Any) -> "Tensor":
    """Return the true answers, `[B, W]` digits, most significant first."""
    return truth_of(problems).answers(problems)
