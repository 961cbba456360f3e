"""The promises of every task to the loop; a new task is tested as soon as its module exists."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from declared_tasks import DECLARATIONS, VALUES
from scripted_task import Knowing

from sector.engine import tasks
from sector.engine.config import FILTERS, RunConfig, run_config
from sector.engine.errors import InputError
from sector.engine.language import tokens
from sector.engine.language.layout import Batch, Mode
from sector.engine.language.operands import digit_strings
from sector.engine.models.sector import SectorConfig
from sector.engine.policy.improve import Verdict, answer_fast, improve, simplify
from sector.engine.run.directory import RunDir
from sector.engine.run.events import FrontierMoved
from sector.engine.samplers.protocol import Sampling
from sector.engine.seeding import generator
from sector.engine.selfplay import self_play
from sector.engine.tasks import find_task, oracle, task_names, task_of, true_answers, truth_of
from sector.engine.tasks.check import Check
from sector.engine.tasks.declared import as_task
from sector.engine.tasks.task import Task, one_task
from sector.engine.training.dataset import Provenance, labelled_table, read_examples, write_examples
from sector.engine.training.distill import lay_out
from sector.engine.training.supervised import kept_examples, label

# The tasks of the package, and tasks in plain Python.
ALL = [*map(find_task, task_names()), *(as_task(declaration()) for declaration in DECLARATIONS)]
TASKS = pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
ORDERS = pytest.mark.parametrize("order", ["msd", "lsd"])
DIGITS = pytest.mark.parametrize("digits", [2, 5], ids="digits{}".format)
ROWS = 24
DECLARED = [declaration.name for declaration in DECLARATIONS]
# Tasks whose answers have none of the digits that their steps split off.
IGNORING = ("parity", "modulo")


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_registered", {task.name: task for task in ALL if task.name in DECLARED})


def drawn(task: Task, digits: int) -> Batch:
    return task.draw(digits, ROWS, generator(digits, "tasks"), hard_share=0.5)


def greedy() -> Sampling:
    return Sampling(0.0, 0, torch.arange(ROWS), stage=0)


def value(text: str) -> int:
    """Return the value of a problem's text by Python's arithmetic, without its intermediate results."""
    numbers = [str(int(number)) for number in text.partition("~")[0].replace("*", "+").replace("-", "+").split("+")]
    signs = [each for each in text.partition("~")[0] if each in "+-*"]
    return int(eval("".join(a + b for a, b in zip(numbers, [*signs, ""], strict=True))))


@TASKS
@DIGITS
def test_truth_is_what_python_says_and_fits_the_answer(task: Task, digits: int) -> None:
    problems = drawn(task, digits)
    answers = true_answers(problems)
    assert answers.shape == (ROWS, problems.answer_width)
    assert [int(each) for each in digit_strings(answers)] == list(map(VALUES.get(task.name, value), problems.texts()))


@TASKS
@DIGITS
def test_a_true_simplification_is_one_digit_less_and_joins_to_the_answer(task: Task, digits: int) -> None:
    problems = drawn(task, digits)
    while task.num_simplifications(problems, 5) > 0:
        examples = label(problems)
        assert examples.rest.digits == problems.digits - 1
        rest_answers = true_answers(examples.rest)
        assert torch.equal(task.join(examples.digit.unsqueeze(1), rest_answers), examples.answers)
        assert torch.equal(task.rest_answers(examples.answers, examples.rest.answer_width), rest_answers)
        problems = examples.rest


@TASKS
def test_the_example_can_be_typed(task: Task) -> None:
    problems = task.parse([task.example], task.digits_of(task.example))
    assert len(problems) == 1 and problems.digits == task.digits_of(task.example)


@TASKS
def test_sealed_the_truth_is_out_of_reach_by_every_way(task: Task) -> None:
    problems = drawn(task, 3)
    examples = label(problems)
    said = truth_of(problems).simplifications(problems)
    given = {"answer_mistakes": (examples.answers,), "simplification_mistakes": (said,)}
    asked = [name for name in dir(task.truth) if callable(getattr(task.truth, name)) and name[0] != "_"]
    assert {"answers", "simplifications", *given} <= set(asked)
    for name in asked:
        with oracle.sealed(), pytest.raises(oracle.OracleSealed):
            getattr(task.truth, name)(problems, *given.get(name, ()))
    with oracle.sealed(), pytest.raises(oracle.OracleSealed):
        label(problems)


def test_no_truth_can_leave_a_way_around_the_door() -> None:
    with pytest.raises(TypeError, match="around the door"):

        class Leaky(oracle.Truth):
            @staticmethod
            def answers(problems: Batch) -> torch.Tensor:
                return torch.zeros(0)


@TASKS
@ORDERS
@DIGITS
@pytest.mark.parametrize("variant", [0, 2], ids="variant{}".format)
def test_ids_round_trip_and_obey_the_tokens(task: Task, order: str, digits: int, variant: int) -> None:
    problems = drawn(task, digits)
    layout, examples = task.layout(order).shifted(variant), label(problems)
    written = {
        Mode.ANSWER: layout.answer_ids(examples.answers),
        Mode.THINK: layout.simplification_ids(examples.rest, examples.digit),
    }
    assert written[Mode.ANSWER].shape[1] == layout.answer_length(problems.size)
    assert written[Mode.THINK].shape[1] == layout.simplification_length(problems.size)
    for mode, completion in written.items():
        prompt = layout.prompt_ids(problems, mode)
        assert torch.equal(prompt[:, :-1], layout.prefix_ids(problems))
        ids = torch.cat([prompt, completion], dim=1)
        assert torch.equal(tokens.next_ids(ids[:, :-1], tokens.class_of(ids[:, 1:])), ids[:, 1:])
        classes = tokens.class_of(ids[:, prompt.shape[1] - 1 :])
        assert tokens.legal_table()[classes[:, :-1], classes[:, 1:]].all()
        assert all(layout.is_well_formed(completion, mode))
    answers, valid = layout.parse_answers(written[Mode.ANSWER], problems.size)
    assert valid.all() and torch.equal(answers, examples.answers)
    said = layout.parse_simplifications(written[Mode.THINK], problems.size)
    assert said.valid.all() and said.rest.texts() == examples.rest.texts() and torch.equal(said.digit, examples.digit)


@TASKS
@ORDERS
def test_what_is_damaged_does_not_parse(task: Task, order: str) -> None:
    problems = drawn(task, 4)
    layout, examples = task.layout(order), label(problems)
    for completion, parse in (
        (layout.answer_ids(examples.answers), lambda ids: layout.parse_answers(ids, problems.size)[1]),
        (
            layout.simplification_ids(examples.rest, examples.digit),
            lambda ids: layout.parse_simplifications(ids, problems.size).valid,
        ),
    ):
        ids = completion.clone()
        column = torch.arange(ROWS) % ids.shape[1]
        ids[torch.arange(ROWS), column] = layout.pad_id
        assert not parse(ids).any()
        assert int(layout.count_tokens(ids)) == ids.numel() - ROWS


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
    improved = improve(engine, problems, FILTERS["strict"].model_copy(update={"k": 1}), engine.layout("msd"), greedy())
    # Where answers end in the remainder, the fast answer and the vote have the same mistake, and another check fails.
    verdicts = ["rejected" if verdict.startswith("not_") else verdict for verdict in improved.verdicts[:5]]
    assert verdicts == ["thought_through", "rejected", "rejected", "thought_through", "accepted"]
    assert torch.equal(improved.ballot.answers[improved.accepted], truth.answers[improved.accepted])


@TASKS
@DIGITS
def test_checks_follow_from_right_answers_and_from_no_wrong_one(task: Task, digits: int) -> None:
    problems = drawn(task, digits)
    answers = true_answers(problems)
    wrong = answers.clone()
    wrong[:, -1] = (wrong[:, -1] + 1) % 10
    for check in task.checks:
        other, expected = check.pose(problems, answers)
        assert torch.equal(true_answers(other), expected)
        again, other_expected = check.pose(problems, wrong)
        assert not (true_answers(again) == other_expected).all(dim=1).any()
        assert check.needs_answers == (again.texts() != other.texts())


@TASKS
def test_swapped_problems_have_the_same_answers(task: Task) -> None:
    problems = drawn(task, 4)
    assert torch.equal(true_answers(task.swapped(problems)), true_answers(problems))


@TASKS
@pytest.mark.parametrize("digits", [1, 2, 5], ids="digits{}".format)
def test_right_examples_restated_are_right(task: Task, digits: int) -> None:
    """Other problems, each with its own true answer and step."""
    examples = label(drawn(task, digits))
    for restated in task.restated(examples):
        truth = label(restated.problems)
        assert restated.problems.texts() != examples.problems.texts()
        assert torch.equal(restated.answers, truth.answers) and torch.equal(restated.digit, truth.digit)
        assert restated.rest.texts() == truth.rest.texts()


def test_an_answer_that_is_no_sum_has_no_complement_to_learn() -> None:
    task = find_task("addition")
    examples = label(drawn(task, 4))
    examples.answers[3, 0] = 7
    swapped, *complements = task.restated(examples)
    assert len(swapped) == ROWS and [len(each) for each in complements] == [ROWS - 1, ROWS - 1]
    assert all(each.answers.min() >= 0 for each in complements)


@TASKS
@ORDERS
def test_drafts_of_a_true_answer_are_the_true_steps(task: Task, order: str) -> None:
    problems = drawn(task, 4)
    layout, examples = task.layout(order), label(problems)
    written = layout.simplification_ids(examples.rest, examples.digit)
    for answers in (None, examples.answers):
        draft = task.draft(problems, answers, layout)
        assert draft is None or torch.equal(draft, written[:, : draft.shape[1]])


@TASKS
def test_texts_are_read_back(task: Task) -> None:
    problems = drawn(task, 4)
    texts = problems.texts()
    assert task.parse(texts, 4).texts() == texts
    assert {task.size_of(text, 4) for text in texts} == {problems.size}
    with pytest.raises(InputError, match="is not a problem"):
        task.digits_of("12?34")


@TASKS
@pytest.mark.parametrize("name", FILTERS, ids=str)
def test_a_true_model_is_believed(task: Task, name: str) -> None:
    problems, model = drawn(task, 4), Knowing(task)
    improved = improve(model, problems, FILTERS[name].model_copy(update={"k": 3}), model.layout("msd"), greedy())
    assert improved.accepted.all()
    answers, valid, _ = answer_fast(model, problems, model.layout("msd"), greedy())
    truth = label(problems)
    assert valid.all() and torch.equal(answers, truth.answers) and torch.equal(improved.ballot.answers, truth.answers)
    step, _ = simplify(model, problems, model.layout("msd"), greedy())
    assert step.rest.texts() == truth.rest.texts()


@TASKS
def test_lessons_are_true_all_the_way_down(task: Task) -> None:
    problems, model = drawn(task, 4), Knowing(task)
    improved = improve(model, problems, FILTERS["strict"].model_copy(update={"k": 3}), model.layout("msd"), greedy())
    lessons = improved.lessons()
    assert len(lessons) == (1 if task.at_once is None else 1 + task.num_simplifications(problems, 3))
    for lesson in lessons:
        truth = label(lesson.problems)
        assert torch.equal(lesson.answers, truth.answers)
        assert lesson.rest.is_nothing or lesson.rest.texts() == truth.rest.texts()


# A wrong digit that no answer contains changes nothing.
@pytest.mark.parametrize("task", [task for task in ALL if task.name not in IGNORING], ids=lambda task: task.name)
def test_a_mistake_of_one_look_is_rejected(task: Task) -> None:
    """The row's last step but one is told a wrong digit; only one of the two looks passes it."""
    problems = drawn(task, 4)
    wrong = label(label(problems[3:4]).rest).rest.texts()[0]
    model = Knowing(task, lies_about={wrong})
    improved = improve(model, problems, FILTERS["strict"].model_copy(update={"k": 3}), model.layout("msd"), greedy())
    assert improved.verdict[3] != Verdict.ACCEPTED
    assert improved.accepted.sum() == ROWS - 1


