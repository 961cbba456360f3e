"""Texts of a task as place-coupled tokens, and back, for the tokenizer.

`SumTokens` is for problems of two operands and a carry-in, `NumberTokens` for numbers with marks between them.

In the shape descriptions T is the tokens of a text.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sector.engine.errors import InputError
from sector.engine.language import tokens
from sector.engine.language.layout import Batch, Layout, Mode
from sector.engine.language.operands import Problems, digit_tensor
from sector.engine.language.place_ids import DigitOrder
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.language.writing import Writing, Written
from sector.engine.tasks import find_task
from sector.engine.tasks.task import Task

_TEXT = re.compile(r"(?P<problem>[^=>]*)(?P<mode>[=>])(?P<completion>.*)", re.DOTALL)
_SHIFT = re.compile(r"(~*)\s*(.*)", re.DOTALL)
# Text of start marks.
_SHIFTS = {"<": "", "<1": "~", "<2": "~~"}
# Digits of the longest number that has places.
_MAX_NUMBER = tokens.MAX_DIGITS + 1


class TokenText(Protocol):
    """Texts of a task as tokens."""

    def encode(self, text: str) -> Tensor:
        """Return the `[T]` ids of a prompt, with or without completion and end. Raise InputError for another text."""
        ...

    def decode(self, names: Iterable[str]) -> str:
        """Return token names of the vocabulary as plain text."""
        ...


def has_token_text(task: Task) -> bool:
    """Return whether problems of a task have texts for the tokenizer."""
    return task.writing is not None or isinstance(task.layout("msd"), PlaceLayout)


def token_text(task: str, order: DigitOrder) -> TokenText:
    """Return the texts of a task. Raise InputError if there is no such task, or if its problems have another form."""
    known = find_task(task)
    if known.writing is not None:
        return NumberTokens(known, known.writing, order)
    layout = known.layout(order)
    if isinstance(layout, PlaceLayout):
        return SumTokens(layout.problems, order)
    raise InputError(f"problems of {task} cannot be written as text; ask the model by `sector solve`")


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt in its parts.

    problem: text of the problem.
    variant: variant of the marks.
    mode: completion that is asked for.
    completion: text behind the mark, '' if there is none.
    """

    problem: str
    variant: int
    mode: Mode
    completion: str


def _split(text: str) -> _Prompt:
    """Return the parts of a prompt. Raise InputError if the text is no prompt."""
    parts = _TEXT.fullmatch(text)
    if parts is None:
        raise InputError(f"{quoted(text)} is no prompt; end it with = for an answer or > for a simplification")
    shift, problem = _SHIFT.fullmatch(parts["problem"].strip()).groups()  # type: ignore[union-attr]
    if len(shift) >= tokens.NUM_SHIFTS:
        raise InputError(
            f"{quoted(text)} starts with {len(shift)} shift marks; write at most {tokens.NUM_SHIFTS - 1} ~"
        )
    mode = Mode.ANSWER if parts["mode"] == "=" else Mode.THINK
    return _Prompt(problem, len(shift), mode, parts["completion"].strip())


def _answer_digits(text: str, width: int, digits: int) -> Tensor:
    """Parse a written answer as `[1, width]` digits. Raise InputError if the text is no answer, or too long."""
    if not (text.isascii() and text.isdigit() and len(text) <= width):
        raise InputError(f"{quoted(text)} is no answer to a {digits}-digit problem; write at most {width} digits")
    return digit_tensor([text], width)


@dataclass(frozen=True, slots=True)
class SumTokens:
    """Texts of two operands and a carry-in.

    problems: class of the problems, with the sign between operands.
    order: order in which the model reads digits.
    """

    problems: type[Problems]
    order: DigitOrder

    def encode(self, text: str) -> Tensor:
        """Return the `[T]` ids of a prompt; see `TokenText`."""
        parts, example = _split(text), self.problems.example
        match = re.compile(self._pattern, re.ASCII).fullmatch(parts.problem)
        if match is None:
            raise InputError(
                f"{quoted(parts.problem)} is not a problem; write two non-negative integers as {example} or "
                f"{example}{self.problems.sign}1"
            )
        digits = max(len(match["a"]), len(match["b"]))
        if digits > tokens.MAX_DIGITS:
            raise InputError(f"an operand has {digits} digits; write at most {tokens.MAX_DIGITS}")
        layout = PlaceLayout(self.order, parts.variant, self.problems)
        ids = layout.prompt_ids(self._problem(match, digits), parts.mode)[0]
        if not parts.completion:
            return ids
        if parts.mode is Mode.ANSWER:
            return torch.cat([ids, layout.answer_ids(_answer_digits(parts.completion, digits + 1, digits))[0]])
        return torch.cat([ids, self._simplification_ids(parts.completion, digits, layout)])

    def decode(self, names: Iterable[str]) -> str:
        """Return token names as plain text. A start mark shows its shift."""
        sign = self.problems.sign
        marks = {"c1": f"{sign}1", "=": "=", ">": ">", "+": sign, "&": sign, **_SHIFTS}
        shown: list[str] = []
        number: list[str] = []
        previous = ""
        for kind in map(_kind, names):
            if kind.isdigit():
                # In a simplification the carry-in is followed by the digit split off.
                if previous in ("c0", "c1"):
                    shown.append("|")
                number.append(kind)
            else:
                shown += [*_ordered(number, self.order), marks.get(_plain(kind), "")]
                number = []
            previous = kind
        return "".join([*shown, *_ordered(number, self.order)])

    @property
    def _pattern(self) -> str:
        """Pattern of a problem."""
        sign = re.escape(self.problems.sign)
        return rf"(?P<a>\d+)\s*{sign}\s*(?P<b>\d+)\s*({sign}\s*(?P<carry>[01]))?"

    def _simplification_ids(self, text: str, digits: int, layout: PlaceLayout) -> Tensor:
        """Return the `[T]` ids of a written simplification. Raise InputError if it is malformed or too long."""
        match = re.compile(rf"{self._pattern}\s*\|\s*(?P<digit>\d)", re.ASCII).fullmatch(text)
        if digits == 1 or match is None or max(len(match["a"]), len(match["b"])) >= digits:
            sign = self.problems.sign
            mend = f"write it as 12{sign}45{sign}1|0, with a rest of at most {digits - 1} digits"
            if digits == 1:
                mend = "ask for its answer"
            raise InputError(f"{quoted(text)} does not simplify a {digits}-digit problem; {mend}")
        rest = self._problem(match, digits - 1)
        return layout.simplification_ids(rest, torch.tensor([int(match["digit"])]))[0]

    def _problem(self, match: re.Match[str], digits: int) -> Problems:
        """Return one problem of exactly `digits` digits, typed leading zeros included (unlike `Problems.parse`)."""
        carry = torch.tensor([int(match["carry"] or 0)])
        return self.problems(digit_tensor([match["a"]], digits), digit_tensor([match["b"]], digits), carry)


