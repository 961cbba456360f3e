"""Texts that follow from the form of a task: prompts, completions, and texts that do not parse."""

from typing import Any

import pytest
import torch
from declared_tasks import DECLARATIONS
from small_text import MARKS, character_tokenizer
from torch import Tensor

from sector.engine.errors import InputError
from sector.engine.language.alphabet import read_alphabet, with_marks
from sector.engine.language.layout import Layout, Mode
from sector.engine.models.ordinary import new_text_model
from sector.engine.tasks import TASK_DOOR, built_in, find_task
from sector.engine.tasks.declared import as_task
from sector.engine.tasks.task import Task
from sector.engine.training.supervised import label

TOKENIZER = character_tokenizer(MARKS, start=True)
PLAIN = read_alphabet(TOKENIZER, "it", len(TOKENIZER), ends=[3])
LETTERED = new_text_model("text-tiny", 0, {"hidden_size": 32})
DECLARED = [as_task(declaration()) for declaration in DECLARATIONS]
ALL = [*map(find_task, built_in()), *DECLARED]


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TASK_DOOR, "things", {task.name: task for task in DECLARED})


def _layout(task: Task, order: str = "msd") -> Layout:
    return task.text_layout(with_marks(PLAIN, TOKENIZER, "it", task.text_marks), order)


def _texts(ids: Tensor) -> list[str]:
    """As the tokenizer shows ids, padding left out."""
    return [TOKENIZER.decode([index for index in row if index != PLAIN.pad]) for row in ids.tolist()]


def _ids(task: Task, *texts: str) -> Tensor:
    """As the tokenizer reads texts, without its start."""
    rows = [TOKENIZER(text)["input_ids"][1:] for text in texts]
    length = max(map(len, rows))
    return torch.tensor([row + [PLAIN.pad] * (length - len(row)) for row in rows])


TEXTS: list[Any] = [
    pytest.param("subtraction", "msd", "452-129", ["452-129=", "323\n", "45-12-1|3\n"], id="subtraction"),
    pytest.param("subtraction", "msd", "452-9-1", ["452-009-1=", "442\n", "45-00-1|2\n"], id="borrow"),
    pytest.param(
        "multiplication", "msd", "12*34", ["12*034+00=", "0408\n", "00,48,00,048,00:048|03*12\n"], id="product"
    ),
    pytest.param(
        "multiplication", "lsd", "12*34", ["21*034+00=", "8040\n", "00,84,00,840,00:840|03*21\n"], id="backwards"
    ),
    pytest.param("quotients", "msd", "8432/7", ["8432/7+0=", "12044\n", "432/7+1|1\n"], id="quotients"),
    pytest.param("modulo", "msd", "8432mod7", ["8432mod7+0=", "4\n", "432mod7+1|1\n"], id="modulo"),
    pytest.param("parity", "msd", "1234", ["1234;0=", "0\n", "123;0|0\n"], id="parity"),
    pytest.param("sorting", "msd", "3142", ["3142=", "1234\n", "132|4\n"], id="sorting"),
]


@pytest.mark.parametrize(("name", "order", "typed", "shown"), TEXTS)
def test_texts_follow_from_the_form(name: str, order: str, typed: str, shown: list[str]) -> None:
    task = find_task(name)
    layout, examples = _layout(task, order), label(task.parse([typed]))
    prompt, answer, step = shown
    assert _texts(layout.prompt_ids(examples.problems, Mode.ANSWER)) == [f"<s>{prompt}"]
    assert _texts(layout.prompt_ids(examples.problems, Mode.THINK)) == [f"<s>{prompt[:-1]}>"]
    assert _texts(layout.answer_ids(examples.answers)) == [answer]
    assert _texts(layout.simplification_ids(examples.rest, examples.digit)) == [step]
    assert layout.num_variants == 1 and layout.shifted(torch.tensor([1])) is layout


HINTED: list[Any] = [
    pytest.param("sums", "msd", "123+456", ["c1b2a3+c4b5a6+a0=", "d0c5b7a9\n", "c1b2+c4b5+b0|a9\n"], id="last"),
    pytest.param("sums", "lsd", "123+456", ["a3b2c1+a6b5c4+a0=", "a9b7c5d0\n", "b2c1+b5c4+b0|a9\n"], id="backwards"),
    pytest.param("quotients", "msd", "8432/7", ["d8c4b3a2/e7+e0=", "d1c2b0a4Z4\n", "c4b3a2/d7+d1|d1\n"], id="first"),
    pytest.param("sorting", "msd", "3142", ["d3c1b4a2=", "d1c2b3a4\n", "d1c3b2|a4\n"], id="sorting"),
    pytest.param(
        "multiplication",
        "lsd",
        "12*34",
        ["a2b1*c0b3a4+a0b0=", "a8b0c4d0\n", "a0b0,a8b4,a0b0,a8b4c0,a0b0:a8b4c0|b0a3*a2b1\n"],
        id="product",
    ),
]


