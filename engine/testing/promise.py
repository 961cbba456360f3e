"""A promise of a task to the loop: its words, its test, and the error if it is broken."""

from collections.abc import Callable
from dataclasses import dataclass

from sector.engine.errors import InputError
from sector.engine.language.layout import Batch
from sector.engine.seeding import generator
from sector.engine.tasks.task import Task

ROWS = 24
# Digits of the problems that are drawn: the shortest that can be simplified, and longer ones.
LENGTHS = (2, 5)


class BrokenPromise(InputError):
    """Error: a task does not keep a promise."""


@dataclass(frozen=True, slots=True)
class Promise:
    """A promise of a task to the loop.

    text: the promise, in words.
    test: function that raises BrokenPromise, with an example, if a task does not keep it.
    """

    text: str
    test: Callable[[Task], None]

    @property
    def name(self) -> str:
        """Name of its function."""
        return self.test.__name__.removeprefix("_")


def hold(condition: bool, message: str) -> None:
    """Raise BrokenPromise with a message if a condition does not hold."""
    if not condition:
        raise BrokenPromise(message)


def promise(text: str) -> Callable[[Callable[[Task], None]], Promise]:
    """Return a decorator that makes a promise of its test."""
    return lambda test: Promise(text, test)


def drawn(task: Task, digits: int) -> Batch:
    """Return problems of a task, half of them hard; the same ones in each call."""
    problems: Batch = task.draw(digits, ROWS, generator(digits, "tasks"), hard_share=0.5)
    return problems
