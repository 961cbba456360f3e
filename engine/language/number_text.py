"""Layout of numbers with marks between them as text: one token a digit, and the marks of the task.

    8432/7+0=    12044 and a newline        the fast answer, with all its digits: quotient and remainder
    8432/7+0>    432/7+1|1 and a newline    the simplification: the rest, and the digit split off

A number has all its digits, so that problems of one size have texts of one length. With the least significant digit
first each number is written backwards.

In the shape descriptions B is the batch, W the digits of an answer and L the tokens that lead any text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sector.engine.language.character_layout import CharacterLayout
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
        if mode == Mode.ANSWER:
            return r"\d+\n?"
        *others, last = (re.escape(self.shown(self.alphabet.ids_of(written.mark))) for written in self.writing.step)
        return r"\d+".join(others) + rf"\d+{last}(?:\d+\n?)?"

    def answer_length(self, size: S_contra, /) -> int:
        """Return the count of tokens of a fast answer, newline included."""
        return self.writing.answer_width(size) + 1

    def simplification_length(self, size: S_contra, /) -> int:
        """Return the count of tokens of a simplification, newline included."""
        return sum(self.writing.step_widths(size)) + sum(map(self._mark_length, self.writing.step)) + 1

    def prefix_ids(self, problems: B) -> Tensor:
        """Return the ids of the leading tokens and of the problems as text."""
        numbers = self.writing.problem_numbers(problems)
        return torch.cat([self.lead_ids(problems), *self._segments(self.writing.problem, numbers)], dim=1)

    def answer_ids(self, answers: Tensor) -> Tensor:
        """Return the `[B, W+1]` ids that follow `=` for the answers `[B, W]`."""
        return torch.cat([self.digit_ids(self.order.arranged(answers)), self.text_ids("\n", answers)], dim=1)

    def simplification_ids(self, rest: B, digit: Tensor) -> Tensor:
        """Return the ids that follow `>` for the remaining problems and the digits `[B]`."""
        segments = self._segments(self.writing.step, self.writing.step_numbers(rest, digit))
        return torch.cat([*segments, self.text_ids("\n", digit)], dim=1)

    def parse_answers(self, ids: Tensor, size: S_contra, /) -> tuple[Tensor, Tensor]:
        """Parse ids as answers `[B, W]`; see `Layout`."""
        ids = ids[:, : self.answer_length(size)]
        return self.checked_answers(self.order.arranged(self.values(ids[:, : self.writing.answer_width(size)])), ids)

    def parse_simplifications(self, ids: Tensor, size: S_contra, /) -> Simplifications[B]:
        """Parse ids as simplifications; see `Layout`."""
        ids = ids[:, : self.simplification_length(size)]
        numbers, start = [], 0
        for written, width in zip(self.writing.step, self.writing.step_widths(size), strict=True):
            start += self._mark_length(written)
            digits = self.values(ids[:, start : start + width])
            numbers.append(self.order.arranged(digits) if written.in_order else digits)
            start += width
        valid = (self.simplification_ids(*self.writing.read_step(numbers, size)) == ids).all(dim=1)
        return valid_steps(self.writing, numbers, size, valid)

    def _segments(self, writing: Sequence[Written], numbers: Sequence[Tensor]) -> list[Tensor]:
        """Return the ids of each mark and of the number behind it."""
        segments = []
        for written, number in zip(writing, numbers, strict=True):
            digits = self.order.arranged(number) if written.in_order else number
            segments += [self.text_ids(written.mark, number), self.digit_ids(digits)]
        return segments

    def _mark_length(self, written: Written) -> int:
        """Return the count of tokens of the mark before a number."""
        return len(self.alphabet.ids_of(written.mark))