@pytest.mark.parametrize(("name", "order", "typed", "shown"), HINTED)
def test_hints_mark_the_places_of_digits(name: str, order: str, typed: str, shown: list[str]) -> None:
    task = find_task(name)
    alphabet = LETTERED.alphabet_with(task.text_marks, letters=True)
    layout, examples = task.hint_layout(alphabet, order), label(task.parse([typed]))
    prompts = [layout.prompt_ids(examples.problems, mode) for mode in (Mode.ANSWER, Mode.THINK)]
    assert [LETTERED.tokenizer.decode(ids[0]) for ids in prompts] == [shown[0], f"{shown[0][:-1]}>"]
    completions = layout.answer_ids(examples.answers), layout.simplification_ids(examples.rest, examples.digit)
    assert [LETTERED.tokenizer.decode(ids[0]) for ids in completions] == shown[1:]
    assert layout.is_well_formed(completions[0], Mode.ANSWER) == layout.is_well_formed(completions[1], Mode.THINK)
    # Another letter to begin with, for each row its own.
    shifted = layout.shifted(torch.tensor([51]))
    assert not torch.equal(shifted.answer_ids(examples.answers), completions[0])
    assert not shifted.parse_answers(completions[0], examples.problems.size)[1].any()


def test_marks_with_letters_leave_none_for_hints() -> None:
    task = find_task("modulo")
    assert not task.has_hints
    with pytest.raises(InputError, match="modulo cannot have hints"):
        task.hint_layout(LETTERED.alphabet_with(task.text_marks, letters=True), "msd")


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
def test_the_characters_that_a_tokenizer_needs(task: Task) -> None:
    assert set("".join(task.text_marks)) <= set(MARKS)
    assert task.has_text and _layout(task)


@pytest.mark.parametrize("order", ["msd", "lsd"])
def test_wrong_texts_do_not_parse(order: str) -> None:
    task = find_task("quotients")
    layout = _layout(task, order)
    right = "234/7+1|1\n" if order == "msd" else "432/7+1|1\n"
    wrong = ["234/7+1|12", "34/7+1|1\n", "234/7+1+1\n", "234/7|1\n", "234/7+1|1", "2a4/7+1|1\n", "234-7+1|1\n"]
    steps = layout.parse_simplifications(_ids(task, right, *wrong), 4)
    assert steps.valid.tolist() == [True] + [False] * len(wrong)
    assert steps.rest.texts()[:2] == ["234/7+1", "000/0+0"] and steps.digit.tolist()[:2] == [1, 0]
    answers, valid = layout.parse_answers(_ids(task, "12044\n", "1204\n", "120444\n", "12+44\n"), 4)
    assert valid.tolist() == [True, False, False, False] and answers[1].tolist() == [0] * 5


def test_shapes_tell_a_wrong_length_from_nonsense() -> None:
    task = find_task("modulo")
    steps = _ids(task, "432mod7+1|1\n", "2mod7+1|", "2mod7+1|11", "2mod7|1\n", "2mad7+1|1\n", "2*7+1|1\n")
    assert _layout(task).is_well_formed(steps, Mode.THINK) == [True, True, True, False, False, False]
    assert _layout(task).is_well_formed(_ids(task, "4\n", "44", "4+4"), Mode.ANSWER) == [True, True, False]


def test_differences_are_no_sums() -> None:
    layout = _layout(find_task("subtraction"))
    texts = _ids(find_task("subtraction"), "45-12-1|3\n", "45+12+1|3\n", "45-12+1|3\n")
    steps = layout.parse_simplifications(texts, 3)
    assert steps.valid.tolist() == [True, False, False] and steps.rest.texts()[0] == "45-12-1"
    assert layout.is_well_formed(texts, Mode.THINK) == [True, False, False]


def test_a_task_without_a_form_has_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    task = find_task("multiplication")
    monkeypatch.setattr(type(task), "writing", None)
    assert not task.has_text
    with pytest.raises(InputError, match="multiplication cannot be written as text"):
        task.text_layout(PLAIN)
