"""The tokenizer in Hugging Face form: plain text to place-coupled ids and back.

    123+456=       a prompt for the fast policy          0579          its answer
    123+456+1>     a prompt for the slow policy          12+45+1|0     its simplification: the rest, and the digit

A prompt with its completion is a whole sequence, end included: `123+456=579` or `123+456+1>12+45+1|0`. Operands,
answers and rests that are too short are padded with leading zeros. One or two `~` in front stand for the shifted
variants of marks, as shifted checks use them. Text shows numbers most significant digit first, in both digit orders of
models.

Texts of other tasks follow from their form (`language/writing.py`), and problems may be written as users type them:

    8432/7=        the same as 8432/7+0=                 12044
    12*34>         the same as 12*034+00>                00,48,00,048,00:048|03*12

Decoding keeps each digit, leading zeros included, so text -> ids -> text -> ids is stable. Marks that only the model
needs (start, end of a number, no carry-in, end of a sequence, padding) are not shown.

In a chat the last message is the prompt; earlier messages are not read.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from transformers import AddedToken, PreTrainedTokenizer

from sector.engine.errors import InputError
from sector.engine.language import tokens
from sector.engine.language.place_ids import DigitOrder
from sector.engine.models.loss import IGNORED
from sector.engine.models.token_text import TokenText, quoted, token_text
from sector.engine.tasks import DEFAULT

_PAD_NAME = "<pad>"
_LOCAL_NAMES = (*"0123456789", ")", "c0", "c1", "E", "x14", "x15")
_MARK_NAMES = {tokens.START: "<", tokens.ANSWER: "=", tokens.THINK: ">", tokens.PLUS: "+", tokens.JOIN: "&"}


def _mark_name(index: int) -> str:
    """Return the name of a mark: its kind, and its variant unless that is 0."""
    kind, variant = divmod(index + tokens.NUM_LOCAL - tokens.START, tokens.NUM_SHIFTS)
    return _MARK_NAMES[tokens.START + kind * tokens.NUM_SHIFTS] + (str(variant) if variant else "")


def _token_name(index: int) -> str:
    """Return the name of an id: `7@3` is a seven at place 3, `)@3` an end there, `=1` an `=` of variant 1."""
    if index == tokens.PAD_ID:
        return _PAD_NAME
    if index < tokens.NUM_LOCAL:
        return _mark_name(index)
    return f"{_LOCAL_NAMES[index % tokens.NUM_LOCAL]}@{index // tokens.NUM_LOCAL}"


_NAMES = tuple(_token_name(index) for index in range(tokens.VOCAB_SIZE))
_IDS = {name: index for index, name in enumerate(_NAMES)}

_CHAT_TEMPLATE = "{{ messages[-1]['content'] }}"


class SectorTokenizer(PreTrainedTokenizer):
    """Tokenizer of our models. The vocabulary follows from `tokens.py`, so there is no vocabulary file.

    digit_order: order in which the model reads digits, `msd` or `lsd`.
    task: name of the task that the model has learned, whose texts are read and written.
    """

    model_input_names = ["input_ids", "attention_mask"]
    vocab_files_names: dict[str, str] = {}

    def __init__(self, digit_order: str = "msd", task: str = DEFAULT, **kwargs: Any) -> None:
        self.digit_order = DigitOrder(digit_order)
        self.task = task
        kwargs["pad_token"] = _PAD_NAME
        # Prompts are padded on the left, because a completion follows the last token.
        kwargs.setdefault("padding_side", "left")
        # Names of tokens within a text are not tokens.
        kwargs["split_special_tokens"] = True
        kwargs.setdefault("chat_template", _CHAT_TEMPLATE)
        super().__init__(digit_order=str(digit_order), task=task, **kwargs)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return tokens.VOCAB_SIZE

    def get_vocab(self) -> dict[str, int]:
        """Return the id of each token name."""
        return dict(_IDS)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Save no file: tokenizer_config.json holds everything."""
        return ()

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Return the ids of a text unchanged. Raise InputError on a pair of texts, which would be read as one."""
        if token_ids_1:
            raise InputError("a prompt stands alone; write 123+456= or 123+456=579 as one text, not as a pair")
        return token_ids_0

    def truncate_sequences(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        num_tokens_to_remove: int = 0,
        *arguments: object,
        **options: object,
    ) -> tuple[list[int], list[int], list[int]]:
        """Return the ids if no token is to be removed, else raise InputError: a cut problem is another problem."""
        if num_tokens_to_remove > 0:
            raise InputError(
                f"a text of {len(ids)} tokens cannot be cut; raise max_length by {num_tokens_to_remove}, "
                "or write a shorter problem"
            )
        return ids, pair_ids or [], []

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return token names as plain text. Raise InputError on an unknown name."""
        names = [name for name in tokens if name]
        for name in names:
            self._convert_token_to_id(name)
        return self._texts.decode(names)

    def _tokenize(self, text: str, **_: object) -> list[str]:
        """Return the token names of a text. Raise InputError if the text is no prompt of the task."""
        return [_NAMES[index] for index in self._texts.encode(text).tolist()]

    @cached_property
    def _texts(self) -> TokenText:
        """Reader and writer of the texts of the task. Raise InputError if the task is unknown, or has no text form."""
        return token_text(self.task, self.digit_order)

    def _convert_token_to_id(self, token: str) -> int:
        """Return the id of a token name. Raise InputError on an unknown name."""
        if token not in _IDS:
            raise InputError(f"{quoted(token)} is no token; write 7@3 for a seven at place 3, and = or )@3 for marks")
        return _IDS[token]

    def _convert_id_to_token(self, index: int) -> str:
        """Return the token name of an id. Raise InputError on an id out of the vocabulary."""
        if not 0 <= index < tokens.VOCAB_SIZE:
            mend = f"; put {tokens.PAD_ID}, the id of padding, where labels say {IGNORED}" if index == IGNORED else ""
            raise InputError(f"{index} is no token id; ids are 0 to {tokens.VOCAB_SIZE - 1}{mend}")
        return _NAMES[index]

    def add_special_tokens(
        self,
        special_tokens_dict: dict[str, str | AddedToken | Sequence[str | AddedToken]],
        replace_extra_special_tokens: bool = True,
    ) -> int:
        """Return 0, since no token is added. Raise InputError if a token is not in the vocabulary."""
        for value in special_tokens_dict.values():
            _check_known(value)
        return super().add_special_tokens(special_tokens_dict, replace_extra_special_tokens)

    def __setattr__(self, key: str, value: Any) -> None:
        # As `tokenizer.bos_token = "<s>"`: every later decoding would meet a token that is none.
        if key in (*self.SPECIAL_TOKENS_ATTRIBUTES, "extra_special_tokens"):
            _check_known(value)
        super().__setattr__(key, value)

    def _add_tokens(self, new_tokens: list[str] | list[AddedToken], special_tokens: bool = False) -> int:
        """Accept tokens of the vocabulary as special tokens. Raise InputError on any other token."""
        _check_known(new_tokens)
        return super()._add_tokens(new_tokens, special_tokens=special_tokens)


def _check_known(added: str | AddedToken | Sequence[str | AddedToken] | None) -> None:
    """Raise InputError on a token outside of the vocabulary, which takes no more."""
    for token in map(str, [added] if isinstance(added, str | AddedToken) else added or ()):
        if token and token not in _IDS:
            raise InputError(
                f"{quoted(token)} cannot be added: the vocabulary is every token class at every place; "
                "leave the tokenizer as it is"
            )
