"""Tasks in plain Python on one problem: the form of a problem, one step of the truth, and checks.

    class Division(Declaration):
        name = "division"
        example = "8432/7"
        problem = "{a:N}/{d:1}+{r:1?}"
        end = ("r",)
        ...

`as_task` makes a `Task` of a declaration: batches, layout and batched truth follow from it. In the shape descriptions B
is the batch, N the digits of a problem and W the digits of an answer.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch
from torch import Tensor

from sector.engine.errors import InputError
from sector.engine.language.declared_form import DeclaredProblems, Form, Numbers, read_template
from sector.engine.language.layout import Layout, Simplifications
from sector.engine.language.number_layout import NumberLayout
from sector.engine.language.operands import digit_strings, digit_tensor
from sector.engine.language.place_ids import DigitOrder
from sector.engine.outside import is_plain_name
from sector.engine.tasks import find_task
from sector.engine.tasks.check import Check, Solve, expected_digits
from sector.engine.tasks.mistakes import Mistake, by_index, index_of
from sector.engine.tasks.oracle import Truth, guard
from sector.engine.tasks.task import Task

# Numbers of a problem by name, as integers or as digits.
Problem = Mapping[str, str | int]
# Numbers and voted answer of a problem -> the problem to solve, and the answer that it must have; None is no answer.
PoseOne = Callable[[Numbers, str], tuple[Problem, str | None]]
# Names of checks that filters list by default, besides those that every task has.
CHECK_NAMES = ("complement", "commutative")
# Names of checks of the package, which no declared task can take.
NOT_OWN = ("direct", "through", "shifted", "remainder")


class Declaration(ABC):
    """A task in plain Python on one problem. A problem is a dict of its numbers, each a string of all its digits.

    name: name in the config and in checkpoints: lower case letters, digits and `_`.
    example: a problem as typed.
    problem: template of a problem: numbers of N digits or of a fixed width, and the marks between them. A number with
        `?` may be left out of a typed problem; it is 0 then.
    end: numbers of a fixed width that make the answer to a problem of no digits.
    checks: relations by which the model tests itself, at least one, made with `check`.
    at_once: digits of the longest problems that are answered at once; None is any length.
    settings: defaults that differ from those of a run, as nested dicts.
    """

    name: ClassVar[str]
    example: ClassVar[str]
    problem: ClassVar[str]
    end: ClassVar[tuple[str, ...]] = ()
    checks: ClassVar[tuple[Check, ...]]
    at_once: ClassVar[int | None] = None
    settings: ClassVar[Mapping[str, object]] = {}

    def __init_subclass__(cls) -> None:
        guard(cls, [name for name in vars(cls) if name == "simplify"])

    @abstractmethod
    def draw(self, digits: int, rng: random.Random) -> Problem:
        """Draw a problem of N = `digits`, with all values that numbers can have in a chain of thought."""

    def draw_hard(self, digits: int, rng: random.Random) -> Problem:
        """Draw a problem that is harder than uniform digits, such as one with a long carry."""
        return self.draw(digits, rng)

    @abstractmethod
    def simplify(self, p: Numbers) -> tuple[str | int, Problem]:
        """Return the digit that a step splits off, and the remaining problem of N-1 digits.

        This is the truth: it raises OracleSealed during rounds of self-training.
        """

    def join(self, piece: str, rest: str) -> str:
        """Return the answer from the digit that a step split off, and the answer to the remaining problem.

        `rest + piece` finds the least significant digit first, `piece + rest` the most significant one. `rest` alone
        ignores the digit.
        """
        return rest + piece


class Join(Enum):
    """How digits that simplifications split off and the answers to the remaining problems make answers."""

    BEHIND = "RP"
    BEFORE = "PR"
    IGNORED = "R"


def check(name: str, label: str, pose: PoseOne, solve: Solve = Solve.BY_VOTE, needs_answers: bool = False) -> Check:
    """Return a check that poses one problem at a time.

    name: name by which the filter of a run lists it. Filters list `complement` and `commutative` by default; a task
        with another one names it in its settings.
    label: noun for display, such as `swapped operands`.
    pose: function from the numbers and the voted answer of a problem to the problem to solve, and the answer that it
        must have; None in the place of the answer if the voted one cannot be right.
    solve: policy that solves the posed problems.
    needs_answers: whether the posed problems depend on the answers, and not only on the problems.
    """

    def pose_batch(problems: DeclaredProblems, answers: Tensor) -> tuple[DeclaredProblems, Tensor]:
        rows = zip(problems.rows(), digit_strings(answers), strict=True)
        posed = [pose(numbers, answer) for numbers, answer in rows]
        others = problems.form.batch([numbers for numbers, _ in posed], problems.digits)
        expected = expected_digits([answer for _, answer in posed], answers.shape[1])
        return others.to(problems.device), expected.to(answers.device)

    return Check(name, label, pose_batch, solve, needs_answers)


@dataclass(frozen=True)
class DeclaredTruth(Truth[DeclaredProblems]):
    """Truth of a declared task, one problem at a time.

    declaration: the task in plain Python.
    form: form of its problems.
    """

    declaration: Declaration
    form: Form

    def answers(self, problems: DeclaredProblems) -> Tensor:
        """Return the answers, `[B, W]` digits, most significant first."""
        answers = [self._answer(numbers, problems.digits) for numbers in problems.rows()]
        return digit_tensor(answers, problems.answer_width)

    def simplifications(self, problems: DeclaredProblems) -> Simplifications[DeclaredProblems]:
        """Return the true first simplifications; if N is 1 the remaining problems have no digits."""
        steps = [self._step(numbers, problems.digits) for numbers in problems.rows()]
        digit = torch.tensor([int(piece) for piece, _ in steps], dtype=torch.int64)
        rest = self.form.batch([numbers for _, numbers in steps], problems.digits - 1)
        rest = rest.without_digits() if problems.digits == 1 else rest
        return Simplifications(rest, digit, torch.ones_like(digit, dtype=torch.bool))

    def simplification_mistakes(
        self, problems: DeclaredProblems, outputs: Simplifications[DeclaredProblems]
    ) -> list[Mistake]:
        """Return the first mistake of each simplification: COPIED in a number of N digits, else ADDED."""
        truth = self.simplifications(problems)
        kinds = torch.full_like(outputs.digit, index_of(Mistake.RIGHT))
        kinds[outputs.digit != truth.digit] = index_of(Mistake.ADDED)
        if truth.rest.is_nothing:
            return by_index(kinds)
        numbers = zip(self.form.fields, outputs.rest.numbers(), truth.rest.numbers(), strict=True)
        # Backwards, so that earlier mistakes replace later ones.
        for field, number, true_number in reversed(list(numbers)):
            kind = Mistake.ADDED if field.width else Mistake.COPIED
            kinds[(number != true_number).any(dim=1)] = index_of(kind)
        return by_index(kinds)

    def _step(self, numbers: Numbers, digits: int) -> tuple[str, Numbers]:
        """Return the digit and the remaining numbers of one problem. Raise InputError if they do not fit."""
        piece, rest = self.declaration.simplify(numbers)
        text = str(piece)
        if len(text) != 1 or text not in "0123456789":
            raise InputError(f"a step of {self.form.task} splits off {piece!r}; it must be one digit")
        return text, self.form.padded(rest, digits - 1)

    def _answer(self, numbers: Numbers, digits: int) -> str:
        """Return the answer to one problem, by all its steps."""
        pieces: list[str] = []
        while digits:
            piece, numbers = self._step(numbers, digits)
            pieces.append(piece)
            digits -= 1
        answer = "".join(numbers[name] for name in self.form.end)
        for piece in reversed(pieces):
            answer = self.declaration.join(piece, answer)
        return answer


class DeclaredTask(Task[DeclaredProblems]):
    """A task made of a declaration.

    declaration: the task in plain Python.
    form: form of its problems.
    order: how digits and the answers to remaining problems make answers.
    """

    declaration: ClassVar[Declaration]
    form: ClassVar[Form]
    order: ClassVar[Join]

    @property
    def writing(self) -> Form:
        """Form of its problems and steps as numbers with marks between them."""
        return self.form

    def __reduce__(self) -> tuple[Callable[[str], Task], tuple[str]]:
        """Let other processes, which have loaded the task too, find it by name."""
        return find_task, (self.name,)

    def layout(self, order: str) -> NumberLayout:
        """Return the place-coupled layout of the task's template."""
        return NumberLayout(DigitOrder(order), writing=self.form)

    def draw(self, digits: int, count: int, draws: torch.Generator, hard_share: float = 0.0) -> DeclaredProblems:
        """Draw problems one at a time; a share `hard_share` of them by `draw_hard`."""
        rng = random.Random(int(torch.randint(2**62, (), generator=draws)))
        rows = []
        for _ in range(count):
            is_hard = rng.random() < hard_share
            rows.append((self.declaration.draw_hard if is_hard else self.declaration.draw)(digits, rng))
        return self.form.batch(rows, digits)

    def num_simplifications(self, problems: DeclaredProblems, num_guesses: int) -> int:
        """Return the number of simplifications; problems of one digit are not simplified."""
        return min(super().num_simplifications(problems, num_guesses), problems.digits - 1)

    def join(self, pieces: Tensor, rest_answers: Tensor) -> Tensor:
        """Join digits `[B, S]`, the latest first, to the answers of the remaining problems."""
        if self.order is Join.IGNORED:
            return rest_answers
        parts = [rest_answers, pieces] if self.order is Join.BEHIND else [pieces.flip(1), rest_answers]
        return torch.cat(parts, dim=1)

    def rest_answers(self, answers: Tensor, width: int) -> Tensor:
        """Return the answers of remaining problems within whole answers; inverse of `join`."""
        return answers[..., answers.shape[-1] - width :] if self.order is Join.BEFORE else answers[..., :width]

    def parse(self, texts: list[str], digits: int | None = None) -> DeclaredProblems:
        """Parse problems, padded to one size. Raise InputError naming the first text that is not a problem."""
        rows = [self.form.read(text) for text in texts]
        digits = max(map(self.form.digits_of, rows), default=1) if digits is None else digits
        return self.form.batch(rows, digits)

    def digits_of(self, text: str) -> int:
        """Return the digits of the longest number of N digits."""
        return self.form.digits_of(self.form.read(text))

    def swapped(self, problems: DeclaredProblems) -> DeclaredProblems:
        """Return the problems themselves."""
        return problems

    def draft(self, problems: DeclaredProblems, answers: Tensor | None, layout: Layout) -> None:
        """Return no draft."""
        return


