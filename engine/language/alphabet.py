"""The characters of written problems as ids of a tokenizer, one id a character.

Text models read numbers digit by digit here. A tokenizer is refused if it has one token for several digits, merges
digits with marks, or lacks a token for a mark.
"""

import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sector.engine.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHARACTERS = "0123456789+=>|\n"
# Marks of places (`column_writing.py`).
LETTERS = string.ascii_letters

_MEND = "choose a model whose tokenizer splits numbers into digits, as those of Qwen, Gemma and SmolLM2 do"


@dataclass(frozen=True, slots=True)
class Alphabet:
    """Ids of a text model's vocabulary that our problems use.

    ids: one id for each of CHARACTERS, in their order.
    lead: ids in front of every text, such as the start-of-text token.
    pad: the padding id, different from all ids above.
    ends: ids that end a completion, the newline first.
    size: size of the vocabulary.
    letters: ids of LETTERS in their order; empty if the layout needs none.
    marks: other marks of a task with the ids of each; empty if it has none.
    """

    ids: tuple[int, ...]
    lead: tuple[int, ...]
    pad: int
    ends: tuple[int, ...]
    size: int
    letters: tuple[int, ...] = ()
    marks: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def id_of(self, character: str) -> int:
        """Return the id of one of CHARACTERS."""
        return self.ids[CHARACTERS.index(character)]

    def ids_of(self, text: str) -> tuple[int, ...]:
        """Return the ids of a mark of the task, or of a text of CHARACTERS."""
        known = dict(self.marks).get(text)
        return tuple(map(self.id_of, text)) if known is None else known


def read_alphabet(tokenizer: "PreTrainedTokenizerBase", name: str, size: int, ends: Sequence[int] = ()) -> Alphabet:
    """Return the alphabet of a tokenizer that reads our texts character by character.

    name: the model's name in messages.
    size: size of the model's vocabulary.
    ends: ids that end a text of the model, besides the newline.

    Raise InputError, naming the characters, if the tokenizer does not keep them apart.
    """
    id_by_character: dict[str, int] = {}
    leads = set()
    for text in _texts():
        ids = _ids(tokenizer, text, special=False)
        lead_length = len(ids) - len(text)
        if lead_length < 0:
            raise InputError(f"the tokenizer of {name} reads {_merged(tokenizer, ids)!r} as one token; {_MEND}")
        pairs = zip(text, ids[lead_length:], strict=True)
        if any(id_by_character.setdefault(character, index) != index for character, index in pairs):
            raise InputError(f"the tokenizer of {name} does not read {text!r} character by character; {_MEND}")
        leads.add(tuple(ids[:lead_length]))
    unknown = [character for character in CHARACTERS if id_by_character[character] == tokenizer.unk_token_id]
    if unknown or len(set(id_by_character.values())) < len(CHARACTERS):
        raise InputError(f"the tokenizer of {name} has no token for {(unknown or ['a mark'])[0]!r}; {_MEND}")
    if len(leads) > 1:
        raise InputError(f"the tokenizer of {name} reads the beginning of a number as part of a word; {_MEND}")
    character_ids = tuple(id_by_character[character] for character in CHARACTERS)
    lead = (*_start(tokenizer), *leads.pop())
    pad = _pad(tokenizer, {*character_ids, *lead})
    return Alphabet(character_ids, lead, pad, tuple(dict.fromkeys([character_ids[-1], *ends, pad])), size)


