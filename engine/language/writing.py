"""The form in which a task writes problems and steps: numbers with marks between them.

Token layouts (`number_layout.py`), text layouts (`number_text.py`) and the tokenizer follow from it. A problem ends
before `=` or `>`, a step at the end of a line; in text the marks stand as they are:

    8432/7+0>432/7+1|1      a problem and its step: the remaining problem, and behind `|` the digit split off

In the shape descriptions B is the batch and W the digits of an answer. Digits are stored most significant first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from sector.engine.language.layout import B, S_contra
from sector.engine.language.operands import digit_strings


@dataclass(frozen=True, slots=True)
class Written:
    """A number as a task writes it.

    mark: text before the number; '' before the first one.
    in_order: whether its digits follow the order of the layout; otherwise the most significant one is first.
    """

    mark: str
    in_order: bool = True


class Writing(Protocol[B, S_contra]):
    """Form of the problems and steps of a task. Numbers begin at place 0, unless a form says otherwise.

    problem: numbers of a problem, in writing order.
    step: numbers of a step, in writing order.
    """

    @property
    def problem(self) -> tuple[Written, ...]: ...

    @property
    def step(self) -> tuple[Written, ...]: ...

    def problem_numbers(self, problems: B) -> Sequence[Tensor]:
        """Return the digits `[B, width]` of each number of the problems."""
        ...

    def step_numbers(self, rest: B, digit: Tensor) -> Sequence[Tensor]:
        """Return the digits `[B, width]` of each number of steps: remaining problems, and digits `[B]`."""
        ...

    def step_widths(self, size: S_contra) -> list[int]:
        """Return the width of each number of a step from problems of a size."""
        ...

    def answer_width(self, size: S_contra) -> int:
        """Return W for problems of a size."""
        ...

    @property
    def answer_place(self) -> int:
        """Place of the last digit of an answer, for text that marks places (`number_text.HintedNumberText`)."""
        return 0

    def problem_places(self, problems: B) -> Sequence[int]:
        """Return the place of the last digit of each number of the problems."""
        return (0,) * len(self.problem)

    def step_places(self, rest: B) -> Sequence[int]:
        """Return the place of the last digit of each number of steps; digits that go together have equal places."""
        return (0,) * len(self.step)

    def read_problem(self, numbers: Sequence[Tensor]) -> B:
        """Return the problems with these numbers; inverse of `problem_numbers`.

        Raise InputError if their widths do not fit.
        """
        ...

    def read_step(self, numbers: Sequence[Tensor], size: S_contra) -> tuple[B, Tensor]:
        """Return remaining problems and digits `[B]`; inverse of `step_numbers`."""
        ...


def written_texts(writing: Sequence[Written], numbers: Sequence[Tensor]) -> list[str]:
    """Return numbers, `[B, width]` digits each, with the marks before them as B strings."""
    columns = [
        [written.mark + digits for digits in digit_strings(number)]
        for written, number in zip(writing, numbers, strict=True)
    ]
    return ["".join(parts) for parts in zip(*columns, strict=True)]


def marks_of(writing: Writing) -> tuple[str, ...]:
    """Return the marks of a task, each once, in the order of their first use."""
    return tuple(dict.fromkeys(written.mark for written in (*writing.problem, *writing.step) if written.mark))
