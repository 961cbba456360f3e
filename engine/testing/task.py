"""The test of a task from outside or inside: `sector.testing.check_task`, `sector task check`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sector.engine.language.operands import digit_strings
from sector.engine.tasks import TASK_DOOR, true_answers
from sector.engine.tasks.declared import Declaration, as_task
from sector.engine.tasks.outside import named_task
from sector.engine.tasks.task import Task
from sector.engine.testing import promises, text_promises
from sector.engine.testing.promise import LENGTHS, Promise, drawn, hold

# In the order in which they are tested.
PROMISES = (*promises.PROMISES, *text_promises.PROMISES)


def check_task(
    task: str | type[Declaration] | Declaration | Task,
    value: Callable[[str], int | str] | None = None,
    *,
    on_kept: Callable[[Promise], None] = lambda promise: None,
) -> list[str]:
    """Test whether a task keeps its promises to the loop; return them in words.

    task: the task, or `FILE.py:NAME`, `MODULE:NAME` or the name of a task that is known.
    value: function from a problem as text to its answer, by other means than the steps of the task.
    on_kept: function that is called after each promise that is kept.

    Raise BrokenPromise with an example for the first promise that is broken, and InputError if there is no such task.
    """
    with _known(task) as known:
        if value is not None:
            check_values(known, value)
        for promise in PROMISES:
            promise.test(known)
            on_kept(promise)
    return [promise.text for promise in PROMISES]


def check_values(task: Task, value: Callable[[str], int | str]) -> None:
    """Raise BrokenPromise if an answer is not the value that a function of the problem's text gives."""
    for digits in LENGTHS:
        problems = drawn(task, digits)
        for text, answer in zip(problems.texts(), digit_strings(true_answers(problems)), strict=True):
            expected = str(value(text)).zfill(len(answer))
            hold(answer == expected, f"the answer to {text} is {answer} by its steps, and {expected} by value")


@contextmanager
def _known(task: str | type[Declaration] | Declaration | Task) -> Iterator[Task]:
    """Yield a task that is known by its name, as the loop finds it."""
    if isinstance(task, str):
        yield named_task(task)
        return
    made = task() if isinstance(task, type) else task
    made = as_task(made) if isinstance(made, Declaration) else made
    if TASK_DOOR.has(made.name):
        yield made
        return
    TASK_DOOR.register(made)
    try:
        yield made
    finally:
        del TASK_DOOR.things[made.name]
