"""The tokenizer of `vllm serve`, which shows answers without leading zeros: `579` if the model generated `0579`.

The model generates N+1 digits for a problem of N digits. Elsewhere decoding shows all of them, so that text can be
encoded again; a client of a server needs the number. A server sends text while it is generated, so each leading zero is
left out at once. The last digit is recognised by its place, which follows that of the carry-in mark.

Answers to problems without a carry-in mark have all their digits, since they may be several numbers. Of a step a server
does not know which number it sends, so that `,` stands between numbers.
"""

from dataclasses import replace
from functools import cached_property
from typing import Any

from sector.engine.errors import InputError
from sector.engine.language.place_ids import DigitOrder
from sector.engine.language.tokens import VOCAB_SIZE
from sector.engine.models.token_text import NumberTokens, TokenText, token_text
from sector.engine.models.tokenizer import SectorTokenizer


class ServedTokenizer(SectorTokenizer):
    """`SectorTokenizer` that leaves out the leading zeros of an answer.

    Raises InputError for the digit order with the least significant digit first, where leading zeros come last.
    """

    def __init__(self, digit_order: str = "msd", **kwargs: Any) -> None:
        if DigitOrder(digit_order) is DigitOrder.LSD:
            raise InputError("a model that writes the last digit first has no text to send; use `sector solve`")
        super().__init__(digit_order=digit_order, **kwargs)

    @cached_property
    def _texts(self) -> TokenText:
        texts = token_text(self.task, self.digit_order)
        return replace(texts, joined=",") if isinstance(texts, NumberTokens) else texts

    @property
    def max_token_id(self) -> int:
        return VOCAB_SIZE - 1

    @property
    def max_chars_per_token(self) -> int:
        """Length of the longest text of one token, `+1`, by which vLLM limits the length of prompts."""
        return 2

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text for a client from token names: all of them, or the end of a prompt and its completion."""
        answer = next((index + 1 for index, name in enumerate(tokens) if name.startswith("=")), None)
        # Without `=` and the carry-in mark before it the place of the last digit is unknown. Then the first digit of
        # the answer has already been sent.
        if not answer or answer < 2 or tokens[answer - 2][0] != "c":
            return super().convert_tokens_to_string(tokens)
        last = int(tokens[answer - 2].partition("@")[2]) + 1
        first = answer
        while first < len(tokens) and tokens[first].startswith("0@") and tokens[first] != f"0@{last}":
            first += 1
        return super().convert_tokens_to_string(tokens[:answer] + tokens[first:])