def with_letters(alphabet: Alphabet, tokenizer: "PreTrainedTokenizerBase", name: str) -> Alphabet:
    """Return an alphabet with the ids of LETTERS. Raise InputError if the tokenizer has no token of its own for one."""
    letters = []
    for letter in LETTERS:
        text = f"{letter}1{letter}2+{letter}3"
        ids = _ids(tokenizer, text, special=False)[-len(text) :]
        one, two, plus, three = (alphabet.id_of(character) for character in "12+3")
        if len(ids) < len(text) or ids != [ids[0], one, ids[0], two, plus, ids[0], three]:
            raise InputError(
                f"the tokenizer of {name} does not read {text!r} character by character; choose text_layout plain"
            )
        letters.append(ids[0])
    if len({*letters, *alphabet.ids, tokenizer.unk_token_id}) < len(letters) + len(alphabet.ids):
        raise InputError(f"the tokenizer of {name} has no token for each letter; choose text_layout plain")
    return replace(alphabet, letters=tuple(letters))


def with_marks(alphabet: Alphabet, tokenizer: "PreTrainedTokenizerBase", name: str, marks: Iterable[str]) -> Alphabet:
    """Return an alphabet with the ids of the marks of a task, which stand between digits.

    A mark of several characters may have any number of tokens, such as one for `mod`.

    Raise InputError, naming the mark, if the tokenizer does not keep it and the digits beside it apart.
    """
    ids_by_mark = {mark: _mark_ids(alphabet, tokenizer, name, mark) for mark in marks}
    known = {alphabet.ids_of(character): character for character in CHARACTERS}
    for mark, ids in ids_by_mark.items():
        if (other := known.setdefault(ids, mark)) != mark:
            raise InputError(f"the tokenizer of {name} reads {mark!r} as {other!r}; choose another model")
    return replace(alphabet, marks=tuple(ids_by_mark.items()))


def _mark_ids(alphabet: Alphabet, tokenizer: "PreTrainedTokenizerBase", name: str, mark: str) -> tuple[int, ...]:
    """Return the ids of a mark between any two digits. Raise InputError as `with_marks`."""
    readings = set()
    for digit in "0123456789":
        ids, one = _ids(tokenizer, f"{digit}{mark}{digit}", special=False), alphabet.id_of(digit)
        if one not in ids or ids[-1] != one or ids.index(one) == len(ids) - 1:
            raise InputError(
                f"the tokenizer of {name} reads {mark!r} and a digit beside it as one token; choose another model"
            )
        readings.add(tuple(ids[ids.index(one) + 1 : -1]))
    reading = readings.pop()
    is_one_text = not readings and 0 < len(reading) <= len(mark)
    if not is_one_text or {*alphabet.ids[:10], *alphabet.ends, tokenizer.unk_token_id} & {*reading}:
        raise InputError(f"the tokenizer of {name} has no token for {mark!r}; choose another model")
    return reading


def _texts() -> Iterator[str]:
    """Yield texts with every pair of characters and every three digits that stand side by side in our texts."""
    for digit in "0123456789":
        yield f"{digit}+{digit}={digit}\n"
        yield f"{digit}+{digit}>{digit}+{digit}|{digit}\n"
        yield f"{digit}+{digit}+1>{digit}+{digit}+1|{digit}\n"
    numbers = "".join(f"{number:03d}" for number in range(1000))
    yield f"{numbers}+{numbers}={numbers}\n"


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str, special: bool) -> list[int]:
    """Return the ids of a text, with the special tokens around it if `special`."""
    ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return ids


def _merged(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    """Return the first token that stands for more than one character."""
    pieces = (str(tokenizer.decode([index])) for index in ids)
    return next((piece for piece in pieces if len(piece.strip(" ")) > 1), "several characters")


def _start(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the special tokens that the tokenizer puts in front of a text."""
    plain, full = _ids(tokenizer, "1+1=", special=False), _ids(tokenizer, "1+1=", special=True)
    starts = [start for start in range(len(full)) if full[start : start + len(plain)] == plain]
    return full[: starts[0]] if starts else []


def _pad(tokenizer: "PreTrainedTokenizerBase", used: set[int]) -> int:
    """Return the tokenizer's padding id, or the smallest unused id if it has none of its own."""
    pad = tokenizer.pad_token_id
    if isinstance(pad, int) and pad not in used:
        return pad
    return next(index for index in range(len(used) + 1) if index not in used)
