"""Layout of our own model: prompts and completions of both policies as place-coupled tokens.

The fast policy answers a problem at once; the slow policy simplifies it once, to the last answer digit and a problem
one digit shorter (SECToR section 3). The model generates every token of a completion; this file lays out prompts,
parses completions and reports which rows do not parse. On a GPU the kernels of `kernels/layout.py` do the same without
waiting for the host.

In the shape descriptions B is the batch and N the digits per operand.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from sector.engine.language import tokens
from sector.engine.language.layout import Mode, Simplifications
from sector.engine.language.operands import Problems
from sector.engine.language.place_ids import ANSWER, DigitOrder, PlaceIds, digit_classes, match_letters
from sector.kernels import layout as kernels
from sector.kernels import simplification
from sector.kernels.token_table import TokenTable

# Pattern of a simplification, a letter a token: d is a digit, c a carry, _ padding.
_SIMPLIFICATION = re.compile(r"d+\)&d+\)cd?E?_*")


@dataclass(frozen=True, slots=True)
class PlaceLayout(PlaceIds[Problems, int]):
    """Layout of problems as place-coupled ids (`tokens.py`); a `layout.Layout`.

    order, variant: as in `PlaceIds`.
    problems: class of the remaining problems: sums, or another batch of two operands and a carry.
    """

    problems: type[Problems] = Problems

    def answer_length(self, digits: int, /) -> int:
        """Return the tokens of a fast answer, end included."""
        return digits + 2

    def simplification_length(self, digits: int, /) -> int:
        """Return the tokens of a simplification, end included."""
        return 2 * digits + 4

    def beginning_length(self, digits: int, /) -> int:
        """Return the length of `<` and all digits of a but the last, which the next simplification leaves alone.

        With the least significant digit first it is 0, because a simplification takes away the first digit.
        """
        return digits if self.order is DigitOrder.MSD else 0

    def prefix_ids(self, problems: Problems) -> Tensor:
        """Return the `[B, 2N+5]` ids of `< a ) + b ) c`, which the fast and the slow prompt of a problem share."""
        if _by_kernels(problems.a):
            operands = (problems.a.contiguous(), problems.b.contiguous(), problems.carry.contiguous())
            terms = self._kernel_terms(problems.a)
            return kernels.prompt_ids(*operands, *terms, least_first=self.order is DigitOrder.LSD)
        return torch.cat(
            [
                self._marks(tokens.START, len(problems), problems.device),
                self._problem_ids(problems, tokens.PLUS),
                self._carry_ids(problems),
            ],
            dim=1,
        )

    def simplification_ids(self, rest: Problems, digit: Tensor) -> Tensor:
        """Return the `[B, 2N+4]` ids that follow `>` for the remaining problems (N-1 digits) and the digits `[B]`."""
        if _by_kernels(digit):
            operands = _adjacent(rest.a), _adjacent(rest.b), rest.carry.contiguous(), digit.contiguous()
            terms = self._kernel_terms(digit)
            return simplification.simplification_ids(*operands, *terms, least_first=self.order is DigitOrder.LSD)
        place = self._place_ids(len(rest), rest.digits + 1, digit.device)[:, -1:]
        parts = [self._problem_ids(rest, tokens.JOIN), self._carry_ids(rest), place + digit.unsqueeze(1)]
        return torch.cat([*parts, place + tokens.EOS], dim=1)

    def parse_answers(self, ids: Tensor, digits: int, /) -> tuple[Tensor, Tensor]:
        """Parse ids `[B, >=N+2]` as answers `[B, N+1]`; also return which rows parse `[B]`. Other rows hold zeros."""
        if _by_kernels(ids):
            return kernels.parse_answers(ids, digits, *self._kernel_terms(ids), self.order is DigitOrder.LSD)
        return self._parse_number(ids, digits + 1)

    def parse_simplifications(self, ids: Tensor, digits: int, /) -> Simplifications[Problems]:
        """Parse ids `[B, >=2N+4]` as simplifications of N = `digits`. Rows that do not parse hold zeros."""
        if _by_kernels(ids):
            least_first = self.order is DigitOrder.LSD
            parsed = kernels.parse_simplifications(ids, digits, *self._kernel_terms(ids), least_first=least_first)
            return Simplifications(self.problems(parsed.a, parsed.b, parsed.carry), parsed.digit, parsed.valid)
        rest_digits = digits - 1
        ids = ids[:, : self.simplification_length(digits)]
        a = self._ordered(digit_classes(ids[:, :rest_digits]))
        b = self._ordered(digit_classes(ids[:, rest_digits + 2 : 2 * rest_digits + 2]))
        carry = (tokens.class_of(ids[:, 2 * rest_digits + 3]) == tokens.CARRY_1).long()
        digit = digit_classes(ids[:, 2 * rest_digits + 4])
        rest = self.problems(a, b, carry)
        valid = (self.simplification_ids(rest, digit) == ids).all(dim=1)
        return Simplifications(rest.where(valid), digit * valid, valid)

    def is_well_formed(self, ids: Tensor, mode: Mode) -> list[bool]:
        """Return which rows of `[B, T]` have the right token pattern, ignoring the lengths of numbers."""
        return match_letters(ids, ANSWER if mode == Mode.ANSWER else _SIMPLIFICATION)

    def _kernel_terms(self, like: Tensor) -> tuple[Tensor, TokenTable]:
        """Return the variants `[B]` and the token table for kernels, on the device of `like [B, ...]`."""
        return self._variants(like.device).expand(len(like)).contiguous(), tokens.kernel_table(like.device)

    def _problem_ids(self, problems: Problems, plus: int) -> Tensor:
        """Return the `[B, 2N+3]` ids of `a ) + b )`; `plus` is the mark between the operands."""
        return torch.cat(
            [
                self._number_ids(problems.a, tokens.END),
                self._marks(plus, len(problems), problems.device),
                self._number_ids(problems.b, tokens.END),
            ],
            dim=1,
        )

    def _carry_ids(self, problems: Problems) -> Tensor:
        """Return the `[B, 1]` ids of the carry-in mark at the place of the last digit."""
        place = self._place_ids(len(problems), problems.digits, problems.device)[:, -1:]
        return place + tokens.CARRY_0 + problems.carry.unsqueeze(1)


def _by_kernels(tensor: Tensor) -> bool:
    """Return whether a tensor is on a device where kernels run."""
    return tensor.is_cuda


def _adjacent(digits: Tensor) -> Tensor:
    """Return digits `[B, N]` whose rows have them side by side in memory."""
    return digits if digits.stride(1) == 1 else digits.contiguous()
