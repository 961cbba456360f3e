"""Tasks of users, as `engine/outside.py` imports them."""

from typing import TypeGuard

from sector.engine.tasks import TASK_DOOR, find_task
from sector.engine.tasks.declared import Declaration, as_task
from sector.engine.tasks.task import Task


def load_task(reference: str) -> Task:
    """Import the code that a user names, and register the task in it. Raise InputError if it holds no task.

    reference: `FILE.py:NAME` or `MODULE:NAME`, where NAME is a `Declaration` or a `Task`.
    """
    return TASK_DOOR.load(reference)


def named_task(reference: str) -> Task:
    """Return the task of a name, or of a reference as in `load_task`. Raise InputError if no task is there."""
    return find_task(TASK_DOOR.named(reference))


def thing_of(member: object) -> Task | None:
    """Return the task that a member of a module is, or declares; None if it is something else."""
    member = member() if offers(member) else member
    if isinstance(member, Declaration):
        return as_task(member)
    return member if isinstance(member, Task) else None


def offers(member: object) -> TypeGuard[type[Declaration | Task]]:
    """Return whether a member of a module is a class of tasks."""
    return isinstance(member, type) and issubclass(member, Declaration | Task)
