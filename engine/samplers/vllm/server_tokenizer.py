"""The tokenizer of `vllm serve`, which shows answers without leading zeros: `579` if the model generated `0579`.

The model generates N+1 digits for a problem of N digits. Elsewhere decoding shows all of them, so that text can be
encoded again; a client of a server needs the number.

With the most significant digit first a server sends text while it is generated, so each leading zero is left out at
once. The last digit is recognised by its place, which follows that of the carry-in mark. Of a step a server does not
know which number it sends, so that `,` stands between numbers.

With the least significant digit first the digit that a reader sees first is generated last. So the whole text is sent
at the end, in the usual order and with the marks of the task; an unfinished completion has no text.

Answers to problems without a carry-in mark have all their digits, since they may be several numbers.
"""

from dataclasses import replace
from functools import cached_property

from sector.engine.language.place_ids import DigitOrder
from sector.engine.language.tokens import VOCAB_SIZE
from sector.engine.models.token_text import NumberTokens, TokenText, token_text
from sector.engine.models.tokenizer import SectorTokenizer


class ServedTokenizer(SectorTokenizer):
    """`SectorTokenizer` that leaves out the leading zeros of an answer."""

    @cached_property
    def _texts(self) -> TokenText:
        texts = token_text(self.task, self.digit_order)
        if isinstance(texts, NumberTokens) and self.digit_order is DigitOrder.MSD:
            return replace(texts, joined=",")
        return texts

    @property
    def max_token_id(self) -> int:
        return VOCAB_SIZE - 1

    @property
    def max_chars_per_token(self) -> int:
        """Length of the longest text of one token, `+1`, by which vLLM limits the length of prompts."""
        return 2

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text for a client from token names: all of them, or the end of a prompt and its completion."""
        # Without a mark the window of a server begins within a completion, part of which has already been sent.
        begin = next((index + 1 for index, name in enumerate(tokens) if name.startswith(("=", ">"))), len(tokens))
        prompt, completion = tokens[:begin], tokens[begin:]
        shown = _to_send if self.digit_order is DigitOrder.MSD else _at_its_end
        return super().convert_tokens_to_string(prompt + shown(prompt, completion))


def _to_send(prompt: list[str], completion: list[str]) -> list[str]:
    """Return the names to show of a completion that begins with the most significant digit, finished or not."""
    if not _asks_for_number(prompt):
        return completion
    last = int(prompt[-2].partition("@")[2]) + 1
    first = 0
    while first < len(completion) and completion[first].startswith("0@") and completion[first] != f"0@{last}":
        first += 1
    return completion[first:]


def _at_its_end(prompt: list[str], completion: list[str]) -> list[str]:
    """Return the names to show of a completion that begins with the least significant digit: none before its end."""
    end = next((index for index, name in enumerate(completion) if name.startswith("E")), 0)
    while _asks_for_number(prompt) and end > 1 and completion[end - 1].startswith("0@"):
        end -= 1
    return completion[:end]


def _asks_for_number(prompt: list[str]) -> bool:
    """Return whether a prompt, or its end, asks for an answer that is one number: a carry-in mark precedes `=`."""
    return len(prompt) > 1 and prompt[-1].startswith("=") and prompt[-2].startswith("c")
