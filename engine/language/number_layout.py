"""Layout of numbers with marks between them as place-coupled tokens.

Each number ends in `)`. In a prompt the mark `+` stands between numbers, in a step the mark `&`; the marks of a task
stand in texts only. As for division:

    prompt          < a ) + d ) + r ) =      or ending in >
    fast answer     all digits, E            after =
    simplification  a' ) & d' ) & r' ) & digit E

In the shape descriptions B is the batch, N the digits of a problem, W the digits of an answer, F the numbers of a
problem and C their digits.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sector.engine.language import tokens
from sector.engine.language.layout import B, Mode, S_contra, Simplifications
from sector.engine.language.place_ids import ANSWER, PlaceIds, digit_classes, match_letters
from sector.engine.language.writing import Writing, Written


@dataclass(frozen=True, slots=True)
class NumberLayout(PlaceIds[B, S_contra]):
    """Layout of the problems of a task as place-coupled ids; see the module's docstring.

    writing: form of the problems and steps.
    """

    writing: Writing[B, S_contra] = field(kw_only=True)

    def answer_length(self, size: S_contra, /) -> int:
        """Return the count of tokens of a fast answer, end included."""
        return self.writing.answer_width(size) + 1

    def simplification_length(self, size: S_contra, /) -> int:
        """Return the count of tokens of a step: all digits, two marks behind each number but the last, and the end."""
        widths = self.writing.step_widths(size)
        return sum(widths) + 2 * len(widths) - 1

    def beginning_length(self, size: S_contra, /) -> int:
        """Return 0, since a simplification may change any number."""
        return 0

    def prefix_ids(self, problems: B) -> Tensor:
        """Return the `[B, C+2F]` ids of F numbers, with a mark before and `)` behind each."""
        start, plus = (self._marks(kind, len(problems), problems.device) for kind in (tokens.START, tokens.PLUS))
        segments: list[Tensor] = []
        for written, number in zip(self.writing.problem, self.writing.problem_numbers(problems), strict=True):
            segments += [plus if segments else start, self._written_ids(written, number, tokens.END)]
        return torch.cat(segments, dim=1)

    def simplification_ids(self, rest: B, digit: Tensor) -> Tensor:
        """Return the ids of the numbers of steps, `) &` behind each but the last, which ends in E."""
        join = self._marks(tokens.JOIN, len(rest), digit.device)
        *others, (last, last_number) = zip(self.writing.step, self.writing.step_numbers(rest, digit), strict=True)
        segments: list[Tensor] = []
        for written, number in others:
            segments += [self._written_ids(written, number, tokens.END), join]
        return torch.cat([*segments, self._written_ids(last, last_number, tokens.EOS)], dim=1)

    def parse_answers(self, ids: Tensor, size: S_contra, /) -> tuple[Tensor, Tensor]:
        """Parse ids as answers `[B, W]`; see `Layout`."""
        return self._parse_number(ids, self.writing.answer_width(size))

    def parse_simplifications(self, ids: Tensor, size: S_contra, /) -> Simplifications[B]:
        """Parse ids as simplifications; see `Layout`."""
        ids = ids[:, : self.simplification_length(size)]
        numbers, start = [], 0
        for written, width in zip(self.writing.step, self.writing.step_widths(size), strict=True):
            digits = digit_classes(ids[:, start : start + width])
            numbers.append(self.order.arranged(digits) if written.in_order else digits)
            start += width + 2
        valid = (self.simplification_ids(*self.writing.read_step(numbers, size)) == ids).all(dim=1)
        return valid_steps(self.writing, numbers, size, valid)

    def is_well_formed(self, ids: Tensor, mode: Mode) -> list[bool]:
        """Return which rows of `[B, T]` have the right token pattern, ignoring the lengths of numbers."""
        if mode == Mode.ANSWER:
            return match_letters(ids, ANSWER)
        return match_letters(ids, re.compile(rf"d+(\)&d+){{{len(self.writing.step) - 1}}}E?_*"))

    def _written_ids(self, written: Written, digits: Tensor, end: int) -> Tensor:
        """Return the `[B, width+1]` ids of the digits of a number, and an end class at the place of its last one."""
        return self._number_ids(digits if written.in_order else self.order.arranged(digits), end)


def valid_steps(
    writing: Writing[B, S_contra], numbers: Sequence[Tensor], size: S_contra, valid: Tensor
) -> Simplifications[B]:
    """Return the steps with these numbers, with zeros in rows that are not valid `[B]`."""
    keep = valid.long().unsqueeze(1)
    return Simplifications(*writing.read_step([number * keep for number in numbers], size), valid)
