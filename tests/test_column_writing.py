"""Text with a letter before each digit: prompts, completions, variants, and texts that do not parse."""

import pytest
import torch
from small_text import character_tokenizer as without_letters
from torch import Tensor

from sector.engine.errors import InputError
from sector.engine.language.alphabet import LETTERS, read_alphabet, with_letters, with_marks
from sector.engine.language.column_writing import ColumnWriting
from sector.engine.language.examples import with_zeros
from sector.engine.language.layout import Mode
from sector.engine.language.number_text import HintedNumberText
from sector.engine.language.operands import Problems, draw_problems
from sector.engine.language.place_ids import DigitOrder
from sector.engine.models.ordinary import character_tokenizer
from sector.engine.tasks import find_task
from sector.engine.tasks.subtraction import Differences
from sector.engine.training.supervised import label

TOKENIZER = character_tokenizer()
DIFFERENCES = with_letters(
    with_marks(read_alphabet(TOKENIZER, "it", 100, ends=[2]), TOKENIZER, "it", "-"), TOKENIZER, "it"
)
ALPHABET = with_letters(read_alphabet(TOKENIZER, "it", 100, ends=[2]), TOKENIZER, "it")
ORDERS = pytest.mark.parametrize("order", list(DigitOrder), ids=lambda order: order.value)


def _sums(order: DigitOrder) -> HintedNumberText[Problems, int]:
    return HintedNumberText(ALPHABET, ColumnWriting(Problems), order)


def _texts(ids: Tensor) -> list[str]:
    return ["".join(TOKENIZER.convert_ids_to_tokens(row)) for row in ids.tolist()]


def test_each_digit_has_the_letter_of_its_place() -> None:
    problems = Problems.parse(["123+456"])
    examples = label(problems)
    for order, prompt, answer, step in (
        (DigitOrder.LSD, "a3b2c1d0+a6b5c4d0+a0", "a9b7c5d0\n", "b2c1d0+b5c4d0+b0|a9\n"),
        (DigitOrder.MSD, "d0c1b2a3+d0c4b5a6+a0", "d0c5b7a9\n", "d0c1b2+d0c4b5+b0|a9\n"),
    ):
        layout = _sums(order)
        assert _texts(layout.prompt_ids(problems, Mode.ANSWER)) == [f"{prompt}="]
        assert _texts(layout.prompt_ids(problems, Mode.THINK)) == [f"{prompt}>"]
        assert _texts(layout.answer_ids(examples.answers)) == [answer]
        assert _texts(layout.simplification_ids(examples.rest, examples.digit)) == [step]
    shifted = _sums(DigitOrder.LSD).shifted(51)
    assert _texts(shifted.prompt_ids(problems, Mode.ANSWER)) == ["Z3a2b1c0+Z6a5b4c0+Z0="]


def test_differences_have_their_own_sign() -> None:
    problems = Differences.parse(["456-123"])
    examples = label(problems)
    layout = HintedNumberText(DIFFERENCES, ColumnWriting(Differences), DigitOrder.LSD)
    assert _texts(layout.prompt_ids(problems, Mode.THINK)) == ["a6b5c4d0-a3b2c1d0-a0>"]
    assert _texts(layout.answer_ids(examples.answers)) == ["a3b3c3d0\n"]
    ids = layout.simplification_ids(examples.rest, examples.digit)
    assert _texts(ids) == ["b5c4d0-b2c1d0-b0|a3\n"]
    read = layout.parse_simplifications(ids, 3)
    assert isinstance(read.rest, Differences) and read.rest.texts() == ["45-12"] and bool(read.valid.all())
    assert layout.is_well_formed(ids, Mode.THINK) == [True]


def test_zeros_in_front_change_nothing_else() -> None:
    for problems in (
        draw_problems(3, 40, torch.Generator().manual_seed(1)),
        find_task("subtraction").draw(3, 40, torch.Generator().manual_seed(2)),
    ):
        written = with_zeros(label(problems), 2)
        expected = label(type(problems).parse(problems.texts(), 5))
        assert written.problems.texts() == expected.problems.texts()
        assert torch.equal(written.answers, expected.answers) and torch.equal(written.digit, expected.digit)
        assert written.rest.texts() == expected.rest.texts() and torch.equal(written.rest.carry, expected.rest.carry)
    single = with_zeros(label(draw_problems(1, 5, torch.Generator().manual_seed(3))), 2)
    assert single.rest.is_nothing and single.answers.shape == (5, 4)


