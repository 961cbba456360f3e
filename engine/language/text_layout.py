"""Layout of problems for text models: plain text, one token a character.

    123+456=     579 and a newline               the fast answer: N digits, or N+1 if the sum has one more
    123+456+1>   12+45+1|0 and a newline         the simplification: the rest, with `+1` if it has a carry-in

Numbers are padded with zeros to the digits of the problem. A prompt without a carry-in is two tokens shorter; it begins
with two pads, which engines leave out. A shorter completion ends in pads. Differences have `-` in the place of `+`, and
`-1` for a borrow-in.

In the shape descriptions B is the batch, N the digits per operand, L the tokens that lead any text.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from sector.engine.language.character_layout import CharacterLayout
from sector.engine.language.layout import Mode, Simplifications
from sector.engine.language.operands import Problems


@dataclass(frozen=True, slots=True)
class TextLayout(CharacterLayout[Problems, int]):
    """Layout of problems and completions as plain text.

    problems: class of the remaining problems: sums, or another batch of two operands and a carry.
    """

    problems: type[Problems] = Problems

    def shape(self, mode: Mode) -> str:
        """Return the pattern of completions of a mode."""
        if mode == Mode.ANSWER:
            return r"\d+\n?"
        sign = re.escape(self.shown(self.alphabet.ids_of(self.problems.sign)))
        return rf"\d+{sign}\d+({sign}1)?\|\d?\n?"

    def answer_length(self, digits: int, /) -> int:
        """Return the count of tokens of a fast answer, newline included."""
        return digits + 2

    def simplification_length(self, digits: int, /) -> int:
        """Return the count of tokens of a simplification, newline included."""
        return 2 * digits + 4

    def prefix_ids(self, problems: Problems) -> Tensor:
        """Return the `[B, L+2N+3]` ids of `a+b+1`, or of two pads and `a+b`."""
        ids = torch.cat([self.lead_ids(problems), self._sum(problems)], dim=1)
        marked = torch.cat([ids, self._carry(ids)], dim=1)
        # The pads stand in front, so that all prompts end at the same token.
        plain = torch.cat([self._pads(ids, 2), ids], dim=1)
        return torch.where(problems.carry.unsqueeze(1) == 1, marked, plain)

    def answer_ids(self, answers: Tensor) -> Tensor:
        """Return the `[B, N+2]` ids that follow `=` for the answers `[B, N+1]`; a leading zero is left out."""
        full = torch.cat([self.digit_ids(answers), self.text_ids("\n", answers)], dim=1)
        return torch.where(answers[:, :1] == 0, torch.cat([full[:, 1:], self._pads(answers, 1)], dim=1), full)

    def simplification_ids(self, rest: Problems, digit: Tensor) -> Tensor:
        """Return the `[B, 2N+4]` ids that follow `>` for the remaining problems (N-1 digits) and the digits `[B]`."""
        ids = self._sum(rest)
        end = torch.cat([self.text_ids("|", ids), self.digit_ids(digit.unsqueeze(1)), self.text_ids("\n", ids)], dim=1)
        marked = torch.cat([ids, self._carry(ids), end], dim=1)
        plain = torch.cat([ids, end, self._pads(ids, 2)], dim=1)
        return torch.where(rest.carry.unsqueeze(1) == 1, marked, plain)

    def parse_answers(self, ids: Tensor, digits: int, /) -> tuple[Tensor, Tensor]:
        """Parse ids `[B, >=N+2]` as answers `[B, N+1]`; also return which rows parse `[B]`. Other rows hold zeros."""
        ids = ids[:, : self.answer_length(digits)]
        values = self.values(ids[:, : digits + 1])
        short = ids[:, digits : digits + 1] == self.alphabet.id_of("\n")
        answers = torch.where(short, values.roll(1, dims=1), values)
        answers[:, :1] = answers[:, :1].masked_fill(short, 0)
        return self.checked_answers(answers, ids)

    def parse_simplifications(self, ids: Tensor, digits: int, /) -> Simplifications[Problems]:
        """Parse ids `[B, >=2N+4]` as simplifications of N = `digits`. Rows that do not parse hold zeros."""
        rest_digits = digits - 1
        ids = ids[:, : self.simplification_length(digits)]
        values = self.values(ids)
        end = 2 * rest_digits + 1
        carry = (ids[:, end : end + 1] == self.text_ids(self.problems.sign, ids)).long().squeeze(1)
        digit = torch.where(carry == 1, values[:, end + 3], values[:, end + 1])
        a, b = values[:, :rest_digits], values[:, rest_digits + 1 : end]
        rest = self.problems(a, b, carry)
        valid = (self.simplification_ids(rest, digit) == ids).all(dim=1)
        return Simplifications(rest.where(valid), digit * valid, valid)

    def _sum(self, problems: Problems) -> Tensor:
        """Return the `[B, 2N+1]` ids of `a+b`."""
        sign = self.text_ids(self.problems.sign, problems.a)
        return torch.cat([self.digit_ids(problems.a), sign, self.digit_ids(problems.b)], dim=1)

    def _carry(self, like: Tensor) -> Tensor:
        """Return the `[B, 2]` ids of `+1`, a carry-in, for the rows of `like [B, ...]`."""
        return torch.cat([self.text_ids(self.problems.sign, like), self.text_ids("1", like)], dim=1)

    def _pads(self, like: Tensor, count: int) -> Tensor:
        """Return `[B, count]` pads for the rows of `like [B, ...]`, on its device."""
        return like.new_full((len(like), count), self.pad_id)
