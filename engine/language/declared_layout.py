"""Problems and layout of tasks that are declared by a template, such as `{a:N}/{d:1}+{r:1?}`.

A template names the numbers of a problem, their widths and the marks between them. Numbers with `?` at its end may be
left out of a typed problem; they are 0 then. In tokens, each number ends in `)`;
in a prompt the mark `+` stands between numbers, in a simplification the mark `&`. Other marks are for texts only:

    prompt          < a ) + d ) + r ) =      or ending in >
    fast answer     all digits, E            after =
    simplification  a' ) & d' ) & r' ) & digit E

In the shape descriptions B is the batch, N the digits of a problem, W the digits of an answer and C the digits of all
numbers of a problem. Digits are stored most significant first.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor

from sector.engine.errors import InputError
from sector.engine.language import tokens
from sector.engine.language.layout import Mode, Simplifications
from sector.engine.language.operands import digit_strings, digit_tensor
from sector.engine.language.place_layout import PlaceLayout, digit_classes, match_letters

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
        """Return the digits of the number in a problem of N = `digits`."""
        return self.width or digits


@dataclass(frozen=True, slots=True)
class Form:
    """The form of a task's problems and answers.

    task: name of the task.
    example: a problem as typed, for messages.
    fields: numbers of a problem, in writing order.
    end: numbers that make the answer to a problem of no digits.
    growth: digits by which an answer grows with each digit of the problem, 0 or 1.
    """

    task: str
    example: str
    fields: tuple[Field, ...]
    end: tuple[str, ...]
    growth: int

    def widths(self, digits: int) -> list[int]:
        """Return the digits of each number of a problem of N = `digits`."""
        return [field.digits(digits) for field in self.fields]

    def answer_width(self, digits: int) -> int:
        """Return W for N = `digits`."""
        return digits * self.growth + sum(field.width for field in self.fields if field.name in self.end)

    def padded(self, numbers: Mapping[str, str | int], digits: int) -> Numbers:
        """Return the numbers of a problem of N = `digits` with leading zeros. InputError if one does not fit."""
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
        """Return the problems with these numbers. InputError as `padded`."""
        texts = ["".join(self.padded(row, digits)[field.name] for field in self.fields) for row in rows]
        return DeclaredProblems(self, digits, digit_tensor(texts, sum(self.widths(digits))))

    def read(self, text: str) -> Numbers:
        """Return the numbers of a typed problem without leading zeros. InputError if it is no problem."""
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
    """Return the numbers of a template. InputError if it is none."""
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
        raise InputError(f"{template!r} names a number twice")
    fields = tuple(
        Field(match[2], match[1], 0 if match[3] == "N" else int(match[3]), bool(match[4])) for match in matches
    )
    if any(field.optional and not following.optional for field, following in pairwise(fields)) or fields[0].optional:
        raise InputError(f"{template!r} has a number with ? before one without; only the last numbers can be left out")
    if all(field.width for field in fields):
        raise InputError(f"{template!r} has no number of N digits, so its problems cannot grow")
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


@dataclass(frozen=True, slots=True)
class DeclaredLayout(PlaceLayout):
    """Layout of declared problems as place-coupled ids; see the module's docstring.

    form: form of the problems.
    """

    form: Form | None = None

    def answer_length(self, digits: int, /) -> int:
        """Return the tokens of a fast answer, end included."""
        return self._form.answer_width(digits) + 1

    def simplification_length(self, digits: int, /) -> int:
        """Return the tokens of a simplification: all numbers, two marks behind each, a digit and its end."""
        widths = self._form.widths(digits - 1)
        return sum(widths) + 2 * len(widths) + 2

    def beginning_length(self, digits: int, /) -> int:
        """Return 0, since a simplification may change any number."""
        return 0

    def prefix_ids(self, problems: Any) -> Tensor:
        """Return the `[B, C+2F]` ids of F numbers, with a mark before and `)` behind each."""
        start, plus = (self._marks(kind, len(problems), problems.device) for kind in (tokens.START, tokens.PLUS))
        segments: list[Tensor] = []
        for number in problems.numbers():
            segments += [plus if segments else start, self._number_ids(number, tokens.END)]
        return torch.cat(segments, dim=1)

    def simplification_ids(self, rest: Any, digit: Tensor) -> Tensor:
        """Return the ids of the numbers of the remaining problems, `) &` behind each, the digits `[B]` and E."""
        join = self._marks(tokens.JOIN, len(rest), digit.device)
        segments: list[Tensor] = []
        for number in rest.numbers():
            segments += [self._number_ids(number, tokens.END), join]
        return torch.cat([*segments, self._number_ids(digit.unsqueeze(1), tokens.EOS)], dim=1)

    def parse_answers(self, ids: Tensor, digits: int, /) -> tuple[Tensor, Tensor]:
        """Parse ids as answers `[B, W]`; see `Layout`."""
        return self._parse_number(ids, self._form.answer_width(digits))

    def parse_simplifications(self, ids: Tensor, digits: int, /) -> Simplifications:
        """Parse ids as simplifications; see `Layout`."""
        ids = ids[:, : self.simplification_length(digits)]
        numbers, start = [], 0
        for width in self._form.widths(digits - 1):
            numbers.append(self._ordered(digit_classes(ids[:, start : start + width])))
            start += width + 2
        digit = digit_classes(ids[:, start])
        rest = DeclaredProblems(self._form, digits - 1, torch.cat(numbers, dim=1))
        valid = (self.simplification_ids(rest, digit) == ids).all(dim=1)
        rest = replace(rest, columns=rest.columns * valid.unsqueeze(1))
        return Simplifications(rest, digit * valid, valid)

    def is_well_formed(self, ids: Tensor, mode: Mode) -> list[bool]:
        """Return which rows of `[B, T]` have the right token pattern, ignoring the lengths of numbers."""
        if mode == Mode.ANSWER:
            return PlaceLayout.is_well_formed(self, ids, mode)
        shape = re.compile(rf"d+(\)&d+){{{len(self._form.fields)}}}E?_*")
        return match_letters(ids, shape)

    @property
    def _form(self) -> Form:
        assert self.form is not None, "a layout of declared problems has a form"
        return self.form
