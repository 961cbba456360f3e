"""How problems are laid out for a model of text: as people write them, a character a token.

    123+456=     579 and a newline               the fast answer: N digits, or N+1 where the sum has one more
    123+456+1>   12+45+1|0 and a newline         the simplification: the rest, `+1` behind it if it has a carry-in

Numbers are padded with zeros to the digits of the problem. A prompt without a carry-in is two tokens shorter and begins
with two pads instead, which engines leave out; a completion that is shorter than others ends in pads. Text has no
places, so there is nothing to shift: every variant of start marks is the plain one.

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
# Of completions that may have been cut off.
_SHAPES = {
    Mode.ANSWER: re.compile(r"\d+\n?"),
    Mode.THINK: re.compile(r"\d+\+\d+(\+1)?\|\d?\n?"),
}


@dataclass(frozen=True, slots=True)
class TextLayout:
    """Problems and completions as ids of an alphabet."""

    alphabet: Alphabet

    @property
    def pad_id(self) -> int:
        return self.alphabet.pad

    @property
    def num_variants(self) -> int:
        return 1

    def shifted(self, variant: int | Tensor) -> Self:
        """Text has no places: the same layout, whatever the variant."""
        return self

    def beginning_length(self, digits: int) -> int:
        """Tokens at the beginning of a prefix that the next simplification leaves alone: pads may move them all."""
        return 0

    def answer_length(self, digits: int) -> int:
        """Tokens of a fast answer, newline included."""
        return digits + 2

    def simplification_length(self, digits: int) -> int:
        """Tokens of a simplification, newline included."""
        return 2 * digits + 4

    def prefix_ids(self, problems: Problems) -> Tensor:
        """`[B, L+2N+3]` ids of `a+b+1`, or of two pads and `a+b`."""
        lead = problems.a.new_tensor(self.alphabet.lead).expand(len(problems), -1)
        return self._with_carry(torch.cat([lead, self._sum(problems)], dim=1), problems.carry, first=True)

    def mark_ids(self, mode: Mode, count: int, device: torch.device | None = None) -> Tensor:
        """`[B, 1]` ids of `=` or `>`."""
        return torch.full((count, 1), self.alphabet.id_of(_MODES[mode]), device=device)

    def prompt_ids(self, problems: Problems, mode: Mode) -> Tensor:
        """`[B, L+2N+4]` ids of a whole prompt, pads in front of those that are shorter."""
        return torch.cat([self.prefix_ids(problems), self.mark_ids(mode, len(problems), problems.a.device)], dim=1)

    def answer_ids(self, answers: Tensor) -> Tensor:
        """Answers `[B, N+1]` as the `[B, N+2]` ids that follow `=`; a zero in front is not written."""
        full = torch.cat([self._digits(answers), self._marks("\n", answers)], dim=1)
        return torch.where(answers[:, :1] == 0, torch.cat([full[:, 1:], self._pads(answers, 1)], dim=1), full)

    def simplification_ids(self, rest: Problems, digit: Tensor) -> Tensor:
        """The remaining problems (N-1 digits) and digit `[B]` as the `[B, 2N+4]` ids that follow `>`."""
        end = torch.cat([self._marks("|", rest.a), self._digits(digit.unsqueeze(1)), self._marks("\n", rest.a)], dim=1)
        return self._with_carry(self._sum(rest), rest.carry, first=False, end=end)

    def parse_answers(self, ids: Tensor, digits: int) -> tuple[Tensor, Tensor]:
        """Generated ids `[B, >=N+2]` -> answers `[B, N+1]` and which are well-formed `[B]`; the rest hold zeros."""
        ids = ids[:, : self.answer_length(digits)]
        values = self._values(ids[:, : digits + 1])
        short = ids[:, digits : digits + 1] == self.alphabet.id_of("\n")
        answers = torch.where(short, values.roll(1, dims=1), values)
        answers[:, :1] = answers[:, :1].masked_fill(short, 0)
        valid = (self.answer_ids(answers) == ids).all(dim=1)
        return answers * valid.unsqueeze(1), valid

    def parse_simplifications(self, ids: Tensor, digits: int) -> Simplifications:
        """Generated ids `[B, >=2N+4]` of simplifications of N = `digits`; rows that do not parse hold zeros."""
        rest_digits = digits - 1
        ids = ids[:, : self.simplification_length(digits)]
        values = self._values(ids)
        end = 2 * rest_digits + 1
        carry = (ids[:, end] == self.alphabet.id_of("+")).long()
        digit = torch.where(carry == 1, values[:, end + 3], values[:, end + 1])
        rest = Problems(values[:, :rest_digits], values[:, rest_digits + 1 : end], carry)
        valid = (self.simplification_ids(rest, digit) == ids).all(dim=1)
        keep = valid.long()
        kept = Problems(rest.a * keep.unsqueeze(1), rest.b * keep.unsqueeze(1), carry * keep)
        return Simplifications(kept, digit * keep, valid)

    def count_tokens(self, ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """Generated tokens in ids `[B, T]`, newlines included and pads not; of some rows `[B]` if given. A number."""
        generated = ids != self.pad_id
        return generated.sum() if rows is None else (generated & rows.unsqueeze(1)).sum()

    def is_well_formed(self, ids: Tensor, mode: Mode) -> list[bool]:
        """Which rows of `[B, T]` would parse, were their numbers of another length?"""
        characters = dict(zip(self.alphabet.ids, CHARACTERS, strict=True)) | {self.pad_id: ""}
        texts = ["".join(characters.get(index, "?") for index in row) for row in ids.tolist()]
        return [_SHAPES[mode].fullmatch(text) is not None for text in texts]

    def _sum(self, problems: Problems) -> Tensor:
        """`[B, 2N+1]` ids of `a+b`."""
        return torch.cat([self._digits(problems.a), self._marks("+", problems.a), self._digits(problems.b)], dim=1)

    def _with_carry(self, ids: Tensor, carry: Tensor, first: bool, end: Tensor | None = None) -> Tensor:
        """Ids `[B, T]` with `+1` behind them where there is a carry, and then `end [B, E]`; pads where there is none.

        first: pads stand in front, so that all rows end alike.
        """
        end = ids[:, :0] if end is None else end
        pads = self._pads(ids, 2)
        marked = torch.cat([ids, self._marks("+1", ids), end], dim=1)
        plain = torch.cat([pads, ids, end] if first else [ids, end, pads], dim=1)
        return torch.where(carry.unsqueeze(1) == 1, marked, plain)

    def _digits(self, digits: Tensor) -> Tensor:
        """Ids of digits, any shape."""
        return digits.new_tensor(self.alphabet.ids)[digits]

    def _values(self, ids: Tensor) -> Tensor:
        """Digits that ids stand for, 0 for what is none (the comparison with a fresh layout then rejects the row)."""
        return (ids.unsqueeze(-1) == ids.new_tensor(self.alphabet.ids[:10])).long().argmax(dim=-1)

    def _marks(self, text: str, like: Tensor) -> Tensor:
        """The ids of a text in every row, where `like [B, ...]` is."""
        return like.new_tensor([self.alphabet.id_of(each) for each in text]).expand(len(like), -1)

    def _pads(self, like: Tensor, count: int) -> Tensor:
        return like.new_full((len(like), count), self.pad_id)