def as_task(declaration: Declaration) -> Task:
    """Return the task of a declaration. Raise InputError naming the first fault of the declaration."""
    if missing := [name for name in ("name", "example", "problem", "checks") if not hasattr(declaration, name)]:
        raise InputError(f"{type(declaration).__name__} has no {missing[0]}; set it in the class")
    order = _order(declaration)
    form = _form(declaration, order)
    _check_settings(declaration, form)
    members = {
        "__module__": type(declaration).__module__,
        "declaration": declaration,
        "form": form,
        "order": order,
        "truth": DeclaredTruth(declaration, form),
        **{name: getattr(declaration, name) for name in ("name", "example", "checks", "at_once", "settings")},
    }
    task: Task = type(type(declaration).__name__, (DeclaredTask,), members)()
    task.parse([task.example])
    return task


def _order(declaration: Declaration) -> Join:
    """Return how a declaration joins digits and answers. Raise InputError if it does so in another way."""
    joined = declaration.join("P", "R")
    if joined not in {order.value for order in Join}:
        raise InputError(f"{declaration.name}: join must return rest + piece, piece + rest, or rest")
    return Join(joined)


def _form(declaration: Declaration, order: Join) -> Form:
    """Return the form of the problems of a declaration. Raise InputError if it has none."""
    if not is_plain_name(declaration.name):
        raise InputError(f"{declaration.name!r} is no name of a task; use lower case letters, digits and _")
    fields, end = read_template(declaration.problem), tuple(declaration.end)
    fixed = [field.name for field in fields if field.width]
    if wrong := next((name for name in end if name not in fixed), None):
        raise InputError(
            f"{declaration.name}: end names {wrong!r}, which is no number of a fixed width in the template; "
            f"those are {', '.join(fixed) or 'none'}"
        )
    if len(set(end)) < len(end):
        raise InputError(f"{declaration.name}: end names a number twice; name it once")
    if order is Join.IGNORED and not end:
        raise InputError(
            f"{declaration.name}: join returns rest alone, so the answer is a number of the problem; name it in end"
        )
    growth = 0 if order is Join.IGNORED else 1
    return Form(declaration.name, declaration.example, fields, end, growth, last_first=order is Join.BEHIND)


def _check_settings(declaration: Declaration, form: Form) -> None:
    """Raise InputError if checks or `at_once` of a declaration are not valid."""
    names = [check.name for check in declaration.checks]
    if set(names).isdisjoint(CHECK_NAMES) or len(set(names)) < len(names):
        raise InputError(
            f"{form.task}: checks are {', '.join(names) or 'none'}; name at least one of {', '.join(CHECK_NAMES)}, "
            "each once"
        )
    if wrong := next((name for name in names if name in NOT_OWN or not is_plain_name(name)), None):
        raise InputError(f"{form.task}: a check cannot be named {wrong!r}; use other lower case letters, digits and _")
    if declaration.at_once is not None and declaration.at_once < 1:
        raise InputError(f"{form.task}: at_once is {declaration.at_once}; it is None, or 1 or more")
