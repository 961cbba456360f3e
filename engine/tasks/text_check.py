"""Checks in plain Python on the text of one problem, which go with tasks of any kind.

In the shape descriptions B is the batch and W the digits of an answer.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from sector.engine.errors import InputError, first_line
from sector.engine.language.layout import B, Batch
from sector.engine.language.operands import digit_strings
from sector.engine.tasks import task_of
from sector.engine.tasks.check import Check, Solve, equal, expected_digits

Result = TypeVar("Result")

# Problem and voted answer -> problem to solve, and the answer that it must have; None if the voted one cannot be right.
PoseText = Callable[[str, str], tuple[str, str | None]]
# Answer of the model and expected answer -> whether they agree.
CompareTexts = Callable[[str, str], bool]


def text_check(
    name: str,
    label: str,
    pose: PoseText,
    solve: Solve = Solve.BY_VOTE,
    compare: CompareTexts | None = None,
    needs_answers: bool = False,
) -> Check:
    """Return a check that poses one problem at a time, as text.

    A user's function that fails ends the command with an InputError that names the problem.

    name: name in `filter.checks`, of lower case letters, digits and `_`; a candidate that fails has the verdict
        `not_<name>`.
    label: noun for display, such as `swapped operands`.
    pose: function from a problem and its voted answer to the problem to solve, and the answer that it must have. Both
        texts have all their digits. None in the place of the answer rejects the candidate.
    solve: policy that solves the posed problems, which have no more digits than the problem.
    compare: function that returns whether the model's answer agrees with the expected one; by default if both are
        equal.
    needs_answers: whether the posed problems depend on the answers, and not only on the problems.
    """

    def pose_batch(problems: Batch, answers: Tensor) -> tuple[Batch, Tensor] | None:
        rows = zip(problems.texts(), _texts(answers), strict=True)
        posed = [_called(name, pose, text, answer) for text, answer in rows]
        others = _parsed(name, problems, [text for text, _ in posed])
        if solve is Solve.AT_ONCE and not task_of(others).answers_at_once(others):
            return None
        expected = _digits(name, [answer for _, answer in posed], others.answer_width)
        return others.to(problems.device), expected.to(answers.device)

    def compare_batch(answers: Tensor, expected: Tensor) -> Tensor:
        assert compare is not None, "answers without a function are compared as tensors"
        # An expected answer of -1 stands for none.
        rows = zip(_texts(answers), _texts(expected), (expected >= 0).all(dim=1).tolist(), strict=True)
        agree = [is_there and bool(_called(name, compare, answer, other)) for answer, other, is_there in rows]
        return torch.tensor(agree, dtype=torch.bool, device=answers.device)

    return Check(name, label, pose_batch, solve, needs_answers, compare=compare_batch if compare else equal)


def _texts(answers: Tensor) -> list[str]:
    """Return answers `[B, W]` as texts of all their digits. Rows without an answer, which hold -1, become zeros."""
    return digit_strings(answers.clamp(min=0))


def _called(name: str, function: Callable[[str, str], Result], first: str, second: str) -> Result:
    """Return the result of a user's function. InputError, with check and problem, if it fails."""
    try:
        return function(first, second)
    # The code is the user's, and may fail in any way.
    except Exception as error:
        raise InputError(
            f"the check {name} failed on {first} and {second} ({type(error).__name__}: {first_line(error)})"
        ) from error


def _parsed(name: str, problems: B, texts: list[str]) -> B:
    """Return posed problems as a batch of the digits of `problems`. Raise InputError if one cannot be read."""
    if not texts:
        return problems
    try:
        return task_of(problems).parse(texts, problems.digits)
    except InputError as error:
        raise InputError(f"the check {name} poses a problem that cannot be read: {error}") from error


def _digits(name: str, answers: list[str | None], width: int) -> Tensor:
    """Return expected answers as `[B, W]` digits; None becomes -1, which no model writes."""
    texts = [answer and answer.lstrip("0") for answer in answers]
    for text in texts:
        if text and (len(text) > width or not text.isdecimal() or not text.isascii()):
            raise InputError(f"the check {name} expects {text!r}; an answer here is a text of at most {width} digits")
    return expected_digits(texts, width)
