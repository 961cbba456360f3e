"""Nested values whose tensors have a row a problem, put together and moved as one."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


def cat(parts: Sequence[Value]) -> Value:
    """One after another: rows of tensors are joined and numbers added up; anything else must be equal in all parts."""
    values: Sequence[Any] = parts
    return _cat(values)


def _cat(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values))
    if isinstance(first, int):
        return sum(values)
    if isinstance(first, tuple):
        return tuple(_cat(items) for items in zip(*values, strict=True))
    if hasattr(first, "cat"):
        return type(first).cat(values)
    if is_dataclass(first):
        return _with(
            first, {field.name: _cat([getattr(value, field.name) for value in values]) for field in fields(first)}
        )
    assert all(value == first for value in values), f"{first!r} is not the same in all parts"
    return first


def move(value: Value, device: torch.device) -> Value:
    """The same on a device."""
    return _moved(value, device)


def _moved(value: Any, device: torch.device) -> Any:
    if hasattr(value, "to"):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_moved(item, device) for item in value)
    if is_dataclass(value):
        return _with(value, {field.name: _moved(getattr(value, field.name), device) for field in fields(value)})
    return value


def _with(value: Any, members: dict[str, Any]) -> Any:
    """A dataclass of the same type with these members."""
    return type(value)(**members)
