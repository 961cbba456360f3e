"""Tokenizers: those that write a digit as one token, and those that are refused."""

from collections.abc import Callable

import pytest
from small_text import MARKS, character_tokenizer, merging_tokenizer
from transformers import PreTrainedTokenizerFast

from sector.engine.errors import InputError
from sector.engine.language.alphabet import CHARACTERS, read_alphabet, with_marks


@pytest.mark.parametrize("start", [False, True], ids=["bare", "with_start"])
def test_characters_are_what_the_tokenizer_says(start: bool) -> None:
    tokenizer = character_tokenizer(start=start)
    alphabet = read_alphabet(tokenizer, "it", 30, ends=[3])
    text = "12+05+1>1+0+1|8\n"
    assert [*alphabet.lead, *map(alphabet.id_of, text)] == tokenizer(text)["input_ids"]
    assert alphabet.lead == ((2,) if start else ())
    assert len(set(alphabet.ids)) == len(CHARACTERS) and alphabet.pad == 0
    assert alphabet.ends == (alphabet.id_of("\n"), 3, 0) and alphabet.size == 30


def test_padding_where_the_tokenizer_has_none_is_nothing_of_ours() -> None:
    tokenizer = character_tokenizer(start=True)
    tokenizer.pad_token = None
    assert read_alphabet(tokenizer, "it", 30).pad == 0
    # A mark that every text begins with cannot be what fills it up.
    tokenizer.pad_token = tokenizer.bos_token
    assert read_alphabet(tokenizer, "it", 30).pad == 0


def _numbers() -> PreTrainedTokenizerFast:
    return merging_tokenizer()


def _marks_with_digits() -> PreTrainedTokenizerFast:
    return merging_tokenizer(pattern=r".{1,9}", text="=5=5")


def _newlines_with_digits() -> PreTrainedTokenizerFast:
    return merging_tokenizer(pattern=r"[\s\S]{1,9}", text="7\n 7\n")


def _no_bar() -> PreTrainedTokenizerFast:
    return character_tokenizer(CHARACTERS.replace("|", ""))


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (_numbers, r"reads '\d\d+' as one token"),
        (_marks_with_digits, r"reads '=5' as one token"),
        (_newlines_with_digits, r"reads '7\\n' as one token"),
        (_no_bar, r"has no token for '\|'"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_tokenizers_that_are_refused(tokenizer: Callable[[], PreTrainedTokenizerFast], reason: str) -> None:
    with pytest.raises(InputError, match=rf"^the tokenizer of it {reason}; choose a model whose tokenizer splits"):
        read_alphabet(tokenizer(), "it", 300)


def _words() -> PreTrainedTokenizerFast:
    """Words are one token, as in tokenizers of language models."""
    return merging_tokenizer(pattern=r"\d|[a-z]+|[^\da-z]", text="mod mod")


@pytest.mark.parametrize("start", [False, True], ids=["bare", "with_start"])
def test_marks_of_a_task_are_what_the_tokenizer_says(start: bool) -> None:
    tokenizer = character_tokenizer(MARKS, start)
    alphabet = with_marks(read_alphabet(tokenizer, "it", 60), tokenizer, "it", ["*", "mod", ":"])
    text = ["1", "*", "2", "mod", "3", ":", "5"]
    written = [*alphabet.lead, *(index for mark in text for index in alphabet.ids_of(mark))]
    assert written == tokenizer("".join(text))["input_ids"]
    assert [len(alphabet.ids_of(mark)) for mark in ("*", "mod", ":", "+1")] == [1, 3, 1, 2]


def test_a_mark_of_several_characters_may_be_one_token() -> None:
    tokenizer = _words()
    alphabet = with_marks(read_alphabet(tokenizer, "it", 300), tokenizer, "it", ["mod"])
    assert len(alphabet.ids_of("mod")) == 1
    written = [index for part in ("7", "mod", "3", "=") for index in alphabet.ids_of(part)]
    assert written == tokenizer("7mod3=")["input_ids"]


def _signs_with_digits() -> PreTrainedTokenizerFast:
    return merging_tokenizer(pattern=r"\d?[*]\d?|[\s\S]", text="5*5 5* *5 5*5")


def _no_star() -> PreTrainedTokenizerFast:
    return character_tokenizer(MARKS.replace("*", ""))


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [(_signs_with_digits, r"reads '\*' and a digit beside it as one token"), (_no_star, r"has no token for '\*'")],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_marks_that_are_refused(tokenizer: Callable[[], PreTrainedTokenizerFast], reason: str) -> None:
    made = tokenizer()
    with pytest.raises(InputError, match=rf"^the tokenizer of it {reason}; choose another model"):
        with_marks(read_alphabet(made, "it", 300), made, "it", ["*"])
