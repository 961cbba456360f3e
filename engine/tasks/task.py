"""Task: the interface between the loop and the thing that is learned.

A task brings a batch of problems, a layout that turns problems into ids and back, the sealed truth, and checks by which
the model tests itself. All other code, from the improved policy to the audit, uses a task through this class alone.

In the shape descriptions B is the batch, N the digits of a problem and W the digits of an answer. A simplification
leaves problems of N-1 digits.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import ClassVar, Generic, Protocol

import torch
from torch import Tensor

from sector.engine.errors import InputError
from sector.engine.language.alphabet import LETTERS, Alphabet
from sector.engine.language.examples import Examples
from sector.engine.language.layout import B, Batch, Layout
from sector.engine.language.number_text import HintedNumberText, NumberText
from sector.engine.language.operands import Problems
from sector.engine.language.place_ids import DigitOrder
from sector.engine.language.writing import Writing, marks_of
from sector.engine.tasks.check import Check
from sector.engine.tasks.oracle import Truth


class Task(ABC, Generic[B]):
    """A kind of problem to learn. To add a task, add a module to `engine/tasks/` with an instance named TASK.

    name: name in the config and in checkpoints.
    example: a problem as typed.
    truth: true answers and simplifications, for the supervised phase and the audit only.
    checks: relations by which the model tests itself. The first one also flags doubtful answers of the fast policy.
    at_once: digits of the longest problems that are answered at once; None is any length. All policies simplify longer
        problems until they are that short, and each step of the chain is distilled.
    settings: defaults that differ from those of `RunConfig`, as nested dicts.
    columns: its batch, if problems are two operands and a carry-in that are worked off column by column. Text of such
        problems can have zeros in front, which change nothing else.
    text_orders: orders of digits in its texts, `msd` and `lsd`.
    """

    name: ClassVar[str]
    example: ClassVar[str]
    truth: Truth[B]
    checks: ClassVar[tuple[Check, ...]]
    at_once: ClassVar[int | None] = None
    settings: ClassVar[Mapping[str, object]] = {}
    columns: ClassVar[type[Problems] | None] = None
    text_orders: ClassVar[tuple[str, ...]] = tuple(DigitOrder)

    @abstractmethod
    def layout(self, order: str) -> Layout[B]:
        """Return the place-coupled layout, plain variant; order: `msd` or `lsd`."""

    @property
    def writing(self) -> Writing[B] | None:
        """Form of its problems and steps as numbers with marks between them; None if they have another form."""
        return None

    @property
    def has_text(self) -> bool:
        """Whether its problems can be written as text, as models of text read them."""
        return self.writing is not None or type(self).text_layout is not Task.text_layout

    @property
    def text_marks(self) -> tuple[str, ...]:
        """Marks of its texts; `alphabet.CHARACTERS` need not be among them."""
        return () if self.writing is None else marks_of(self.writing)

    @property
    def has_hints(self) -> bool:
        """Whether its texts can have a letter before each digit that marks its place: its marks have none."""
        is_written = self.writing is not None or type(self).hint_layout is not Task.hint_layout
        return is_written and set(LETTERS).isdisjoint("".join(self.text_marks))

    def hint_layout(self, alphabet: Alphabet, order: str) -> Layout[B]:
        """Return the layout with a letter before each digit. Raise InputError if the task has none.

        alphabet: alphabet with `text_marks` and letters.
        order: `msd` or `lsd`.
        """
        if self.writing is None or not self.has_hints:
            raise InputError(f"{self.name} cannot have hints; train its model of text again, with text_layout plain")
        return HintedNumberText(alphabet, self.writing, DigitOrder(order))

    def text_layout(self, alphabet: Alphabet, order: str = "msd") -> Layout[B]:
        """Return the layout for models of text. Raise InputError if the task has none.

        alphabet: alphabet with `text_marks`.
        order: `msd` or `lsd`, one of `text_orders`.
        """
        if self.writing is None:
            raise InputError(
                f"{self.name} cannot be written as text, since it has no `writing`; choose a model of sector's own"
            )
        return NumberText(alphabet, self.writing, DigitOrder(order))

    @abstractmethod
    def draw(self, digits: int, count: int, draws: torch.Generator, hard_share: float = 0.0) -> B:
        """Draw problems of N = `digits`; a share `hard_share` of them is harder than uniform digits."""

    def num_lessons(self, digits: int) -> int:
        """Return the number of kinds of problems that the supervised phase must teach at N = `digits`."""
        return 1

    def draw_lesson(self, digits: int, lesson: int, count: int, draws: torch.Generator, hard_share: float = 0.0) -> B:
        """Draw problems of one kind, from 0 to `num_lessons` - 1."""
        return self.draw(digits, count, draws, hard_share)

    def size_of(self, text: str, digits: int) -> Hashable:
        """Return the size of a problem as `Batch.texts` writes it. Problems of one size can form a batch."""
        return digits

    def answers_at_once(self, problems: B) -> bool:
        """Return whether the direct answers to these problems are taught."""
        return self.at_once is None or problems.digits <= self.at_once

    def num_simplifications(self, problems: B, num_guesses: int) -> int:
        """Return the number of simplifications for a number of guesses.

        A guess follows each simplification that leaves a problem to answer at once. A one-digit problem that is
        answered at once is not simplified.
        """
        if self.at_once is None:
            return min(num_guesses, problems.digits - 1)
        return min(max(problems.digits - self.at_once, 0) + num_guesses - 1, problems.digits)

    def join(self, pieces: Tensor, rest_answers: Tensor) -> Tensor:
        """Join the digits that simplifications split off to the answers of the remaining problems.

        By default pieces are the last digits of the answer, found least significant first: rest, then pieces. A task
        that finds the most significant digit first joins `pieces.flip(1)`, then the rest. A task whose answer is that
        of the rest returns the rest alone.

        pieces: `[B, S]` digits of S simplifications, the latest first.
        rest_answers: `[B, W']` answers of the problems that remain after them.
        """
        return torch.cat([rest_answers, pieces], dim=1)

    def rest_answers(self, answers: Tensor, width: int) -> Tensor:
        """Return the answers `[..., width]` of remaining problems within whole answers `[..., W]`; inverse of `join`.

        width: digits of the answers of the remaining problems.
        """
        return answers[..., :width]

    @abstractmethod
    def parse(self, texts: list[str], digits: int | None = None) -> B:
        """Parse problems as typed, padded to one size. Raise InputError naming the first text that is not a problem."""

    @abstractmethod
    def digits_of(self, text: str) -> int:
        """Return N of a problem as typed. Raise InputError as in `parse`."""

    @abstractmethod
    def swapped(self, problems: B) -> B:
        """Return problems with the same answers, posed in another way; the problems themselves if there is no other."""

    def restated(self, examples: Examples[B]) -> list[Examples[B]]:
        """Return the examples as other problems that checks pose, with the answers and simplifications that follow.

        The list is empty if their simplifications do not follow.
        """
        return []

    @abstractmethod
    def draft(self, problems: B, answers: Tensor | None, layout: Layout[B]) -> Tensor | None:
        """Return a draft of the first ids of a simplification, or None. A wrong draft costs time only.

        answers: `[B, >= W]` leading digits of earlier answers of the model, or None.

        A draft may use the problems and the model's own outputs, never the truth.
        """

    def families(self) -> "dict[str, Family]":
        """Return families of problems that users type and uniform digits hardly cover, by name, for `sector eval`."""
        return {}


class Family(Protocol):
    """Function that draws problems of one kind."""

    def __call__(self, digits: int, samples: int, seed: int) -> Batch:
        """Draw `samples` problems of N = `digits` with a seed."""
        ...


def one_task(names: Sequence[str]) -> str:
    """Return the only task among several names. Raise InputError if they differ."""
    if len(set(names)) > 1:
        raise InputError(f"examples of {' and '.join(sorted(set(names)))} do not go together; train one task at a time")
    return names[0]
