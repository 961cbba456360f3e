"""Layout of numbers with marks between them as text: one token a digit, and the marks of the task.

    8432/7+0=    12044 and a newline        the fast answer, with all its digits: quotient and remainder
    8432/7+0>    432/7+1|1 and a newline    the simplification: the rest, and the digit split off

A number has all its digits, so that problems of one size have texts of one length. With the least significant digit
first each number is written backwards.

With hints a letter that marks the place stands before each digit, as in `column_writing.py`; here at four digits, whose
first digit the step takes off:

    d8c4b3a2/e7+e0=    d1c2b0a4Z4
    d8c4b3a2/e7+e0>    c4b3a2/d7+d1|d1

In the shape descriptions B is the batch, W the digits of an answer or number, and L the tokens that lead any text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from sector.engine.language.character_layout import CharacterLayout, known_ids
from sector.engine.language.layout import B, Mode, S_contra, Simplifications
from sector.engine.language.number_layout import valid_steps
from sector.engine.language.place_ids import DigitOrder
from sector.engine.language.writing import Writing, Written


@dataclass(frozen=True, slots=True)
class NumberText(CharacterLayout[B, S_contra]):
    """Layout of the problems of a task as text; see the module's docstring.

    writing: form of the problems and steps.
    order: most or least significant digit first.
    """

    writing: Writing[B, S_contra]
    order: DigitOrder = DigitOrder.MSD

    def shape(self, mode: Mode) -> str:
        """Return the pattern of completions of a mode."""
        number = self.number_pattern
        if mode == Mode.ANSWER:
            return rf"{number}\n?"
        *others, last = (re.escape(self.shown(self.alphabet.ids_of(written.mark))) for written in self.writing.step)
        return number.join(others) + rf"{number}{last}(?:{number}\n?)?"

    def answer_length(self, size: S_contra, /) -> int:
        """Return the count of tokens of a fast answer, newline included."""
        return self.num_tokens(self.writing.answer_width(size)) + 1

    def simplification_length(self, size: S_contra, /) -> int:
        """Return the count of tokens of a simplification, newline included."""
        widths = map(self.num_tokens, self.writing.step_widths(size))
        return sum(widths) + sum(map(self._mark_length, self.writing.step)) + 1

    def prefix_ids(self, problems: B) -> Tensor:
        """Return the ids of the leading tokens and of the problems as text."""
        segments = self._segments(
            self.writing.problem, self.writing.problem_numbers(problems), self.writing.problem_places(problems)
        )
        return torch.cat([self.lead_ids(problems), *segments], dim=1)

    def answer_ids(self, answers: Tensor) -> Tensor:
        """Return the `[B, W+1]` ids that follow `=` for the answers `[B, W]`."""
        number = self.number_ids(answers, self.writing.answer_place, in_order=True)
        return torch.cat([number, self.text_ids("\n", answers)], dim=1)

    def simplification_ids(self, rest: B, digit: Tensor) -> Tensor:
        """Return the ids that follow `>` for the remaining problems and the digits `[B]`."""
        segments = self._segments(
            self.writing.step, self.writing.step_numbers(rest, digit), self.writing.step_places(rest)
        )
        return torch.cat([*segments, self.text_ids("\n", digit)], dim=1)

    def parse_answers(self, ids: Tensor, size: S_contra, /) -> tuple[Tensor, Tensor]:
        """Parse ids as answers `[B, W]`; see `Layout`."""
        ids = ids[:, : self.answer_length(size)]
        return self.checked_answers(self.read_number(ids[:, :-1], in_order=True), ids)

    def parse_simplifications(self, ids: Tensor, size: S_contra, /) -> Simplifications[B]:
        """Parse ids as simplifications; see `Layout`."""
        ids = ids[:, : self.simplification_length(size)]
        numbers, start = [], 0
        for written, width in zip(self.writing.step, self.writing.step_widths(size), strict=True):
            start += self._mark_length(written)
            end = start + self.num_tokens(width)
            numbers.append(self.read_number(ids[:, start:end], written.in_order))
            start = end
        valid = (self.simplification_ids(*self.writing.read_step(numbers, size)) == ids).all(dim=1)
        return valid_steps(self.writing, numbers, size, valid)

    @property
    def number_pattern(self) -> str:
        """Pattern of a number."""
        return r"\d+"

    def num_tokens(self, width: int) -> int:
        """Return the count of tokens of a number of `width` digits."""
        return width

    def number_ids(self, digits: Tensor, place: int, in_order: bool) -> Tensor:
        """Return the ids of a number.

        digits: `[B, width]` digits.
        place: place of the last digit, which plain text does not show.
        in_order: whether the digits follow the order of the layout.
        """
        return self.digit_ids(self.order.arranged(digits) if in_order else digits)

    def read_number(self, ids: Tensor, in_order: bool) -> Tensor:
        """Return the digits `[B, width]` of a number; 0 where there is none, as a comparison finds."""
        digits = self.values(ids)
        return self.order.arranged(digits) if in_order else digits

    def _segments(self, writing: Sequence[Written], numbers: Sequence[Tensor], places: Sequence[int]) -> list[Tensor]:
        """Return the ids of each mark and of the number behind it, whose last digit is at a place."""
        segments = []
        for written, number, place in zip(writing, numbers, places, strict=True):
            segments += [self.text_ids(written.mark, number), self.number_ids(number, place, written.in_order)]
        return segments

    def _mark_length(self, written: Written) -> int:
        """Return the count of tokens of the mark before a number."""
        return len(self.alphabet.ids_of(written.mark))


@dataclass(frozen=True, slots=True)
class HintedNumberText(NumberText[B, S_contra]):
    """Layout of the problems of a task as text, with a letter before each digit.

    Letters begin anywhere in the alphabet and go on at its beginning: variant v begins at letter v.

    alphabet: ids of the characters, with letters.
    variant: letter of place 0: one for the batch, or one a row `[B]`.
    """

    variant: int | Tensor = 0

    @property
    def num_variants(self) -> int:
        """Number of variants; variant 0 is the plain one."""
        return len(self.alphabet.letters)

    def shifted(self, variant: int | Tensor) -> Self:
        """Return the layout of another variant: one for the batch, or one a row `[B]`."""
        return replace(self, variant=variant)

    def __getitem__(self, rows: Tensor) -> Self:
        """Return the layout of some rows."""
        return self.shifted(self.variant[rows] if isinstance(self.variant, Tensor) else self.variant)

    @property
    def number_pattern(self) -> str:
        """Pattern of a number."""
        return r"(?:[a-zA-Z]\d)+"

    def num_tokens(self, width: int) -> int:
        """Return the count of tokens of a number of `width` digits: a letter and a digit for each."""
        return 2 * width

    def number_ids(self, digits: Tensor, place: int, in_order: bool) -> Tensor:
        """Return the `[B, 2 * width]` ids of a number, whose last digit is at a place; see `NumberText`."""
        places = torch.arange(digits.shape[1], device=digits.device).flip(0) + place
        if in_order:
            digits, places = self.order.arranged(digits), self.order.arranged(places)
        ids = self.digit_ids(digits)
        return torch.stack([self._letters(places, ids).expand_as(ids), ids], dim=2).flatten(1)

    def read_number(self, ids: Tensor, in_order: bool) -> Tensor:
        """Return the digits `[B, width]` of a number; see `NumberText`."""
        # Without `super()`, which finds no class in a dataclass with slots.
        return NumberText.read_number(self, ids[:, 1::2], in_order)

    def _letters(self, places: Tensor, like: Tensor) -> Tensor:
        """Return the ids `[B or 1, W]` of the letters of places `[W]`, in the type of `like`; both on one device."""
        if isinstance(self.variant, Tensor):
            places = self.variant.to(like.device).unsqueeze(1) + places
        else:
            places = (places + self.variant).unsqueeze(0)
        letters = known_ids(self.alphabet.letters, like)
        return letters[places % len(letters)]
