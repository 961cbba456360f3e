"""Protocols between problems and tokens: a batch of problems, and a layout that writes and reads ids.

In the shape descriptions B is the batch, N the digits of a problem and W the digits of an answer. A simplification
leaves problems of N-1 digits.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Generic, Protocol, Self

import torch
from torch import Tensor
from typing_extensions import TypeVar

from sector.engine.language import tokens

# Size of problems, by which a layout reads completions of them: N, or several lengths.
S_co = TypeVar("S_co", covariant=True, default=Any)
S_contra = TypeVar("S_contra", contravariant=True, default=Any)


class Batch(Protocol[S_co]):
    """Problems of one size: tensors with one row a problem.

    task: name of the task of these problems.
    """

    @property
    def task(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor | slice) -> Self: ...

    def to(self, device: torch.device) -> Self:
        """Return the same problems on a device."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        ...

    @property
    def digits(self) -> int:
        """N, the digits of a problem."""
        ...

    @property
    def size(self) -> S_co:
        """Size by which a layout reads completions of these problems; equal for all problems of one shape."""
        ...

    @property
    def answer_width(self) -> int:
        """W, the digits of an answer, leading zeros included."""
        ...

    @property
    def is_nothing(self) -> bool:
        """Whether the batch stands for no problems, because nothing was simplified."""
        ...

    def texts(self) -> list[str]:
        """Return the problems as text, each operand with all its digits."""
        ...

    def without_digits(self) -> Self:
        """Return as many problems of no digits: the rest where nothing was simplified."""
        ...

    @classmethod
    def cat(cls, parts: Iterable[Self]) -> Self:
        """Concatenate several batches."""
        ...


# Problems of a task. Code for any task leaves this parameter out, and that of the size.
B = TypeVar("B", bound=Batch, default=Any)


@dataclass(frozen=True, slots=True)
class Simplifications(Generic[B]):
    """Outputs of the slow policy.

    rest: the remaining problems of N-1 digits.
    digit: `[B]` digit split off.
    valid: `[B]` bool, which rows parse.
    """

    rest: B
    digit: Tensor
    valid: Tensor


class Mode(IntEnum):
    """Mode of a prompt: the completion that it asks for."""

    ANSWER = tokens.ANSWER
    """The answer, of the fast policy."""
    THINK = tokens.THINK
    """The first simplification, of the slow policy."""


class Layout(Protocol[B, S_contra]):
    """Translator between problems and ids. No other part of the loop interprets an id.

    Two methods follow from the others; a layout brings the rest.
    """

    @property
    def num_variants(self) -> int:
        """Number of ways to lay out the same problem; variant 0 is the plain one."""
        ...

    @property
    def pad_id(self) -> int:
        """Id behind the end of a completion."""
        ...

    def shifted(self, variant: int | Tensor) -> Self:
        """Return the layout of another variant: one for the batch, or one a row `[B]`."""
        ...

    def prefix_ids(self, problems: B) -> Tensor:
        """Return the `[B, P]` ids that the fast and the slow prompt of a problem share."""
        ...

    def mark_ids(self, mode: Mode, count: int, device: torch.device | None = None) -> Tensor:
        """Return the `[B, 1]` ids that end a prompt and mark its mode."""
        ...

    def prompt_ids(self, problems: B, mode: Mode) -> Tensor:
        """Return the `[B, P+1]` ids of a whole prompt: the prefix and the mark."""
        return torch.cat([self.prefix_ids(problems), self.mark_ids(mode, len(problems), problems.device)], dim=1)

    def answer_ids(self, answers: Tensor) -> Tensor:
        """Return the completions, ends included, of prompts for the answers `[B, W]`."""
        ...

    def simplification_ids(self, rest: B, digit: Tensor) -> Tensor:
        """Return the completions, ends included, of prompts for the simplifications: rest, and digits `[B]`."""
        ...

    def parse_answers(self, ids: Tensor, size: S_contra, /) -> tuple[Tensor, Tensor]:
        """Parse generated ids `[B, T]` as answers `[B, W]`; also return which rows parse `[B]`. Other rows hold zeros.

        size: size of the problems (`Batch.size`).
        """
        ...

    def parse_simplifications(self, ids: Tensor, size: S_contra, /) -> Simplifications[B]:
        """Parse generated ids `[B, T]` as simplifications of problems of a size. Rows that do not parse hold zeros."""
        ...

    def answer_length(self, size: S_contra, /) -> int:
        """Return the count of tokens of a fast answer, end included."""
        ...

    def simplification_length(self, size: S_contra, /) -> int:
        """Return the count of tokens of a simplification, end included."""
        ...

    def beginning_length(self, size: S_contra, /) -> int:
        """Return how many tokens at the beginning of a prefix stay the same in the next simplification's prefix."""
        ...

    def count_tokens(self, ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """Count the generated tokens in ids `[B, T]`, ends included and padding excluded, as a scalar tensor.

        rows: `[B]` bool, the rows to count; None is all.
        """
        generated = ids != self.pad_id
        return generated.sum() if rows is None else (generated & rows.unsqueeze(1)).sum()

    def is_well_formed(self, ids: Tensor, mode: Mode) -> list[bool]:
        """Return which rows of `[B, T]` have the right token pattern, ignoring the lengths of numbers."""
        ...