@TASKS
def test_examples_survive_the_disk(task: Task, tmp_path: Path) -> None:
    config = run_config({"task": task.name, "supervised": {"max_digits": 3, "examples": 6}})
    sets = kept_examples(config)
    assert len(sets) == sum(task.num_lessons(digits) for digits in range(1, 4))
    tables = [labelled_table(each, task.layout("lsd"), Provenance(0, 0, "oracle", "")) for each in sets]
    path = tmp_path / "examples.parquet"
    write_examples(path, pa.concat_tables(tables))
    read = list(read_examples(path).values())
    key = lambda each: (each.problems.texts(), digit_strings(each.answers), each.rest.texts())  # noqa: E731
    assert sorted(map(key, read)) == sorted(map(key, sets))
    assert {task_of(each.problems).name for each in read} == {task.name}


@TASKS
def test_rows_teach_what_the_policies_write(task: Task) -> None:
    examples = label(drawn(task, 3))
    rows = lay_out(examples, "lsd", replace_gap(), torch.Generator().manual_seed(0))
    layout = task.layout("lsd").shifted(rows.ids[:, 0])
    prefix, thought = layout.prefix_ids(examples.problems), layout.simplification_ids(examples.rest, examples.digit)
    assert torch.equal(rows.ids[:, : prefix.shape[1]], prefix)
    assert torch.equal(rows.targets[:, rows.answer_length :], tokens.class_of(thought))
    assert (rows.answer_length > 0) == task.answers_at_once(examples.problems)


