"""The truth of every task, sealed during self-training (rule 1: label-free).

Only the supervised phase (`supervised.py`) and the audit (`audit.py`) read it. A self-training round runs inside
`sealed()`, where every method of every truth raises OracleSealed. So no truth can reach the weights, the filter, the
curriculum or the stopping rule. The truth of a task stands in the task's own file (`engine/tasks/`), in a class derived
from `Truth`, which guards each of its methods.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Generic, ParamSpec, TypeVar

from torch import Tensor

from sector.engine.language.layout import B, Simplifications
from sector.engine.tasks.mistakes import Mistake

_seals = 0
_P = ParamSpec("_P")
_R = TypeVar("_R")


class OracleSealed(RuntimeError):
    """Error: the truth was read inside a self-training round."""


@contextmanager
def sealed() -> Iterator[None]:
    """Seal the truth within a context: every method of a `Truth` raises OracleSealed. Contexts may be nested."""
    global _seals
    _seals += 1
    try:
        yield
    finally:
        _seals -= 1


def is_sealed() -> bool:
    """Return whether the truth is sealed."""
    return _seals > 0


def _guarded(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return a method that raises OracleSealed while the truth is sealed."""

    @wraps(method)
    def guarded(*arguments: _P.args, **options: _P.kwargs) -> _R:
        if _seals:
            raise OracleSealed(f"{method.__qualname__} is sealed during self-training (rule 1: label-free)")
        return method(*arguments, **options)

    return guarded


def guard(cls: type, names: Iterable[str]) -> None:
    """Let the named methods of a class raise OracleSealed while the truth is sealed.

    Raise TypeError for a static method, a class method or a property, which could not be guarded.
    """
    for name in names:
        value = vars(cls)[name]
        if isinstance(value, staticmethod | classmethod | property):
            raise TypeError(f"{cls.__qualname__}.{name} would be a way around the door; make it a plain method")
        if callable(value):
            setattr(cls, name, _guarded(value))


class Truth(ABC, Generic[B]):
    """The truth of a task's problems. Every method of a derived class raises OracleSealed while sealed.

    A derived class may not hold static methods, class methods or properties, which could not be guarded: TypeError.
    """

    def __init_subclass__(cls) -> None:
        guard(cls, list(vars(cls)))

    @abstractmethod
    def answers(self, problems: B) -> Tensor:
        """Return the true answers, `[B, W]` digits, most significant first."""

    @abstractmethod
    def simplifications(self, problems: B) -> Simplifications[B]:
        """Return the true first simplifications; if N is 1 the remaining problems have no digits."""

    def answer_mistakes(self, problems: B, answers: Tensor) -> list[Mistake]:
        """Return the first mistake of each answer `[B, W]`; here ADDED for each wrong one."""
        # Sealed by the method that it calls.
        wrong = (answers != self.answers(problems)).any(dim=1)
        return [Mistake.ADDED if is_wrong else Mistake.RIGHT for is_wrong in wrong.tolist()]

    @abstractmethod
    def simplification_mistakes(self, problems: B, outputs: Simplifications[B]) -> list[Mistake]:
        """Return the first mistake of each simplification, in writing order."""