def test_a_prompt_is_what_the_tokenizer_reads() -> None:
    layout = _sums(DigitOrder.LSD).shifted(torch.arange(20))
    problems = draw_problems(4, 20, torch.Generator().manual_seed(1))
    ids = layout.prompt_ids(problems, Mode.ANSWER)
    for text, row in zip(_texts(ids), ids.tolist(), strict=True):
        assert row == TOKENIZER(text)["input_ids"]
    assert layout.num_variants == len(LETTERS) == 52
    assert torch.equal(layout[torch.tensor([3])].prompt_ids(problems[3:4], Mode.ANSWER), ids[3:4])


@ORDERS
@pytest.mark.parametrize("digits", [1, 2, 9, 29], ids="digits{}".format)
def test_what_is_written_is_read_back(order: DigitOrder, digits: int) -> None:
    examples = label(draw_problems(digits, 50, torch.Generator().manual_seed(digits), hard_share=0.5))
    layout = _sums(order).shifted(torch.arange(50))
    ids = layout.answer_ids(examples.answers)
    answers, valid = layout.parse_answers(ids, digits)
    assert ids.shape[1] == layout.answer_length(digits) and bool(valid.all())
    assert torch.equal(answers, examples.answers) and all(layout.is_well_formed(ids, Mode.ANSWER))
    assert not layout.shifted(51).parse_answers(ids, digits)[1].any(), "letters of another variant"
    if digits > 1:
        ids = layout.simplification_ids(examples.rest, examples.digit)
        outputs = layout.parse_simplifications(ids, digits)
        assert ids.shape[1] == layout.simplification_length(digits) and bool(outputs.valid.all())
        assert torch.equal(outputs.digit, examples.digit) and outputs.rest.texts() == examples.rest.texts()
        assert all(layout.is_well_formed(ids, Mode.THINK))
        assert int(layout.count_tokens(ids)) == ids.numel()


@ORDERS
def test_one_wrong_token_does_not_parse(order: DigitOrder) -> None:
    examples = label(draw_problems(3, 40, torch.Generator().manual_seed(3)))
    layout = _sums(order)
    for mode, right in (
        (Mode.ANSWER, layout.answer_ids(examples.answers)),
        (Mode.THINK, layout.simplification_ids(examples.rest, examples.digit)),
    ):
        for column in range(right.shape[1]):
            for wrong_id in (ALPHABET.letters[40], ALPHABET.id_of("+"), ALPHABET.id_of("\n"), ALPHABET.pad):
                wrong = right.clone()
                wrong[:, column] = wrong_id
                changed = (wrong != right).any(dim=1)
                parsed = layout.parse_answers(wrong, 3)[1] if mode is Mode.ANSWER else None
                valid = layout.parse_simplifications(wrong, 3).valid if parsed is None else parsed
                assert torch.equal(valid, ~changed)


def test_a_digit_in_the_place_of_the_carry_does_not_parse() -> None:
    layout = _sums(DigitOrder.LSD)
    ids = torch.tensor([TOKENIZER(f"b2c1d0+b5c4d0+b{carry}|a9\n")["input_ids"] for carry in (0, 1, 2)])
    assert layout.parse_simplifications(ids, 3).valid.tolist() == [True, True, False]


def test_a_tokenizer_without_letters_is_refused() -> None:
    tokenizer = without_letters()
    with pytest.raises(InputError, match="choose text_layout plain"):
        with_letters(read_alphabet(tokenizer, "it", 30, ends=[3]), tokenizer, "it")


def test_the_form_reads_the_problems_that_it_writes() -> None:
    writing, problems = ColumnWriting(Problems), Problems.parse(["123+456", "999+001+1"])
    assert writing.read_problem(writing.problem_numbers(problems)).texts() == problems.texts()