def replace_gap():
    return RunConfig().round.trainer.model_copy(update={"gap_share": 0.0})


TINY = {
    "until": 4,
    "audit_samples": 8,
    "digit_order": "lsd",
    "supervised": {"max_digits": 3, "cycle_steps": 4, "max_cycles": 1, "examples": 8},
    "round": {
        "candidates": 12,
        "cycle_steps": 2,
        "max_cycles": 1,
        "probe": 4,
        "probe_trained": 2,
        "min_agreement": 0.0,
    },
    "filter": {"vote": "off", "checks": []},
}


@TASKS
def test_a_round_end_to_end(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrained, the model agrees on nothing, so a model that knows the answers generates."""
    config = run_config({**TINY, "task": task.name})
    run = RunDir(tmp_path / "run")
    run.root.mkdir()
    run.write_config(config)
    model = Knowing(task)
    monkeypatch.setattr("sector.engine.run.phases.make_sampler", lambda *_: model)
    monkeypatch.setattr("sector.engine.run.phases.find_task", lambda _: task)
    overheard = model.layout
    monkeypatch.setattr(type(task), "layout", lambda _, order: overheard(order))
    events = list(self_play(run, config))
    assert isinstance(events[-1], FrontierMoved)
    line = run.metrics()[-1]
    assert line.accepted == 12 and line.label_error == 0.0 and line.accuracy[4] == 1.0
    assert line.frontier is not None and line.frontier.slow["right"] == line.frontier.fast["right"] == 8
    assert run.round(4).load_checkpoint().config.task == task.name


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