@dataclass(frozen=True, slots=True)
class NumberTokens:
    """Texts of numbers with marks between them.

    task: the task.
    writing: form of its problems and steps.
    order: order in which the model reads digits.
    joined: text of each mark within a step; None is the mark of the number behind it.
    """

    task: Task
    writing: Writing
    order: DigitOrder
    joined: str | None = None

    def encode(self, text: str) -> Tensor:
        """Return the `[T]` ids of a prompt; see `TokenText`. A problem may be written as it is typed for the task."""
        parts = _split(text)
        problems = self._problem(parts.problem)
        widths = [number.shape[1] for number in self.writing.problem_numbers(problems)]
        if (longest := max(*widths, problems.answer_width)) > _MAX_NUMBER:
            raise InputError(f"{quoted(text)} has numbers of {longest} digits; write at most {_MAX_NUMBER}")
        layout = self.task.layout(self.order).shifted(parts.variant)
        ids = layout.prompt_ids(problems, parts.mode)[0]
        if not parts.completion:
            return ids
        if parts.mode is Mode.ANSWER:
            answer = _answer_digits(parts.completion, problems.answer_width, problems.digits)
            return torch.cat([ids, layout.answer_ids(answer)[0]])
        return torch.cat([ids, self._simplification_ids(parts.completion, problems, layout)])

    def decode(self, names: Iterable[str]) -> str:
        """Return token names as plain text. Names that begin within a completion are read as its beginning."""
        shown: list[str] = []
        number: list[str] = []
        writing, index = self.writing.step, 0

        def number_text() -> list[str]:
            return _ordered(number, self.order) if writing[index].in_order else number

        for kind in map(_kind, names):
            if kind.isdigit():
                number.append(kind)
                continue
            shown += number_text()
            number = []
            if kind[0] in "+&":
                # A model may write more numbers than a step has.
                index = min(index + 1, len(writing) - 1)
                shown.append(writing[index].mark if kind[0] == "+" or self.joined is None else self.joined)
            elif kind in _SHIFTS:
                writing, index = self.writing.problem, 0
                shown.append(_SHIFTS[kind])
            elif kind[0] in "=>":
                writing, index = self.writing.step if kind[0] == ">" else (Written(""),), 0
                shown.append(kind[0])
        return "".join([*shown, *number_text()])

    def _problem(self, text: str) -> Batch:
        """Return a problem that a chain wrote, with leading zeros, or a user typed. Raise InputError for no problem."""
        match = re.compile(_pattern(self.writing.problem), re.ASCII).fullmatch(text)
        if match:
            try:
                return self.writing.read_problem([digit_tensor([number], len(number)) for number in match.groups()])
            except InputError:
                # Numbers of other lengths are padded, as in a typed problem.
                pass
        return self.task.parse([text])

    def _simplification_ids(self, text: str, problems: Batch, layout: Layout) -> Tensor:
        """Return the `[T]` ids of a written step. Raise InputError if it is malformed, or a number too long."""
        match = re.compile(_pattern(self.writing.step), re.ASCII).fullmatch(text)
        widths = self.writing.step_widths(problems.size)
        numbers = match.groups() if match else ()
        if 0 in widths or not match or any(len(number) > width for number, width in zip(numbers, widths, strict=True)):
            zeros = zip(self.writing.step, widths, strict=True)
            form = "".join(written.mark + "0" * width for written, width in zeros)
            mend = "ask for its answer" if 0 in widths else f"write digits as in {quoted(form)}"
            raise InputError(f"{quoted(text)} does not simplify a {problems.digits}-digit problem; {mend}")
        digits = [digit_tensor([number], width) for number, width in zip(numbers, widths, strict=True)]
        return layout.simplification_ids(*self.writing.read_step(digits, problems.size))[0]


def _pattern(writing: Sequence[Written]) -> str:
    """Return the pattern of numbers with marks between them, with a group a number."""
    return r"\s*".join(rf"{re.escape(written.mark)}\s*(\d+)" for written in writing)


def _kind(name: str) -> str:
    """Return the kind of a token without its place."""
    return name.partition("@")[0]


def _plain(kind: str) -> str:
    """Return a kind of mark without its variant, which only start marks show."""
    return kind.rstrip("12") if kind[0] in "=>+&" else kind


def _ordered(number: Sequence[str], order: DigitOrder) -> list[str]:
    """Convert digits between most significant first and an order; its own inverse."""
    return list(number[::-1] if order is DigitOrder.LSD else number)


def quoted(text: str) -> str:
    """Return a text in quotes for a message, cut to 60 characters."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
