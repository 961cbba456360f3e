"""Layout of problems for text models: plain text, one token a character.

    123+456=     579 and a newline               the fast answer: N digits, or N+1 if the sum has one more
    123+456+1>   12+45+1|0 and a newline         the simplification: the rest, with `+1` if it has a carry-in

Numbers are padded with zeros to the digits of the problem. A prompt without a carry-in is two tokens shorter; it begins
with two pads, which engines leave out. A shorter completion ends in pads. Text has no places to shift, so the plain
variant is the only one.

In the shape descriptions B is the batch, N the digits per operand, L the tokens that lead any text.
"""

import re
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from sector.engine.language.alphabet import CHARACTERS, Alphabet
from sector.engine.language.layout import Mode, Simplifications
from sector.engine.language.operands import Problems

_MODES = {Mode.ANSWER: "=", Mode.THINK: ">"}
# Completions may have been cut off, so ends are optional.
_SHAPES = {
    Mode.ANSWER: re.compile(r"\d+\n?"),
    Mode.THINK: re.compile(r"\d+\+\d+(\+1)?\|\d?\n?"),
}


@dataclass(frozen=True, slots=True)
class TextLayout:
    """Layout of problems and completions as ids of an alphabet."""

    alphabet: Alphabet

    @property
    def pad_id(self) -> int:
        """Id behind the end of a completion."""
        return self.alphabet.pad

    @property
    def num_variants(self) -> int:
        """Number of variants; variant 0 is the plain one."""
        return 1

    def shifted(self, variant: int | Tensor) -> Self:
        """Return the layout itself: text has no places to shift."""
        return self

    def beginning_length(self, digits: int) -> int:
        """Return 0: pads may move all tokens of a prefix."""
        return 0

    def answer_length(self, digits: int) -> int:
        """Return the tokens of a fast answer, newline included."""
        return digits + 2

    def simplification_length(self, digits: int) -> int:
        """Return the tokens of a simplification, newline included."""
        return 2 * digits + 4

    def prefix_ids(self, problems: Problems) -> Tensor:
        """Return the `[B, L+2N+3]` ids of `a+b+1`, or of two pads and `a+b`."""
        lead = problems.a.new_tensor(self.alphabet.lead).expand(len(problems), -1)
        ids = torch.cat([lead, self._sum(problems)], dim=1)
        marked = torch.cat([ids, self._marks("+1", ids)], dim=1)
        # The pads stand in front, so that all prompts end at the same token.
        plain = torch.cat([self._pads(ids, 2), ids], dim=1)
        return torch.where(problems.carry.unsqueeze(1) == 1, marked, plain)

    def mark_ids(self, mode: Mode, count: int, device: torch.device | None = None) -> Tensor:
        """Return the `[B, 1]` ids of `=` or `>`."""
        return torch.full((count, 1), self.alphabet.id_of(_MODES[mode]), device=device)

    def prompt_ids(self, problems: Problems, mode: Mode) -> Tensor:
        """Return the `[B, L+2N+4]` ids of a whole prompt, with pads in front of shorter ones."""
        return torch.cat([self.prefix_ids(problems), self.mark_ids(mode, len(problems), problems.a.device)], dim=1)

    def answer_ids(self, answers: Tensor) -> Tensor:
        """Return the `[B, N+2]` ids that follow `=` for the answers `[B, N+1]`; a leading zero is left out."""
        full = torch.cat([self._digits(answers), self._marks("\n", answers)], dim=1)
        return torch.where(answers[:, :1] == 0, torch.cat([full[:, 1:], self._pads(answers, 1)], dim=1), full)

    def simplification_ids(self, rest: Problems, digit: Tensor) -> Tensor:
        """Return the `[B, 2N+4]` ids that follow `>` for the remaining problems (N-1 digits) and the digits `[B]`."""
        ids = self._sum(rest)
        end = torch.cat([self._marks("|", ids), self._digits(digit.unsqueeze(1)), self._marks("\n", ids)], dim=1)
        marked = torch.cat([ids, self._marks("+1", ids), end], dim=1)
        plain = torch.cat([ids, end, self._pads(ids, 2)], dim=1)
        return torch.where(rest.carry.unsqueeze(1) == 1, marked, plain)

    def parse_answers(self, ids: Tensor, digits: int) -> tuple[Tensor, Tensor]:
        """Parse ids `[B, >=N+2]` as answers `[B, N+1]`; also return which rows parse `[B]`. Other rows hold zeros."""
        ids = ids[:, : self.answer_length(digits)]
        values = self._values(ids[:, : digits + 1])
        short = ids[:, digits : digits + 1] == self.alphabet.id_of("\n")
        answers = torch.where(short, values.roll(1, dims=1), values)
        answers[:, :1] = answers[:, :1].masked_fill(short, 0)
        valid = (self.answer_ids(answers) == ids).all(dim=1)
        return answers * valid.unsqueeze(1), valid

    def parse_simplifications(self, ids: Tensor, digits: int) -> Simplifications:
        """Parse ids `[B, >=2N+4]` as simplifications of N = `digits`. Rows that do not parse hold zeros."""
        rest_digits = digits - 1
        ids = ids[:, : self.simplification_length(digits)]
        values = self._values(ids)
        end = 2 * rest_digits + 1
        carry = (ids[:, end] == self.alphabet.id_of("+")).long()
        digit = torch.where(carry == 1, values[:, end + 3], values[:, end + 1])
        a, b = values[:, :rest_digits], values[:, rest_digits + 1 : end]
        valid = (self.simplification_ids(Problems(a, b, carry), digit) == ids).all(dim=1)
        keep = valid.long()
        rest = Problems(a * keep.unsqueeze(1), b * keep.unsqueeze(1), carry * keep)
        return Simplifications(rest, digit * keep, valid)

    def count_tokens(self, ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """Count the generated tokens in ids `[B, T]`, newlines included and pads excluded; see `Layout`."""
        generated = ids != self.pad_id
        return generated.sum() if rows is None else (generated & rows.unsqueeze(1)).sum()

    def is_well_formed(self, ids: Tensor, mode: Mode) -> list[bool]:
        """Return which rows of `[B, T]` have the right token pattern, ignoring the lengths of numbers."""
        characters = dict(zip(self.alphabet.ids, CHARACTERS, strict=True)) | {self.pad_id: ""}
        texts = ["".join(characters.get(index, "?") for index in row) for row in ids.tolist()]
        return [_SHAPES[mode].fullmatch(text) is not None for text in texts]

    def _sum(self, problems: Problems) -> Tensor:
        """Return the `[B, 2N+1]` ids of `a+b`."""
        return torch.cat([self._digits(problems.a), self._marks("+", problems.a), self._digits(problems.b)], dim=1)

    def _digits(self, digits: Tensor) -> Tensor:
        """Return the ids of digits, any shape."""
        return digits.new_tensor(self.alphabet.ids)[digits]

    def _values(self, ids: Tensor) -> Tensor:
        """Return the value of each id that is a digit, else 0; comparing with a fresh layout then rejects the row."""
        return (ids.unsqueeze(-1) == ids.new_tensor(self.alphabet.ids[:10])).long().argmax(dim=-1)

    def _marks(self, text: str, like: Tensor) -> Tensor:
        """Return the ids of a text in each row of `like [B, ...]`, on its device."""
        return like.new_tensor([self.alphabet.id_of(character) for character in text]).expand(len(like), -1)

    def _pads(self, like: Tensor, count: int) -> Tensor:
        """Return `[B, count]` pads for the rows of `like [B, ...]`, on its device."""
        return like.new_full((len(like), count), self.pad_id)
