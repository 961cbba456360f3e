"""Problems of tasks that are declared by a template, such as `{a:N}/{d:1}+{r:1?}`, and their form.

A template names the numbers of a problem, their widths and the marks between them. Numbers with `?` at its end may be
left out of a typed problem; they are 0 then. A step writes the numbers of the remaining problem, `|` and a digit.

In the shape descriptions B is the batch, N the digits of a problem, W the digits of an answer and C the digits of all
numbers of a problem. Digits are stored most significant first.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor

from sector.engine.errors import InputError
from sector.engine.language.operands import digit_strings, digit_tensor
from sector.engine.language.writing import Written

# Numbers of one problem by name: each with all its digits.
Numbers = dict[str, str]

# A mark and a number; `=`, `>` and `|` end problems and simplifications in texts.
_FIELD = re.compile(r"([-+*/,;:.()a-z]*)\{([a-z_][a-z0-9_]*):(N|[1-9])(\??)\}")


@dataclass(frozen=True, slots=True)
class Field:
    """A number of a problem.

    name: name of the number.
    mark: text before it; '' before the first number.
    width: digits of the number; 0 is N.
    optional: whether a typed problem may leave it out.
    """

    name: str
    mark: str
    width: int
    optional: bool

    def digits(self, digits: int) -> int:
        """Return the width of the number in a problem of N = `digits`."""
        return self.width or digits


@dataclass(frozen=True, slots=True)
class Form:
    """The form of a task's problems, answers and steps; a `writing.Writing`.

    task: name of the task.
    example: a problem as typed, for messages.
    fields: numbers of a problem, in writing order.
    end: numbers that make the answer to a problem of no digits.
    growth: digits by which an answer grows with each digit of the problem, 0 or 1.
    last_first: whether steps split off the last digit of the answer first; otherwise the first one, or none.
    """

    task: str
    example: str
    fields: tuple[Field, ...]
    end: tuple[str, ...]
    growth: int
    last_first: bool

    @property
    def problem(self) -> tuple[Written, ...]:
        """Numbers of a problem, in writing order."""
        return tuple(Written(field.mark) for field in self.fields)

    @property
    def step(self) -> tuple[Written, ...]:
        """Numbers of a step: those of the remaining problem, and the digit split off."""
        return (*self.problem, Written("|"))

    def problem_numbers(self, problems: "DeclaredProblems") -> Sequence[Tensor]:
        """Return the digits `[B, width]` of each number of the problems."""
        return problems.numbers()

    def step_numbers(self, rest: "DeclaredProblems", digit: Tensor) -> Sequence[Tensor]:
        """Return the digits `[B, width]` of each number of steps: remaining problems, and digits `[B]`."""
        return (*rest.numbers(), digit.unsqueeze(1))

    def step_widths(self, digits: int) -> list[int]:
        """Return the width of each number of a step from problems of N = `digits`."""
        return [*self.widths(digits - 1), 1]

    @property
    def answer_place(self) -> int:
        """Place of the last digit of an answer: the numbers of `end` stand before the others, or behind them."""
        return 0 if self.last_first else -self.answer_width(0)

    def problem_places(self, problems: "DeclaredProblems") -> list[int]:
        """Return the place of the last digit of each number of the problems.

        A number of a fixed width, such as a carry, begins where the step works: at the last digit, or before the first.
        """
        return self._places(0 if self.last_first else problems.digits, 0)

    def step_places(self, rest: "DeclaredProblems") -> list[int]:
        """Return the place of the last digit of each number of steps: remaining problems, and a digit."""
        if self.last_first:
            return [*self._places(1, 1), 0]
        return [*self._places(rest.digits, 0), rest.digits]

    def _places(self, fixed: int, others: int) -> list[int]:
        """Return the places of numbers of a fixed width and of the others."""
        return [fixed if field.width else others for field in self.fields]

    def read_problem(self, numbers: Sequence[Tensor]) -> "DeclaredProblems":
        """Return the problems with these numbers. Raise InputError if their widths do not fit."""
        digits = max(number.shape[1] for field, number in zip(self.fields, numbers, strict=True) if not field.width)
        for field, number in zip(self.fields, numbers, strict=True):
            if number.shape[1] != field.digits(digits):
                raise InputError(
                    f"{field.name} has {number.shape[1]} digits in a problem of {self.task}; write "
                    f"{field.digits(digits)}"
                )
        return DeclaredProblems(self, digits, torch.cat(list(numbers), dim=1))

    def read_step(self, numbers: Sequence[Tensor], digits: int) -> tuple["DeclaredProblems", Tensor]:
        """Return remaining problems and digits `[B]` from the numbers of steps of problems of N = `digits`."""
        *rest, digit = numbers
        return DeclaredProblems(self, digits - 1, torch.cat(rest, dim=1)), digit[:, 0]

    def widths(self, digits: int) -> list[int]:
        """Return the width of each number of a problem of N = `digits`."""
        return [field.digits(digits) for field in self.fields]

    def answer_width(self, digits: int) -> int:
        """Return W for N = `digits`."""
        return digits * self.growth + sum(field.width for field in self.fields if field.name in self.end)

    def padded(self, numbers: Mapping[str, str | int], digits: int) -> Numbers:
        """Return the numbers of a problem of N = `digits` with leading zeros. Raise InputError if one does not fit."""
        if numbers.keys() != {field.name for field in self.fields}:
            names = (field.name for field in self.fields)
            raise InputError(f"a problem of {self.task} has {', '.join(names)}, not {', '.join(map(str, numbers))}")
        texts = {}
        for field in self.fields:
            width = field.digits(digits)
            texts[field.name] = text = str(numbers[field.name]).lstrip("0").zfill(width)
            # Twice as fast as a regular expression. It is called for each number of each step of the truth.
            is_number = text == "" or (text.isascii() and text.isdigit())
            if not is_number or len(text) > width:
                raise InputError(
                    f"{field.name} is {numbers[field.name]!r} in a problem of {self.task}; for N = {digits} it is a "
                    f"number of {width} digits at most"
                )
        return texts

    def batch(self, rows: Iterable[Mapping[str, str | int]], digits: int) -> "DeclaredProblems":
        """Return the problems with these numbers. Raise InputError as `padded`."""
        texts = ["".join(self.padded(row, digits)[field.name] for field in self.fields) for row in rows]
        return DeclaredProblems(self, digits, digit_tensor(texts, sum(self.widths(digits))))

    def read(self, text: str) -> Numbers:
        """Return the numbers of a typed problem without leading zeros. Raise InputError if it is no problem."""
        match = self._typed().fullmatch(text)
        if match is None:
            raise InputError(
                f"{text.strip()!r} is not a problem; write non-negative integers as {self.example} ({self.template()})"
            )
        return {field.name: (match[field.name] or "0").lstrip("0") or "0" for field in self.fields}

    def digits_of(self, numbers: Numbers) -> int:
        """Return N of the numbers of a typed problem: the length of the longest number of N digits."""
        return max(len(numbers[field.name]) for field in self.fields if not field.width)

    def template(self) -> str:
        """Return the template, `{a}/{d}+{r}`."""
        return "".join(f"{field.mark}{{{field.name}}}" for field in self.fields)

    def _typed(self) -> re.Pattern[str]:
        """Return the pattern of a typed problem, with a group a number."""
        parts = [rf"{re.escape(field.mark)}\s*(?P<{field.name}>\d+)\s*" for field in self.fields]
        needed = sum(not field.optional for field in self.fields)
        rest = ""
        for part in reversed(parts[needed:]):
            rest = rf"(?:{part}{rest})?"
        return re.compile(rf"\s*{''.join(parts[:needed])}{rest}=?\s*", re.ASCII)


def read_template(template: str) -> tuple[Field, ...]:
    """Return the numbers that a template declares. Raise InputError if it is not a template."""
    matches = list(_FIELD.finditer(template))
    names = [match[2] for match in matches]
    if "".join(match[0] for match in matches) != template or not matches:
        raise InputError(
            f"{template!r} is not a template; write each number as {{name:N}} or {{name:1}}, or with ? as "
            "{name:1?}, and + - * / , ; : . ( ) or a-z between numbers"
        )
    if matches[0][1] or not all(match[1] for match in matches[1:]):
        raise InputError(f"{template!r} is not a template; it begins with a number, and marks stand between numbers")
    if len(set(names)) < len(names):
        raise InputError(f"{template!r} names a number twice; give each a name of its own")
    fields = tuple(
        Field(match[2], match[1], 0 if match[3] == "N" else int(match[3]), bool(match[4])) for match in matches
    )
    if any(field.optional and not following.optional for field, following in pairwise(fields)) or fields[0].optional:
        raise InputError(f"{template!r} has a number with ? before one without; only the last numbers can be left out")
    if all(field.width for field in fields):
        raise InputError(f"{template!r} has no number of N digits, so its problems cannot grow; write one as {{a:N}}")
    return fields


@dataclass(frozen=True, slots=True)
class DeclaredProblems:
    """Problems of a declared task; a `layout.Batch`.

    form: form of the problems.
    digits: N; 0 for no problems.
    columns: `[B, C]` digits of all numbers, in the order of the form.
    """

    form: Form
    digits: int
    columns: Tensor

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.form.task

    def __len__(self) -> int:
        return len(self.columns)

    def __getitem__(self, rows: Tensor | slice) -> Self:
        return replace(self, columns=self.columns[rows])

    def to(self, device: torch.device) -> Self:
        """Return the problems on a device."""
        return replace(self, columns=self.columns.to(device))

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.columns.device

    @property
    def size(self) -> int:
        """N, by which a layout reads completions."""
        return self.digits

    @property
    def answer_width(self) -> int:
        """W, the digits of an answer."""
        return self.form.answer_width(self.digits)

    @property
    def is_nothing(self) -> bool:
        """Whether the batch stands for no problems, because nothing was simplified."""
        return self.digits == 0

    def without_digits(self) -> Self:
        """Return as many problems of no digits: the rest where nothing was simplified."""
        return replace(self, digits=0, columns=self.columns[:, :0])

    def numbers(self) -> tuple[Tensor, ...]:
        """Return the digits of each number, `[B, width]`."""
        return self.columns.split(self.form.widths(self.digits), dim=1)

    def rows(self) -> list[Numbers]:
        """Return the numbers of each problem by name, with all their digits. The problems must have digits."""
        names = [field.name for field in self.form.fields]
        texts = zip(*map(digit_strings, self.numbers()), strict=True)
        return [dict(zip(names, row, strict=True)) for row in texts]

    def texts(self) -> list[str]:
        """Return the problems as text, each number with all its digits."""
        if self.is_nothing:
            return [""] * len(self)
        marks = [field.mark for field in self.form.fields]
        return ["".join(mark + row for mark, row in zip(marks, rows.values(), strict=True)) for rows in self.rows()]

    @classmethod
    def cat(cls, parts: Iterable[Self]) -> Self:
        """Concatenate several batches of one form and length."""
        batches = list(parts)
        assert len({(batch.form, batch.digits) for batch in batches}) == 1, "problems of one form and length"
        return replace(batches[0], columns=torch.cat([batch.columns for batch in batches]))
