"""Doors through which no code of a user has come."""

import pytest

from sector.engine.config import CHECK_DOOR, ENGINE_DOOR
from sector.engine.tasks import TASK_DOOR

_DOORS = (TASK_DOOR, ENGINE_DOOR, CHECK_DOOR)


def empty_doors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the code that has come until the end of the test."""
    for door in _DOORS:
        monkeypatch.setattr(door, "things", {})
        monkeypatch.setattr(door, "origins", {})


def forget() -> None:
    """Forget the code that has come, as another process does not know it."""
    for door in _DOORS:
        door.things.clear()
        door.origins.clear()
