"""What a task is: the protocol through which alone the loop knows what is being computed.

A task brings a batch of problems, a layout (how problems become ids and ids are read back), the truth behind the
oracle's door, and the relation by which the model can check itself. Everything else, from the improved policy to the
audit, asks here. In the shape descriptions B is the batch and N the digits of a problem: what one simplification makes
one less.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from sector.engine.errors import InputError
from sector.engine.language.alphabet import Alphabet
from sector.engine.language.layout import Layout
from sector.engine.tasks.check import Check
from sector.engine.tasks.oracle import Truth


class Task(ABC):
    """One thing to learn. An instance named TASK in a module of `engine/tasks/` is all it takes to add one.

    name: as in the config, and in every checkpoint. example: a problem as people type it.
    truth: what only the supervised phase and the audit may ask.
    checks: relations by which the model can check itself. The fast policy doubts its own answers by the first.
    at_once: the longest problems that are answered at once; None is all of them. Longer ones are simplified until they
        are that short, by every policy, and what is distilled of them is each step of the chain.
    settings: where its defaults differ from those of `config.RunConfig`, as nested dicts.
    """

    name: ClassVar[str]
    example: ClassVar[str]
    truth: ClassVar[Truth]
    checks: ClassVar[tuple[Check, ...]]
    at_once: ClassVar[int | None] = None
    settings: ClassVar[dict[str, Any]] = {}

    @abstractmethod
    def layout(self, order: str) -> Layout:
        """The place-coupled layout, plain variant; order: `msd` or `lsd`."""

    @property
    def has_text(self) -> bool:
        """Can its problems be written as text, as a pretrained model reads them?"""
        return type(self).text_layout is not Task.text_layout

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
    def swapped(self, problems: Any) -> Any:
        """The same problems asked in another way, with the same answers; themselves, if there is none."""

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
