"""Layout of sums and differences as text with hints: before each digit stands a letter that marks its place.

    a3b2c1d0+a6b5c4d0+a0=      a9b7c5d0 and a newline             the fast answer of 123+456
    a3b2c1d0+a6b5c4d0+a0>      b2c1d0+b5c4d0+b0|a9 and a newline  the simplification: the rest, and the last digit

Digits of equal significance have equal letters, in both operands, the carry-in and the answer. So a model finds digits
by letters, and need not count (index hints: Zhou et al. 2024, arXiv 2402.09371). Letters begin anywhere in the alphabet
and go on at its beginning: variant v begins at letter v. Operands have a zero in front, so that each letter of the
answer stands in them; without it, a model wrote the last letter of a number by its count, and failed at one digit more
(log.md). All prompts of one length have as many tokens. Differences have `-` in the place of `+`.

In the shape descriptions B is the batch, N the digits per operand, W the digits of a number, L the tokens that lead any
text.
"""

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sector.engine.language.character_layout import CharacterLayout
from sector.engine.language.layout import Mode, Simplifications
from sector.engine.language.lettered import Lettered, behind_letters
from sector.engine.language.operands import Problems
from sector.engine.language.place_ids import DigitOrder

_NUMBER = r"(?:[a-zA-Z]\d)+"


@dataclass(frozen=True, slots=True)
class HintLayout(Lettered, CharacterLayout[Problems, int]):
    """Layout of problems and completions as ids of an alphabet with letters.

    alphabet: ids of the characters, with letters.
    order: order of the digits of a number.
    variant: letter of the least significant digit: one for the batch, or one a row `[B]`.
    problems: class of the remaining problems: sums, or another batch of two operands and a carry.
    """

    order: DigitOrder
    variant: int | Tensor = 0
    problems: type[Problems] = Problems

    def shape(self, mode: Mode) -> str:
        """Return the pattern of completions of a mode."""
        if mode == Mode.ANSWER:
            return rf"{_NUMBER}\n?"
        sign = re.escape(self.shown(self.alphabet.ids_of(self.problems.sign)))
        return rf"{_NUMBER}{sign}{_NUMBER}{sign}{_NUMBER}\|(?:{_NUMBER}\n?)?"

    def answer_length(self, digits: int, /) -> int:
        """Return the count of tokens of a fast answer, newline included."""
        return 2 * digits + 3

    def simplification_length(self, digits: int, /) -> int:
        """Return the count of tokens of a simplification, newline included."""
        return 4 * digits + 8

    def prefix_ids(self, problems: Problems) -> Tensor:
        """Return the `[B, L+4N+8]` ids of `a+b+carry`."""
        return torch.cat([self.lead_ids(problems), self._sum(problems, 0)], dim=1)

    def answer_ids(self, answers: Tensor) -> Tensor:
        """Return the `[B, 2N+3]` ids that follow `=` for the answers `[B, N+1]`."""
        return torch.cat([self._number(answers, 0), self.text_ids("\n", answers)], dim=1)

    def simplification_ids(self, rest: Problems, digit: Tensor) -> Tensor:
        """Return the `[B, 4N+8]` ids that follow `>` for the remaining problems (N-1 digits) and the digits `[B]`."""
        parts = [self._sum(rest, 1), self.text_ids("|", digit), self._number(digit.unsqueeze(1), 0)]
        return torch.cat([*parts, self.text_ids("\n", digit)], dim=1)

    def parse_answers(self, ids: Tensor, digits: int, /) -> tuple[Tensor, Tensor]:
        """Parse ids `[B, >=2N+3]` as answers `[B, N+1]`; also return which rows parse `[B]`. Other rows hold zeros."""
        ids = ids[:, : self.answer_length(digits)]
        return self.checked_answers(self._read(ids, 0, digits + 1), ids)

    def parse_simplifications(self, ids: Tensor, digits: int, /) -> Simplifications[Problems]:
        """Parse ids `[B, >=4N+8]` as simplifications of N = `digits`. Rows that do not parse hold zeros."""
        ids = ids[:, : self.simplification_length(digits)]
        # With the zero in front, which is compared with what was written.
        width = 2 * digits
        a, b = (self._read(ids, start, digits)[:, 1:] for start in (0, width + 1))
        carry, digit = (self._read(ids, start, 1).squeeze(1) for start in (2 * width + 2, 2 * width + 5))
        # A larger digit in its place is no carry, and is compared with what was written.
        rest = self.problems(a, b, carry.clamp(max=1))
        valid = (self.simplification_ids(rest, digit) == ids).all(dim=1)
        return Simplifications(rest.where(valid), digit * valid, valid)

    def _sum(self, problems: Problems, place: int) -> Tensor:
        """Return the `[B, 4N+8]` ids of `a+b+carry`, whose least significant digits stand at a place."""
        sign = self.text_ids(self.problems.sign, problems.carry)
        # All three numbers have these letters: those of an operand are drawn up once.
        letters = self.letters_of(self._places(place, problems.digits + 1, problems.device), problems.carry)
        a, b = (self._lettered(F.pad(operand, (1, 0)), letters) for operand in (problems.a, problems.b))
        first = letters[:, :1] if self.order is DigitOrder.LSD else letters[:, -1:]
        return torch.cat([a, sign, b, sign, self._lettered(problems.carry.unsqueeze(1), first)], dim=1)

    def _number(self, digits: Tensor, place: int) -> Tensor:
        """Return the `[B, 2W]` ids of digits `[B, W]` with their letters; the least significant one is at a place."""
        return self._lettered(digits, self.letters_of(self._places(place, digits.shape[1], digits.device), digits))

    def _lettered(self, digits: Tensor, letters: Tensor) -> Tensor:
        """Return the `[B, 2W]` ids of digits `[B, W]`, each behind its letter; letters: `[B or 1, W]` as written."""
        return behind_letters(self.order.arranged(self.digit_ids(digits)), letters)

    def _places(self, place: int, width: int, device: torch.device) -> Tensor:
        """Return the places `[W]` of a number's digits as they are written; the least significant one is at `place`."""
        places = torch.arange(place, place + width, device=device)
        return places.flip(0) if self.order is DigitOrder.MSD else places

    def _read(self, ids: Tensor, start: int, width: int) -> Tensor:
        """Return the digits `[B, width]` of a number from a token on; 0 where there is none, as a comparison finds."""
        return self.order.arranged(self.values(ids[:, start + 1 : start + 2 * width : 2]))
