"""What a task is: the protocol through which alone the loop knows what is being computed.

A task brings a batch of problems, a layout (how problems become ids and ids are read back), the truth behind the
oracle's door, and the relation by which the model can check itself. Everything else, from the improved policy to the
audit, asks here. In the shape descriptions B is the batch and N the digits of a problem: what one simplification makes
one less.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from sector.engine import tokens
from sector.engine.errors import InputError
from sector.engine.oracle import Truth
from sector.engine.text.alphabet import Alphabet


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


class Task(ABC):
    """One thing to learn. An instance named TASK in a module of `engine/tasks/` is all it takes to add one.

    name: as in the config, and in every checkpoint. example: a problem as people type it.
    truth: what only the supervised phase and the audit may ask.
    has_complement: is there a `complement` look?
    second_look_needs_answers: is the problem of `second_look` another one for another answer?
    at_once: the longest problems that are answered at once; None is all of them. Longer ones are simplified until they
        are that short, by every policy, and what is distilled of them is each step of the chain.
    settings: where its defaults differ from those of `config.RunConfig`, as nested dicts.
    """

    name: ClassVar[str]
    example: ClassVar[str]
    truth: ClassVar[Truth]
    has_complement: ClassVar[bool] = False
    second_look_needs_answers: ClassVar[bool] = False
    at_once: ClassVar[int | None] = None
    settings: ClassVar[dict[str, Any]] = {}

    @abstractmethod
    def layout(self, order: str) -> Layout:
        """The place-coupled layout, plain variant; order: `msd` or `lsd`."""

    def text_layout(self, alphabet: Alphabet) -> Layout:
        """The layout for models of text. InputError where there is none."""
        raise InputError(f"{self.name} cannot be written as text yet; a pretrained model learns addition")

    @abstractmethod
    def draw(self, digits: int, count: int, draws: torch.Generator, hard_share: float = 0.0) -> Any:
        """Draw problems of N = `digits`; a share `hard_share` of them is harder than uniform digits are."""

    def num_lessons(self, digits: int) -> int:
        """Kinds of problems that the supervised phase must teach at N = `digits`."""
        return 1

    def draw_lesson(self, digits: int, lesson: int, count: int, draws: torch.Generator, hard_share: float = 0.0) -> Any:
        """Draw problems of one kind, 0 to `num_lessons` - 1."""
        return self.draw(digits, count, draws, hard_share)

    def size_of(self, text: str, digits: int) -> Any:
        """Size of a problem as `Batch.texts` writes it: what lets problems of a file form a batch."""
        return digits

    def answers_at_once(self, problems: Any) -> bool:
        """Is the direct answer to these problems taught?"""
        return self.at_once is None or problems.digits <= self.at_once

    def num_simplifications(self, problems: Any, num_guesses: int) -> int:
        """How often to simplify for so many guesses, one after each step that leaves what is answered at once.

        A one-digit problem that is answered at once is not simplified.
        """
        if self.at_once is None:
            return min(num_guesses, problems.digits - 1)
        return min(problems.digits - self.at_once + num_guesses - 1, problems.digits)

    @abstractmethod
    def parse(self, texts: list[str], digits: int | None = None) -> Any:
        """Read problems as people type them, padded to one size. InputError names the first text that is none."""

    @abstractmethod
    def digits_of(self, text: str) -> int:
        """N of a problem as typed. InputError as in `parse`."""

    @abstractmethod
    def second_look(self, problems: Any, answers: Tensor) -> tuple[Any, Tensor]:
        """The consistency relation: other problems whose answers follow from these, and those answers `[B, W]`.

        problems with answers `[B, W]` that the first look gave. An answer that cannot be right asks for -1 digits.
        """

    @abstractmethod
    def swapped(self, problems: Any) -> Any:
        """The same problems asked in another way, with the same answers; themselves, if there is none."""

    def complement(self, problems: Any) -> Any:
        """Problems whose direct answers follow from those to these, by other carries. Where `has_complement`."""
        raise NotImplementedError(f"{self.name} has no complement")

    def complement_answers(self, answers: Tensor) -> Tensor:
        """Answers `[B, W]` -> the answers to the complements; its own inverse."""
        raise NotImplementedError(f"{self.name} has no complement")

    def restated(self, examples: Any) -> list[Any]:
        """The examples as other problems that the looks ask, with what agreement there says of them.

        None, if the steps of those problems do not follow.
        """
        return []

    @abstractmethod
    def draft(self, problems: Any, answers: Tensor | None, layout: Layout) -> Tensor | None:
        """What a simplification of these is likely to begin with, as ids; None if nothing is known.

        answers: `[B, >= W]` leading digits of an answer given before. A hint that costs time where it is wrong; it may
        use what the model itself wrote, and what it was asked, never the truth.
        """

    def families(self) -> "dict[str, Family]":
        """Problems that people do type and uniform digits hardly are, by name, for `sector eval`."""
        return {}


class Family(Protocol):
    """Draws so many problems of N digits of one kind by a seed."""

    def __call__(self, digits: int, samples: int, seed: int) -> Any: ...


def one_task(names: Sequence[str]) -> str:
    """The one name among several. InputError if they differ."""
    if len(set(names)) > 1:
        raise InputError(f"examples of {' and '.join(sorted(set(names)))} do not go together; train one task at a time")
    return names[0]
