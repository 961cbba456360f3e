"""Tasks: problems, their sealed truth, and the checks by which a model tests itself.

May import: `language`. Open `task.py` first: the protocol of a task. Every other module here is one task, except
`check.py` (relations between problems), `oracle.py` (the sealed truth) and `mistakes.py` (kinds of errors).
"""

import pkgutil
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sector.engine.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from sector.engine.tasks.oracle import Truth
    from sector.engine.tasks.task import Task

DEFAULT = "addition"
# Modules of this room that are not tasks.
_NOT_TASKS = {"check", "mistakes", "oracle", "task"}


@cache
def task_names() -> tuple[str, ...]:
    """Return the names of all tasks, sorted. Modules are named after their tasks, so no module is imported."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NOT_TASKS))


@cache
def find_task(name: str) -> "Task":
    """Return the task of a name. InputError if there is none."""
    if name not in task_names():
        raise InputError(f"unknown task {name!r}; choose one of {', '.join(task_names())}")
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
