"""Tasks: problems, their sealed truth, and the checks by which a model tests itself.

May import: `language`. Open `task.py` first: the protocol of a task. Every other module here is one task, except
`check.py` and `text_check.py` (relations between problems), `oracle.py` (the sealed truth), `mistakes.py` (kinds of
errors), `declared.py` (tasks in plain Python) and `outside.py` (tasks of users).
"""

import pkgutil
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, TypeGuard

from sector.engine.outside import Door

if TYPE_CHECKING:
    from torch import Tensor

    from sector.engine.language.layout import B, Batch
    from sector.engine.tasks.oracle import Truth
    from sector.engine.tasks.task import Task

DEFAULT = "addition"
# Modules of this room that are not tasks.
_NOT_TASKS = {"check", "declared", "mistakes", "oracle", "outside", "task", "text_check"}


@cache
def built_in() -> tuple[str, ...]:
    """Return the names of the tasks of this package, whose modules are named after them."""
    return tuple(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NOT_TASKS)


TASK_DOOR: "Door[Task]" = Door("task", "--task FILE.py:NAME", built_in, f"{__name__}.outside")


def task_names() -> tuple[str, ...]:
    """Return the names of all tasks, sorted. No module of a task is imported."""
    return tuple(sorted(TASK_DOOR.names()))


def is_task(name: object) -> TypeGuard[str]:
    """Return whether there is a task of a name. No module of a task is imported."""
    return TASK_DOOR.has(name)


def no_such_task(name: object) -> str:
    """Return the message for a name that no task has, with the mend."""
    return TASK_DOOR.unknown(name)


def find_task(name: str) -> "Task":
    """Return the task of a name. Raise InputError if no task has it."""
    return _import(name) if name in built_in() else TASK_DOOR.find(name)


@cache
def _import(name: str) -> "Task":
    task: Task = import_module(f"{__name__}.{name}").TASK
    assert task.name == name, f"the module {name} holds the task {task.name}"
    return task


def task_of(problems: "B") -> "Task[B]":
    """Return the task of some problems."""
    return find_task(problems.task)


def truth_of(problems: "B") -> "Truth[B]":
    """Return the truth of the task of some problems."""
    return task_of(problems).truth


def true_answers(problems: "Batch") -> "Tensor":
    """Return the true answers, `[B, W]` digits, most significant first."""
    return truth_of(problems).answers(problems)
