"""The checks that a filter names, for a task: its own, and those that every task has."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sector.engine.config import SHIFTED, Filter
from sector.engine.language.layout import Layout
from sector.engine.tasks import task_of
from sector.engine.tasks.check import Check, Solve
from sector.engine.tasks.task import Task


def _answered_at_once(problems: Any, answers: Tensor) -> tuple[Any, Tensor] | None:
    return (problems, answers) if task_of(problems).answers_at_once(problems) else None


def _of_some_digits(problems: Any, answers: Tensor) -> tuple[Any, Tensor] | None:
    """Only chains that end in guesses can differ from one that guesses nothing."""
    return (problems, answers) if task_of(problems).at_once is None and problems.digits > 1 else None


DIRECT = Check("direct", "direct answer", _answered_at_once, Solve.AT_ONCE)
THROUGH = Check("through", "chain of thought to the end", _of_some_digits, Solve.TO_THE_END)


def checks_of(settings: Filter, task: Task) -> tuple[Check, ...]:
    """The checks of a filter in their order, without those that the task does not have."""
    known = {check.name: check for check in (DIRECT, THROUGH, *task.checks)}
    if "commutative" in known:
        known[SHIFTED] = replace(known["commutative"], shifted=True)
    return tuple(known[name] for name in settings.checks if name in known)


def shifts_of(check: Check, rows: Tensor, layout: Layout) -> Tensor:
    """`[B]` variants of the layout in which a check poses: the plain one, or one by the row's counter."""
    if not check.shifted or layout.num_variants == 1:
        return torch.zeros_like(rows)
    return 1 + rows % (layout.num_variants - 1)


def posed_elsewhere(checks: tuple[Check, ...], problems: Any, answers: Tensor) -> tuple[Check, ...]:
    """The checks that pose other problems, and if that one is missing, the last of the task."""
    others = [check for check in checks if (posed := check.pose(problems, answers)) and posed[0] is not problems]
    last = task_of(problems).checks[-1]
    return (*others, *(() if last.name in {check.name for check in others} else (replace(last, shifted=True),)))
