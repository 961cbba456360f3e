"""Protocols between problems and tokens: a batch of problems, and a layout that writes and reads ids.

B is the batch and N the digits of a problem: a simplification makes it one less.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from sector.engine.language import tokens


class Batch(Protocol):
    """Problems of one size, rows of tensors.

    task: the name of the task they belong to.
    """

    task: ClassVar[str]

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor | slice) -> Self: ...

    def to(self, device: torch.device) -> Self:
        """The same problems where an engine wants them."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def digits(self) -> int:
        """N."""
        ...

    @property
    def size(self) -> Any:
        """What a layout must know to read answers to these problems back; equal for all problems of one shape."""
        ...

    @property
    def answer_width(self) -> int:
        """Digits of an answer, leading zeros included."""
        ...

    @property
    def is_nothing(self) -> bool:
        """Is there no problem at all, because nothing was simplified?"""
        ...

    def texts(self) -> list[str]:
        """As people write them, every operand with all its digits."""
        ...

    def without_digits(self) -> Self:
        """As many problems of no digits: what is left where nothing was simplified."""
        ...

    @classmethod
    def cat(cls, parts: Iterable[Self]) -> Self: ...


@dataclass(frozen=True, slots=True)
class Simplifications:
    """What the slow policy wrote: problems of N-1 digits that remain, the digit `[B]` split off, what parses `[B]`."""

    rest: Any
    digit: Tensor
    valid: Tensor


class Mode(IntEnum):
    """What a prompt asks for."""

    ANSWER = tokens.ANSWER
    THINK = tokens.THINK


class Layout(Protocol):
    """How problems become ids, and how what a model wrote is read back. Nothing else in the loop knows an id.

    num_variants: in how many ways the same problem can be laid out; 0 is the plain one.
    pad_id: what stands behind the end of a completion.
    """

    @property
    def num_variants(self) -> int: ...

    @property
    def pad_id(self) -> int: ...

    def shifted(self, variant: int | Tensor) -> Self:
        """The same layout in another variant, one for the batch or `[B]`."""
        ...

    def prefix_ids(self, problems: Any) -> Tensor:
        """`[B, P]` ids that the fast and the slow prompt of a problem share."""
        ...

    def mark_ids(self, mode: Mode, count: int, device: torch.device | None = None) -> Tensor:
        """`[B, 1]` ids that end a prompt and say what is asked."""
        ...

    def prompt_ids(self, problems: Any, mode: Mode) -> Tensor:
        """`[B, P+1]` ids of a whole prompt."""
        ...

    def answer_ids(self, answers: Tensor) -> Tensor:
        """Answers `[B, W]` as the ids that follow a prompt for an answer, end included."""
        ...

    def simplification_ids(self, rest: Any, digit: Tensor) -> Tensor:
        """The remaining problems and digit `[B]` as the ids that follow a prompt for a simplification, end included."""
        ...

    def parse_answers(self, ids: Tensor, size: Any, /) -> tuple[Tensor, Tensor]:
        """Generated ids `[B, T]` -> answers `[B, W]` and which rows are well-formed `[B]`; the rest hold zeros.

        size: of the problems asked (`Batch.size`).
        """
        ...

    def parse_simplifications(self, ids: Tensor, size: Any, /) -> Simplifications:
        """Generated ids of simplifications of problems of that size; rows that do not parse hold zeros."""
        ...

    def answer_length(self, size: Any, /) -> int:
        """Tokens of a fast answer, end included."""
        ...

    def simplification_length(self, size: Any, /) -> int:
        """Tokens of a simplification, end included."""
        ...

    def beginning_length(self, size: Any, /) -> int:
        """Tokens at the beginning of a prefix that the next simplification leaves alone."""
        ...

    def count_tokens(self, ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """Generated tokens in ids `[B, T]`, ends included and padding not; of some rows `[B]` if given. A number."""
        ...

    def is_well_formed(self, ids: Tensor, mode: Mode) -> list[bool]:
        """Which rows of `[B, T]` would parse, were their numbers of another length?"""
        ...
