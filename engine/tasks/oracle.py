"""The truth of every task: behind the door of rule 1 (mission: label-free).

Only the supervised phase (`supervised.py`) and the audit (`audit.py`) ask. A self-training round runs inside
`sealed()`, where every question raises, so that nothing true can reach the weights, the filter, the curriculum or the
stopping rule. What is true of a task stands in its own file (`engine/tasks/`), in a class derived from `Truth`, which
puts each of its methods behind the door.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from sector.engine.language.layout import Simplifications
    from sector.engine.tasks.mistakes import Mistake

_seals = 0
_Asked = TypeVar("_Asked", bound=Callable[..., Any])


class OracleSealed(RuntimeError):
    """The truth was asked for inside a self-training round."""


@contextmanager
def sealed() -> Iterator[None]:
    """Within this context every question raises OracleSealed."""
    global _seals
    _seals += 1
    try:
        yield
    finally:
        _seals -= 1


def is_sealed() -> bool:
    """Is the truth out of reach just now?"""
    return _seals > 0


def _behind_the_door(ask: _Asked) -> _Asked:
    @wraps(ask)
    def asked(*given: Any, **named: Any) -> Any:
        if _seals:
            raise OracleSealed(f"{ask.__qualname__} is sealed during self-training (rule 1: label-free)")
        return ask(*given, **named)

    return asked  # type: ignore[return-value]


class Truth(ABC):
    """What is true of a task's problems. Every function of a derived class raises while sealed, its author's wish or
    not.
    """

    def __init_subclass__(cls) -> None:
        for name, value in list(vars(cls).items()):
            if isinstance(value, staticmethod | classmethod | property):
                raise TypeError(f"{cls.__qualname__}.{name} would be a way around the door; make it a plain method")
            if callable(value):
                setattr(cls, name, _behind_the_door(value))

    @abstractmethod
    def answers(self, problems: Any) -> Tensor:
        """The true answers, `[B, W]` digits, most significant first."""

    @abstractmethod
    def simplifications(self, problems: Any) -> "Simplifications":
        """The true first simplifications; rests of no digits where N is 1."""

    @abstractmethod
    def answer_mistakes(self, problems: Any, answers: Tensor) -> "list[Mistake]":
        """What is wrong with each of the answers `[B, W]`."""

    @abstractmethod
    def simplification_mistakes(self, problems: Any, said: "Simplifications") -> "list[Mistake]":
        """What is wrong with each simplification, in the order in which it is written."""
