"""The characters that problems are written in, as ids of a tokenizer: one id each, wherever they stand.

Models read numbers digit by digit here, so a tokenizer that has tokens for whole numbers is of no use: it is refused,
and so is one that merges digits with marks, or has no token for a mark.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from sector.engine.errors import InputError

CHARACTERS = "0123456789+=>|\n"

_MEND = "choose a model whose tokenizer splits numbers into digits, as those of Qwen, Gemma and SmolLM2 do"


@dataclass(frozen=True, slots=True)
class Alphabet:
    """What ids mean to a model of text.

    ids: of each of CHARACTERS, in their order. lead: ids in front of any text, such as the mark of its beginning.
    pad: an id that is none of these. ends: ids that end a completion, the newline first. size: of the vocabulary.
    """

    ids: tuple[int, ...]
    lead: tuple[int, ...]
    pad: int
    ends: tuple[int, ...]
    size: int

    def id_of(self, character: str) -> int:
        """The id of one of CHARACTERS."""
        return self.ids[CHARACTERS.index(character)]


def read_alphabet(tokenizer: PreTrainedTokenizerBase, name: str, size: int, ends: Sequence[int] = ()) -> Alphabet:
    """The alphabet of a tokenizer, if it reads all that can stand side by side in our texts character by character.

    name: what to call it in messages. size: of the model's vocabulary. ends: what ends a text of the model besides a
    newline. InputError says which characters it does not keep apart.
    """
    found: dict[str, int] = {}
    leads = set()
    for text in _texts():
        ids = _ids(tokenizer, text, special=False)
        split = len(ids) - len(text)
        if split < 0:
            raise InputError(f"the tokenizer of {name} reads {_merged(tokenizer, ids)!r} as one token; {_MEND}")
        if any(found.setdefault(character, index) != index for character, index in zip(text, ids[split:], strict=True)):
            raise InputError(f"the tokenizer of {name} does not read {text!r} character by character; {_MEND}")
        leads.add(tuple(ids[:split]))
    unknown = [character for character in CHARACTERS if found[character] == tokenizer.unk_token_id]
    if unknown or len(set(found.values())) < len(CHARACTERS):
        raise InputError(f"the tokenizer of {name} has no token for {(unknown or ['a mark'])[0]!r}; {_MEND}")
    if len(leads) > 1:
        raise InputError(f"the tokenizer of {name} reads the beginning of a number as part of a word; {_MEND}")
    own = tuple(found[character] for character in CHARACTERS)
    lead = (*_start(tokenizer), *leads.pop())
    pad = _pad(tokenizer, {*own, *lead})
    return Alphabet(own, lead, pad, tuple(dict.fromkeys([own[-1], *ends, pad])), size)


def _texts() -> Iterator[str]:
    """Every pair of characters, and every three digits, that our prompts and completions have side by side."""
    for digit in "0123456789":
        yield f"{digit}+{digit}={digit}\n"
        yield f"{digit}+{digit}>{digit}+{digit}|{digit}\n"
        yield f"{digit}+{digit}+1>{digit}+{digit}+1|{digit}\n"
    numbers = "".join(f"{number:03d}" for number in range(1000))
    yield f"{numbers}+{numbers}={numbers}\n"


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, special: bool) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return ids


def _merged(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The first token that stands for more than one character."""
    pieces = (str(tokenizer.decode([index])) for index in ids)
    return next((piece for piece in pieces if len(piece.strip(" ")) > 1), "several characters")


def _start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer puts in front of a text."""
    plain, full = _ids(tokenizer, "1+1=", special=False), _ids(tokenizer, "1+1=", special=True)
    starts = [start for start in range(len(full)) if full[start : start + len(plain)] == plain]
    return full[: starts[0]] if starts else []


def _pad(tokenizer: PreTrainedTokenizerBase, used: set[int]) -> int:
    """The tokenizer's own padding, or else the first id that nothing of ours has."""
    own = tokenizer.pad_token_id
    if isinstance(own, int) and own not in used:
        return own
    return next(index for index in range(len(used) + 1) if index not in used)
