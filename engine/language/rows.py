"""Records of tensors with one row a problem: select rows, move and concatenate all tensors together."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class RowRecord:
    """Base of dataclasses whose fields are tensors, or records again, with one row a problem."""

    def __getitem__(self, rows: Tensor | slice) -> Self:
        """Return the records of some rows."""
        return _map(lambda member: member[rows], self)

    def to(self, device: torch.device) -> Self:
        """Return the record on a device."""
        return move(self, device)

    @classmethod
    def cat(cls, parts: Iterable[Self]) -> Self:
        """Concatenate the rows of several records."""
        return _map_all(cat, list(parts))


def cat(parts: Sequence[Value]) -> Value:
    """Concatenate nested values: join the rows of tensors, add up numbers, and keep values that are equal in all parts.

    Tuples and dataclasses are concatenated member by member, unless they have a function `cat` of their own.
    """
    # mypy does not follow a type variable through isinstance.
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
        return _map_all(_cat, values)
    assert all(value == first for value in values), f"{first!r} is not the same in all parts"
    return first


def move(value: Value, device: torch.device) -> Value:
    """Return a nested value with all its tensors on a device.

    Tensors of one dtype are copied together: between a GPU and the host each copy costs a wait.
    """
    away: dict[torch.dtype, list[Tensor]] = {}
    for tensor in _tensors(value):
        if tensor.device != device:
            away.setdefault(tensor.dtype, []).append(tensor)
    moved = {
        id(tensor): copy
        for tensors in away.values()
        for tensor, copy in zip(tensors, _copied(tensors, device), strict=True)
    }
    return _replaced(value, moved) if moved else value


def _copied(tensors: list[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Return tensors of one dtype on another device, by one copy."""
    if len(tensors) == 1:
        return [tensors[0].to(device)]
    joined = torch.cat([tensor.reshape(-1) for tensor in tensors]).to(device)
    parts = joined.split([tensor.numel() for tensor in tensors])
    # Copies, so that none keeps the memory of all.
    return [part.clone().view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nested value."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


def _replaced(value: Any, tensors: dict[int, Tensor]) -> Any:
    """Return a nested value with some of its tensors, named by their `id`, replaced."""
    if isinstance(value, Tensor):
        return tensors.get(id(value), value)
    if isinstance(value, tuple):
        return tuple(_replaced(item, tensors) for item in value)
    if is_dataclass(value):
        return _map(lambda member: _replaced(member, tensors), value)
    return value


def _map(function: Callable[[Any], Any], record: Any) -> Any:
    """Return a dataclass of the same type, with a function applied to each of its members."""
    return type(record)(*(function(getattr(record, field.name)) for field in fields(record)))


def _map_all(function: Callable[[list[Any]], Any], records: Sequence[Any]) -> Any:
    """Return one dataclass of the same type as all these, with a function applied to the members of each name."""
    names = [field.name for field in fields(records[0])]
    return type(records[0])(*(function([getattr(record, name) for record in records]) for name in names))
