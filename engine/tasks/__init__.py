"""The tasks: problems, their truth behind a sealed door, and the checks by which a model tests itself.

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
# Modules of this room that are no task.
_SHARED = {"check", "mistakes", "oracle", "task"}


@cache
def task_names() -> tuple[str, ...]:
    """Names of all tasks, sorted; modules are named after their tasks, so that nothing is imported."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _SHARED))


@cache
def find_task(name: str) -> "Task":
    """The task of that name. InputError if there is none."""
    if name not in task_names():
        raise InputError(f"unknown task {name!r}; choose one of {', '.join(task_names())}")
    task: Task = import_module(f"{__name__}.{name}").TASK
    assert task.name == name, f"the module {name} holds the task {task.name}"
    return task


def task_of(problems: Any) -> "Task":
    """The task that problems belong to."""
    return find_task(problems.task)


def truth_of(problems: Any) -> "Truth":
    """What is true of these problems' task."""
    return task_of(problems).truth


def true_answers(problems: Any) -> "Tensor":
    """The true answers, `[B, W]` digits, most significant first."""
    return truth_of(problems).answers(problems)
