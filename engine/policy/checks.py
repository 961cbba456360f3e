"""The checks that a filter names: two that every task has, those of the task, and those of users.

Complement and commutativity of sums are in `tasks/addition.py`. `engine/outside.py` imports the checks of users.
"""

from dataclasses import replace

import torch
from torch import Tensor

from sector.engine.config import CHECK_DOOR, SHIFTED, Filter
from sector.engine.language.layout import B, Batch, Layout
from sector.engine.tasks import task_of
from sector.engine.tasks.check import Check, Solve
from sector.engine.tasks.task import Task


def _pose_directly(problems: B, answers: Tensor) -> tuple[B, Tensor] | None:
    """Pose the problems themselves; None if the fast policy cannot answer them at once."""
    return (problems, answers) if task_of(problems).answers_at_once(problems) else None


def _pose_to_the_end(problems: B, answers: Tensor) -> tuple[B, Tensor] | None:
    """Pose the problems themselves; None if the vote has already solved them to the end."""
    return (problems, answers) if task_of(problems).at_once is None and problems.digits > 1 else None


DIRECT = Check("direct", "direct answer", _pose_directly, Solve.AT_ONCE)
THROUGH = Check("through", "chain of thought to the end", _pose_to_the_end, Solve.TO_THE_END)


def checks_of(settings: Filter, task: Task) -> tuple[Check, ...]:
    """Return the checks of a filter in order, without the checks that the task does not have.

    Raise InputError for a check of a user whose code is not loaded.
    """
    by_name = {check.name: check for check in (DIRECT, THROUGH, *task.checks)}
    theirs = (name for name in settings.checks if name not in by_name and name not in CHECK_DOOR.built_in())
    by_name |= {name: CHECK_DOOR.find(name) for name in theirs}
    if "commutative" in by_name:
        by_name[SHIFTED] = replace(by_name["commutative"], shifted=True)
    return tuple(by_name[name] for name in settings.checks if name in by_name)


def shifts_of(check: Check, rows: Tensor, layout: Layout) -> Tensor:
    """Return the layout variants `[B]` for a check: the plain one, or a shifted one chosen by the row's counter."""
    if not check.shifted or layout.num_variants == 1:
        return torch.zeros_like(rows)
    return 1 + rows % (layout.num_variants - 1)


def posed_elsewhere(checks: tuple[Check, ...], problems: Batch, answers: Tensor) -> tuple[Check, ...]:
    """Return the checks that pose other problems than the candidates; the last check of the task is always included."""
    others = [check for check in checks if (posed := check.pose(problems, answers)) and posed[0] is not problems]
    last = task_of(problems).checks[-1]
    if last.name not in {check.name for check in others}:
        others.append(replace(last, shifted=True))
    return tuple(others)


def load_check(reference: str) -> Check:
    """Import the code that a user names, and register the check in it. Raise InputError if it holds no check.

    reference: `FILE.py:NAME` or `MODULE:NAME`, where NAME is a `Check`.
    """
    check: Check = CHECK_DOOR.load(reference)
    return check


def thing_of(member: object) -> Check | None:
    """Return the check that a member of a module is; None if it is something else."""
    return member if isinstance(member, Check) else None


def offers(member: object) -> bool:
    """Return whether a member of a module is a check."""
    return isinstance(member, Check)
