"""The promises of every task to the loop; a new task is tested as soon as its module exists."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from declared_tasks import DECLARATIONS, VALUES, Parity, Quotients, Sums
from empty_doors import empty_doors

from sector.engine.config import FILTERS, run_config
from sector.engine.errors import InputError
from sector.engine.language.layout import Batch
from sector.engine.language.products import Products, ProductWriting, Size
from sector.engine.models.sector_config import SectorConfig
from sector.engine.policy.improve import answer_fast, improve, simplify
from sector.engine.samplers.protocol import Sampling
from sector.engine.tasks import TASK_DOOR, built_in, find_task, oracle, task_names
from sector.engine.tasks.addition import TASK as ADDITION
from sector.engine.tasks.check import Check
from sector.engine.tasks.declared import as_task, check
from sector.engine.tasks.task import Task, one_task
from sector.engine.testing.knowing import Knowing
from sector.engine.testing.promise import BrokenPromise, Promise, drawn
from sector.engine.testing.task import PROMISES, check_task, check_values
from sector.engine.training.supervised import label

# The tasks of the package, and tasks in plain Python.
ALL = [*map(find_task, task_names()), *(as_task(declaration()) for declaration in DECLARATIONS)]
TASKS = pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
DECLARED = [declaration.name for declaration in DECLARATIONS]


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    empty_doors(monkeypatch)
    for task in ALL:
        if task.name in DECLARED:
            TASK_DOOR.register(task)


def greedy(problems: Batch) -> Sampling:
    return Sampling(0.0, 0, torch.arange(len(problems)), stage=0)


def value(text: str) -> int:
    """Return the value of a problem's text by Python's arithmetic, without its intermediate results."""
    numbers = [str(int(number)) for number in text.partition("~")[0].replace("*", "+").replace("-", "+").split("+")]
    signs = [each for each in text.partition("~")[0] if each in "+-*"]
    return int(eval("".join(a + b for a, b in zip(numbers, [*signs, ""], strict=True))))


@TASKS
@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.name)
def test_every_promise_is_kept(task: Task, promise: Promise) -> None:
    promise.test(task)


@TASKS
def test_answers_are_what_python_says(task: Task) -> None:
    check_values(task, VALUES.get(task.name, value))


class Shifty(Sums):
    """Sums whose draws do not come from their generator."""

    count = 0

    def draw(self, digits: int, rng: Any) -> dict[str, int]:
        Shifty.count += 1
        return {"a": Shifty.count, "b": 1, "c": Shifty.count % 2}

    draw_hard = draw


class Carryless(Sums):
    """Sums that are drawn without a carry, so that it is never learned."""

    def draw(self, digits: int, rng: Any) -> dict[str, int]:
        return {**super().draw(digits, rng), "c": 0}

    def draw_hard(self, digits: int, rng: Any) -> dict[str, int]:
        return {**super().draw_hard(digits, rng), "c": 0}


class Constant(Sums):
    def draw(self, digits: int, rng: Any) -> dict[str, int]:
        return {"a": 1, "b": 1, "c": 0}

    draw_hard = draw


def _checked(base: type, name: str, label_: str, pose: Any, **options: Any) -> type:
    return type("Checked", (base,), {"checks": (check(name, label_, pose, **options),)})


BROKEN = [
    (Shifty, "draw from `rng` only"),
    (Constant, "the same problem each time"),
    (Carryless, "a step leaves c = 1, which draw never gives"),
    (
        _checked(Quotients, "complement", "itself, wrongly", lambda p, answer: (p, answer[::-1])),
        "fails for the right answer",
    ),
    (
        _checked(Sums, "commutative", "any answer", lambda p, answer: (p, str(sum(map(int, p.values()))))),
        "holds for the wrong answer",
    ),
    (
        _checked(Sums, "commutative", "itself", lambda p, answer: (p, answer), needs_answers=True),
        "do not depend on the answers",
    ),
    (
        _checked(Parity, "complement", "the voted digit", lambda p, answer: ({**p, "p": int(answer) % 2}, answer)),
        "fails for the right answer",
    ),
]


@pytest.mark.parametrize(("declaration", "fault"), BROKEN, ids=lambda part: "")
def test_a_broken_promise_is_named_with_an_example(declaration: Any, fault: str, monkeypatch: Any) -> None:
    empty_doors(monkeypatch)
    with pytest.raises(BrokenPromise, match=fault):
        check_task(declaration)
    assert task_names() == tuple(sorted(built_in())), "a task that is checked is not known afterwards"


def test_values_by_other_means_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    empty_doors(monkeypatch)
    with pytest.raises(BrokenPromise, match=r"the answer to 92\+48\+0 is 140 by its steps, and 007 by value"):
        check_task(Sums, lambda text: 7)


def test_a_truth_that_is_open_during_rounds_is_found() -> None:
    names = ("answers", "simplifications", "answer_mistakes", "simplification_mistakes")
    unguarded = type("Unguarded", (), {name: lambda self, *arguments: None for name in names})()
    task = type("Leaky", (type(ADDITION),), {"truth": unguarded})()
    with pytest.raises(BrokenPromise, match="answer_mistakes of the truth can be read during rounds"):
        next(promise for promise in PROMISES if promise.name == "sealed").test(task)


def _forgets_work(self: ProductWriting, numbers: Sequence[torch.Tensor], size: Size) -> tuple[Products, torch.Tensor]:
    *work, total, padded, a = numbers
    zeros = torch.cat(work, dim=1) * 0
    return Products(a, padded[:, 1:], total[:, :-1], zeros), total[:, -1]


def _one_digit_less(self: ProductWriting, size: Size) -> list[int]:
    return [size.width] * 8


@pytest.mark.parametrize("name", ["written", "shown"])
@pytest.mark.parametrize(
    ("member", "fault"),
    [("read_step", _forgets_work), ("step_widths", _one_digit_less)],
    ids=["forgotten_number", "wrong_widths"],
)
def test_a_form_that_is_not_read_back_is_found(name: str, member: str, fault: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(ProductWriting, member, fault)
    with pytest.raises(InputError):
        next(promise for promise in PROMISES if promise.name == name).test(find_task("multiplication"))


def test_no_truth_can_leave_a_way_around_the_door() -> None:
    with pytest.raises(TypeError, match="around the door"):

        class Leaky(oracle.Truth):
            @staticmethod
            def answers(problems: Batch) -> torch.Tensor:
                return torch.zeros(0)


def commutative(task: Task) -> Check:
    return next(check for check in task.checks if check.name == "commutative")


@pytest.mark.parametrize(
    "task",
    [task for task in ALL if task.at_once is None and "commutative" in {check.name for check in task.checks}],
    ids=lambda task: task.name,
)
def test_what_is_misjudged_at_once_is_thought_through(task: Task) -> None:
    """Unless a step on the way is wrong too, in the problem itself or in the other one."""
    problems = drawn(task, 5)
    truth = label(problems)
    other, _ = commutative(task).pose(problems, truth.answers)
    texts = problems.texts()
    lies = {truth.rest.texts()[1], label(other).rest.texts()[2]}
    engine = Knowing(task, lies, set(texts[:4]))
    settings = FILTERS["strict"].model_copy(update={"k": 1})
    improved = improve(engine, problems, settings, engine.layout("msd"), greedy(problems))
    # Where answers end in the remainder, the fast answer and the vote have the same mistake, and another check fails.
    verdicts = ["rejected" if verdict.startswith("not_") else verdict for verdict in improved.verdicts[:5]]
    assert verdicts == ["thought_through", "rejected", "rejected", "thought_through", "accepted"]
    assert torch.equal(improved.ballot.answers[improved.accepted], truth.answers[improved.accepted])


def test_an_answer_that_is_no_sum_has_no_complement_to_learn() -> None:
    task = find_task("addition")
    examples = label(drawn(task, 4))
    rows = len(examples)
    examples.answers[3, 0] = 7
    swapped, *complements = task.restated(examples)
    assert len(swapped) == rows and [len(each) for each in complements] == [rows - 1, rows - 1]
    assert all(each.answers.min() >= 0 for each in complements)


@TASKS
def test_a_true_model_answers_and_simplifies_truly(task: Task) -> None:
    problems, model = drawn(task, 4), Knowing(task)
    layout, truth = model.layout("msd"), label(problems)
    answers, valid, _ = answer_fast(model, problems, layout, greedy(problems))
    assert valid.all() and torch.equal(answers, truth.answers)
    step, _ = simplify(model, problems, layout, greedy(problems))
    assert step.rest.texts() == truth.rest.texts()


@TASKS
def test_lessons_are_as_many_as_a_chain_has_steps(task: Task) -> None:
    problems, model = drawn(task, 4), Knowing(task)
    settings = FILTERS["strict"].model_copy(update={"k": 3})
    improved = improve(model, problems, settings, model.layout("msd"), greedy(problems))
    assert len(improved.examples_by_step()) == (
        1 if task.at_once is None else 1 + task.num_simplifications(problems, 3)
    )


def test_unknown_tasks_are_named() -> None:
    with pytest.raises(InputError, match="unknown task 'no_such_task'; choose one of addition"):
        find_task("no_such_task")
    with pytest.raises(InputError, match="unknown task 'no_such_task'"):
        run_config({"task": "no_such_task"})
    with pytest.raises(ValueError, match=r"unknown task 'no_such_task'; .* --task FILE\.py:NAME"):
        SectorConfig(task="no_such_task")
    with pytest.raises(InputError, match="one task at a time"):
        one_task(["addition", "subtraction"])


def test_an_old_checkpoint_adds() -> None:
    values = SectorConfig().to_dict()
    del values["task"]
    assert SectorConfig(**values).task == "addition"
