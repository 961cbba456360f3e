"""The layout of text: prompts, completions, and texts that do not parse."""

import pytest
import torch
from small_text import character_tokenizer
from torch import Tensor

from sector.engine.language.alphabet import read_alphabet
from sector.engine.language.layout import Mode
from sector.engine.language.operands import Problems, draw_problems
from sector.engine.language.text_layout import TextLayout
from sector.engine.training.supervised import label

TOKENIZER = character_tokenizer(start=True)
LAYOUT = TextLayout(read_alphabet(TOKENIZER, "it", 30, ends=[3]))


def _texts(ids: Tensor) -> list[str]:
    """As the tokenizer shows ids, padding left out."""
    return [TOKENIZER.decode([index for index in row if index != LAYOUT.pad_id]) for row in ids.tolist()]


def _ids(*texts: str, length: int) -> Tensor:
    rows = [[LAYOUT.alphabet.id_of(character) for character in text] for text in texts]
    return torch.tensor([row + [LAYOUT.pad_id] * (length - len(row)) for row in rows])


def test_texts_are_what_people_write() -> None:
    problems = Problems.parse(["123+456", "999+7+1", "800+200"])
    examples = label(problems)
    assert _texts(LAYOUT.prompt_ids(problems, Mode.ANSWER)) == ["<s>123+456=", "<s>999+007+1=", "<s>800+200="]
    assert _texts(LAYOUT.prompt_ids(problems, Mode.THINK)) == ["<s>123+456>", "<s>999+007+1>", "<s>800+200>"]
    assert _texts(LAYOUT.answer_ids(examples.answers)) == ["579\n", "1007\n", "1000\n"]
    simplifications = LAYOUT.simplification_ids(examples.rest, examples.digit)
    assert _texts(simplifications) == ["12+45|9\n", "99+00+1|7\n", "80+20|0\n"]


def test_a_prompt_is_what_the_tokenizer_reads() -> None:
    problems = draw_problems(4, 20, torch.Generator().manual_seed(1))
    for text, row in zip(problems.texts(), LAYOUT.prompt_ids(problems, Mode.ANSWER).tolist(), strict=True):
        assert [index for index in row if index != LAYOUT.pad_id] == TOKENIZER(f"{text}=")["input_ids"]


@pytest.mark.parametrize("digits", [1, 2, 9], ids="digits{}".format)
def test_what_is_written_is_read_back(digits: int) -> None:
    examples = label(draw_problems(digits, 50, torch.Generator().manual_seed(digits), hard_share=0.5))
    ids = LAYOUT.answer_ids(examples.answers)
    answers, valid = LAYOUT.parse_answers(ids, digits)
    assert ids.shape[1] == LAYOUT.answer_length(digits) and bool(valid.all())
    assert torch.equal(answers, examples.answers)
    if digits > 1:
        ids = LAYOUT.simplification_ids(examples.rest, examples.digit)
        said = LAYOUT.parse_simplifications(ids, digits)
        assert ids.shape[1] == LAYOUT.simplification_length(digits) and bool(said.valid.all())
        assert torch.equal(said.digit, examples.digit) and said.rest.texts() == examples.rest.texts()


@pytest.mark.parametrize(
    "text", ["0579\n", "57\n", "5790", "5\n79", "57+\n", "\n", "57999\n"], ids=lambda text: text.replace("\n", "/")
)
def test_answers_that_do_not_parse(text: str) -> None:
    answers, valid = LAYOUT.parse_answers(_ids("579\n", text, length=6), 3)
    assert valid.tolist() == [True, False]
    assert answers.tolist() == [[0, 5, 7, 9], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    "text",
    ["12+45+0|9\n", "12+45|99\n", "12+4|9\n", "12+45+1|9", "12+45+1+9\n", "1245|9\n", "12+45|9+\n", "012+45|9\n"],
    ids=lambda text: text.replace("\n", "/"),
)
def test_simplifications_that_do_not_parse(text: str) -> None:
    said = LAYOUT.parse_simplifications(_ids("12+45+1|9\n", text, length=10), 3)
    assert said.valid.tolist() == [True, False]
    assert said.rest.texts() == ["12+45+1", "00+00"] and said.digit.tolist() == [9, 0]


def test_padding_is_no_token() -> None:
    ids = _ids("12+45|9\n", "12\n", length=10)
    assert int(LAYOUT.count_tokens(ids)) == 11
    assert int(LAYOUT.count_tokens(ids, torch.tensor([False, True]))) == 3


def test_shapes_tell_a_wrong_length_from_nonsense() -> None:
    assert LAYOUT.is_well_formed(_ids("12\n", "12345", "1+2\n", length=8), Mode.ANSWER) == [True, True, False]
    thoughts = _ids("1+2|3\n", "12+3+1|4", "1+2\n", "12\n", length=9)
    assert LAYOUT.is_well_formed(thoughts, Mode.THINK) == [True, True, False, False]


def test_text_has_nothing_to_shift() -> None:
    assert LAYOUT.num_variants == 1 and LAYOUT.shifted(torch.tensor([1, 2])) is LAYOUT
