"""Tasks in plain Python: the same truth as tasks of tensors, sealed, refused if wrong, and learned from files."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from declared_tasks import Parity, Quotients, Sums
from empty_doors import empty_doors

from sector.engine.config import CHECKS, Filter
from sector.engine.config.checks import REMAINDER, SHIFTED
from sector.engine.errors import InputError
from sector.engine.language.declared_form import read_template
from sector.engine.language.operands import Problems
from sector.engine.policy.improve import improve
from sector.engine.samplers.protocol import Sampling
from sector.engine.seeding import generator
from sector.engine.tasks import TASK_DOOR, find_task, oracle
from sector.engine.tasks.check import Check
from sector.engine.tasks.declared import CHECK_NAMES, NOT_OWN, as_task, check
from sector.engine.tasks.mistakes import Mistake
from sector.engine.testing.knowing import Knowing
from sector.engine.training.supervised import label


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    empty_doors(monkeypatch)
    for declaration in (Sums, Quotients, Parity):
        TASK_DOOR.register(as_task(declaration()))


@pytest.mark.parametrize("digits", [1, 4, 12])
def test_declared_sums_are_sums(digits: int) -> None:
    problems = find_task("addition").draw(digits, 50, generator(digits, "declared"), 0.5)
    truth = label(problems)
    declared = label(find_task("sums").parse(_texts(problems), digits))
    assert torch.equal(declared.answers, truth.answers) and torch.equal(declared.digit, truth.digit)
    assert declared.rest.texts() == ([""] * 50 if digits == 1 else _texts(truth.rest))


def _texts(problems: Problems) -> list[str]:
    """Problems with their carry-in, also if it is 0."""
    marked = replace(problems, carry=torch.ones_like(problems.carry)).texts()
    return [text[:-1] + str(carry) for text, carry in zip(marked, problems.carry.tolist(), strict=True)]


def test_the_plain_truth_is_sealed_too() -> None:
    declaration = Sums()
    with oracle.sealed(), pytest.raises(oracle.OracleSealed):
        declaration.simplify({"a": "1", "b": "2", "c": "0"})
    with pytest.raises(TypeError, match="around the door"):

        class Leaky(Sums):
            @staticmethod
            def simplify(p: dict[str, str]) -> tuple[int, dict[str, Any]]:
                return 0, {}


def test_optional_numbers_may_be_left_out_and_zeros_are_not_counted() -> None:
    task = as_task(Quotients())
    assert task.parse(["0084/7", " 9184 / 7 + 3 = "]).texts() == ["0084/7+0", "9184/7+3"]
    for text in ("84", "84/", "84/7+1+2", "84/77", "-4/7", "٣/7"):
        with pytest.raises(InputError, match=r"is not a problem|number of 1 digits"):
            task.parse([text])
    with pytest.raises(InputError, match=r"a is '1234' .* for N = 3 it is a number of 3 digits"):
        task.parse(["1234/7"], 3)


def test_mistakes_are_copied_or_computed_numbers() -> None:
    task = as_task(Sums())
    problems = task.parse(["12+34", "55+55", "10+10", "99+99"])
    outputs = task.truth.simplifications(problems)
    columns = outputs.rest.columns.clone()
    columns[0, 0] += 1
    columns[1, 2] = 0
    outputs = replace(
        outputs, rest=replace(outputs.rest, columns=columns), digit=outputs.digit + torch.tensor([1, 0, 1, 0])
    )
    assert task.truth.simplification_mistakes(problems, outputs) == [
        Mistake.COPIED, Mistake.ADDED, Mistake.ADDED, Mistake.RIGHT,
    ]  # fmt: skip
    answers = task.truth.answers(problems)
    answers[2, 0] += 1
    assert task.truth.answer_mistakes(problems, answers) == [Mistake.RIGHT] * 2 + [Mistake.ADDED, Mistake.RIGHT]


def _turned(name: str, right: bool = True) -> Check:
    """The check of turned operands by another name, or one that no answer passes."""
    return check(name, "turned", lambda p, answer: ({**p, "a": p["b"], "b": p["a"]}, answer if right else None))


def test_a_check_of_another_name_is_one_of_the_filter_s() -> None:
    """It is listed by name, after the ones that filters list by default, and decides like them."""
    checks = (*Sums.checks, _turned("mine"), _turned("never", right=False))
    task = as_task(type("Turned", (Sums,), {"name": "turned", "checks": checks})())
    TASK_DOOR.register(task)
    knowing, problems = Knowing(task), task.draw(3, 20, generator(0, "turned"), 0.0)
    sampling = Sampling(0.0, 0, torch.arange(20), stage=0)
    for name, verdict in (("mine", "accepted"), ("never", "not_never")):
        settings = Filter(checks=("commutative", name), think_through=False)
        improved = improve(knowing, problems, settings, knowing.layout("msd"), sampling)
        assert set(improved.verdicts) == {verdict}


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("", "is not a template"),
        ("{a:N}={b:N}", "is not a template"),
        ("{a:N}+{b:0}", "is not a template"),
        ("{a:N}{b:N}", "marks stand between"),
        ("+{a:N}", "begins with a number"),
        ("{a:N}+", "is not a template"),
        ("{a:N}+{a:1}", "names a number twice"),
        ("{a:1}+{b:2}", "cannot grow"),
        ("{a:N}+{b:1?}+{c:1}", "only the last numbers"),
        ("{a:N?}", "only the last numbers"),
    ],
)
def test_a_template_that_is_none_is_refused(template: str, fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        read_template(template)


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        ({"name": "My Sums"}, "is no name of a task"),
        ({"end": ("a",)}, "which is no number of a fixed width"),
        ({"end": ("c", "c")}, "end names a number twice"),
        ({"join": lambda self, piece, rest: rest[1:] + piece}, "join must return"),
        ({"join": lambda self, piece, rest: rest, "end": ()}, "name it in end"),
        ({"checks": ()}, "checks are none; name at least one of complement, commutative"),
        ({"checks": (_turned("mine"),)}, "checks are mine; name at least one of complement, commutative"),
        ({"checks": (_turned("commutative"), _turned("commutative"))}, "each once"),
        ({"checks": (_turned("commutative"), _turned("direct"))}, "a check cannot be named 'direct'"),
        ({"checks": (_turned("commutative"), _turned("My own"))}, "a check cannot be named 'My own'"),
        ({"at_once": 0}, "at_once is 0"),
        ({"example": "12*34"}, "is not a problem"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_declaration_that_cannot_be_learned_is_refused(members: dict[str, Any], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        as_task(type("Wrong", (Sums,), members)())


@pytest.mark.parametrize(
    ("simplify", "fault"),
    [
        (lambda self, p: (10, {"a": 1, "b": 1, "c": 0}), "splits off 10; it must be one digit"),
        (lambda self, p: (1, p), "a is '12' in a problem of sums; for N = 1"),
        (lambda self, p: (1, {"a": 1, "b": -1, "c": 0}), "b is -1 in a problem of sums"),
        (lambda self, p: (1, {"a": 1, "b": "٣", "c": 0}), "b is '٣' in a problem of sums"),
        (lambda self, p: ("٣", {"a": 1, "b": 1, "c": 0}), "splits off '٣'; it must be one digit"),
        (lambda self, p: ("", {"a": 1, "b": 1, "c": 0}), "splits off ''; it must be one digit"),
        (lambda self, p: (1, {"a": 1}), "a problem of sums has a, b, c, not a"),
    ],
)
def test_a_step_that_does_not_fit_is_refused(simplify: Callable[..., Any], fault: str) -> None:
    task = as_task(type("Wrong", (Sums,), {"simplify": simplify})())
    with pytest.raises(InputError, match=fault):
        task.truth.simplifications(task.parse(["12+34"]))


def test_checks_have_names_that_a_filter_can_list() -> None:
    assert set(CHECK_NAMES) == set(CHECKS) - {"direct", "through"}
    assert {*CHECK_NAMES, *NOT_OWN} == {*CHECKS, SHIFTED, REMAINDER}


def test_no_problems_are_posed_for_no_rows() -> None:
    for task in (as_task(Sums()), as_task(Quotients()), as_task(Parity())):
        problems = task.parse([task.example])[torch.arange(0)]
        assert len(problems.texts()) == len(label(problems)) == 0
        other, expected = task.checks[0].pose(problems, torch.zeros(0, problems.answer_width, dtype=torch.int64))
        assert len(other) == len(expected) == 0
