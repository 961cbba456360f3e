"""The tokenizer of `vllm serve`: answers as people write them, `579` where the model wrote `0579`.

The model writes an answer to a problem of N digits in N+1 digits. Everywhere else decoding shows them all, so that text
can be read back; a client of a server wants the number. Text is sent while it is written, so a zero that leads is left
out when it is written, and the last digit is known by its place: the one after that of the carry-in mark.
"""

from typing import Any

from sector.engine.errors import InputError
from sector.engine.language.place_layout import DigitOrder
from sector.engine.language.tokens import VOCAB_SIZE
from sector.engine.models.tokenizer import SectorTokenizer


class ServedTokenizer(SectorTokenizer):
    """`SectorTokenizer`, but decoding leaves out zeros that lead an answer.

    InputError on a digit order in which the first digit of an answer is written last.
    """

    def __init__(self, digit_order: str = "msd", **kwargs: Any) -> None:
        if DigitOrder(digit_order) is DigitOrder.LSD:
            raise InputError("a model that writes the last digit first has no text to send; use `sector solve`")
        super().__init__(digit_order=digit_order, **kwargs)

    @property
    def max_token_id(self) -> int:
        return VOCAB_SIZE - 1

    @property
    def max_chars_per_token(self) -> int:
        """What vLLM refuses endless prompts by. `+1` is the longest piece of text that is one token."""
        return 2

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Token names, or the last few of a prompt and what follows, -> the text a client sees."""
        answer = next((index + 1 for index, name in enumerate(tokens) if name.startswith("=")), None)
        # Too few tokens of the prompt to know the length of its answer: the answer's first digit has been shown.
        if not answer or answer < 2:
            return super().convert_tokens_to_string(tokens)
        last = int(tokens[answer - 2].partition("@")[2]) + 1
        first = answer
        while first < len(tokens) and tokens[first].startswith("0@") and tokens[first] != f"0@{last}":
            first += 1
        return super().convert_tokens_to_string(tokens[:answer] + tokens[first:])
