"""Layout of our own model: prompts and completions of both policies as place-coupled tokens.

The fast policy answers a problem at once; the slow policy simplifies it once, to the last answer digit and a problem
one digit shorter (SECToR section 3). The model generates every token of a completion; this file lays out prompts,
parses completions and reports which rows do not parse. On a GPU the kernels of `kernels/layout.py` do the same without
waiting for the host.

In the shape descriptions B is the batch and N the digits per operand.
"""

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sector.engine.language import tokens
from sector.engine.language.constant import Constant
from sector.engine.language.layout import Mode, Simplifications
from sector.engine.language.operands import Problems
from sector.kernels import layout as kernels
from sector.kernels import simplification
from sector.kernels.token_table import TokenTable

# A letter for each token class, so that regular expressions match the shapes of completions.
_LETTERS = "d" * tokens.NUM_DIGITS + ")cc" + "E"
_ANSWER = re.compile(r"d+(E_*)?")
_CPU = torch.device("cpu")
# All variants, and the ids of the digit 0 at the places of the longest number in each.
_VARIANTS = Constant(lambda: torch.arange(tokens.NUM_SHIFTS))
_PLACE_IDS = Constant(
    lambda: tokens.NUM_LOCAL * (1 + torch.tensor(tokens.SHIFTS)[:, None] + torch.arange(tokens.MAX_DIGITS + 1))
)


class DigitOrder(StrEnum):
    """Order in which the model reads and writes digits: most or least significant first."""

    MSD = "msd"
    LSD = "lsd"


@dataclass(frozen=True, slots=True)
class PlaceLayout:
    """Layout of problems as place-coupled ids (`tokens.py`); a `layout.Layout`.

    simplification_shape: pattern of a simplification, a letter a token: d is a digit, c a carry, _ padding.
    order: most or least significant digit first.
    variant: variant of the marks, 0..NUM_SHIFTS-1, one for the batch or `[B]`; 0 is plain, others are shifted.
    problems: class of the remaining problems: sums, or another batch of two operands and a carry.
    """

    simplification_shape: ClassVar[re.Pattern[str]] = re.compile(r"d+\)&d+\)cd?E?_*")

    order: DigitOrder = DigitOrder.MSD
    variant: int | Tensor = 0
    problems: type[Problems] = Problems

    def __getitem__(self, rows: Tensor) -> Self:
        """Return the layout of some rows."""
        return replace(self, variant=self.variant[rows] if isinstance(self.variant, Tensor) else self.variant)

    @property
    def num_variants(self) -> int:
        """Number of variants; variant 0 is the plain one."""
        return tokens.NUM_SHIFTS

    @property
    def pad_id(self) -> int:
        """Id behind the end of a completion."""
        return tokens.PAD_ID

    def shifted(self, variant: int | Tensor) -> Self:
        """Return the layout of another variant: one for the batch, or one a row `[B]`."""
        return replace(self, variant=variant)

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

    def prompt_ids(self, problems: Any, mode: Mode) -> Tensor:
        """Return the `[B, 2N+6]` ids of `< a ) + b ) c` and the mode mark."""
        return torch.cat([self.prefix_ids(problems), self.mark_ids(mode, len(problems), problems.device)], dim=1)

    def prefix_ids(self, problems: Any) -> Tensor:
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

    def mark_ids(self, mode: Mode, count: int, device: torch.device | None = None) -> Tensor:
        """Return the `[B, 1]` ids of the mode mark in the layout's variant."""
        return self._marks(mode, count, device)

    def answer_ids(self, answers: Tensor) -> Tensor:
        """Return the `[B, N+2]` ids that follow `=` for the answers `[B, N+1]`."""
        return self._number_ids(answers, tokens.EOS)

    def simplification_ids(self, rest: Any, digit: Tensor) -> Tensor:
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

    def parse_simplifications(self, ids: Tensor, digits: int, /) -> Simplifications:
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
        valid = (self.simplification_ids(self.problems(a, b, carry), digit) == ids).all(dim=1)
        keep = valid.long()
        rest = self.problems(a * keep.unsqueeze(1), b * keep.unsqueeze(1), carry * keep)
        return Simplifications(rest, digit * keep, valid)

    def count_tokens(self, ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """Count the generated tokens in ids `[B, T]`, ends included and padding excluded; see `Layout`."""
        generated = ids != tokens.PAD_ID
        return generated.sum() if rows is None else (generated & rows.unsqueeze(1)).sum()

    def is_well_formed(self, ids: Tensor, mode: Mode) -> list[bool]:
        """Return which rows of `[B, T]` have the right token pattern, ignoring the lengths of numbers."""
        return match_letters(ids, _ANSWER if mode == Mode.ANSWER else self.simplification_shape)

    def _kernel_terms(self, like: Tensor) -> tuple[Tensor, TokenTable]:
        """Return the variants `[B]` and the token table for kernels, on the device of `like [B, ...]`."""
        return self._variants(like.device).expand(len(like)).contiguous(), tokens.kernel_table(like.device)

    def _variants(self, device: torch.device | None) -> Tensor:
        """Return the variant of the batch `[]`, or of each row `[B]`, on a device, by default where it is.

        A number is not copied to a GPU, for which the host would wait, but taken from a table there.
        """
        if isinstance(self.variant, Tensor):
            return self.variant if device is None else self.variant.to(device)
        return _VARIANTS.on(device or _CPU)[self.variant]

    def _problem_ids(self, problems: Any, plus: int) -> Tensor:
        """Return the `[B, 2N+3]` ids of `a ) + b )`; `plus` is the mark between the operands."""
        return torch.cat(
            [
                self._number_ids(problems.a, tokens.END),
                self._marks(plus, len(problems), problems.device),
                self._number_ids(problems.b, tokens.END),
            ],
            dim=1,
        )

    def _marks(self, kind: int, count: int, device: torch.device | None = None) -> Tensor:
        """Return the `[B, 1]` ids of a kind of mark in the layout's variant."""
        variant = self._variants(device).reshape(-1, 1).expand(count, 1)
        return kind - tokens.NUM_LOCAL + variant

    def _number_ids(self, digits: Tensor, end: int) -> Tensor:
        """Return the `[B, N+1]` ids of digits `[B, N]` at places 1..N and the end class at place N, all shifted."""
        count, length = digits.shape
        places = self._place_ids(count, length, digits.device)
        return torch.cat([places + self._ordered(digits), places[:, -1:] + end], dim=1)

    def _place_ids(self, count: int, length: int, device: torch.device) -> Tensor:
        """Return the `[B, length]` ids of the digit 0 at the places of a number."""
        table = _PLACE_IDS.on(device)[:, :length]
        # A number selects a row without a copy.
        rows = table[self.variant] if isinstance(self.variant, int) else table[self.variant.to(device)]
        return rows.reshape(-1, length).expand(count, length)

    def _parse_number(self, ids: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Parse ids `[B, >width]` as a number and an end: return digits `[B, width]`, and which rows parse `[B]`."""
        ids = ids[:, : width + 1]
        digits = self._ordered(digit_classes(ids[:, :width]))
        valid = (self.answer_ids(digits) == ids).all(dim=1)
        return digits * valid.unsqueeze(1), valid

    def _carry_ids(self, problems: Any) -> Tensor:
        """Return the `[B, 1]` ids of the carry-in mark at the place of the last digit."""
        place = self._place_ids(len(problems), problems.digits, problems.device)[:, -1:]
        return place + tokens.CARRY_0 + problems.carry.unsqueeze(1)

    def _ordered(self, digits: Tensor) -> Tensor:
        """Convert digits between most significant first and the layout's order; its own inverse."""
        return digits.flip(-1) if self.order is DigitOrder.LSD else digits


def _by_kernels(tensor: Tensor) -> bool:
    """Return whether a tensor is on a device where kernels run."""
    return tensor.is_cuda


def _adjacent(digits: Tensor) -> Tensor:
    """Return digits `[B, N]` whose rows have them side by side in memory."""
    return digits if digits.stride(1) == 1 else digits.contiguous()


def digit_classes(ids: Tensor) -> Tensor:
    """Return the value of each id that is a digit, else 0; comparing with a fresh layout then rejects the row."""
    classes = tokens.class_of(ids)
    return torch.where(classes < tokens.NUM_DIGITS, classes, 0)


def match_letters(ids: Tensor, pattern: re.Pattern[str]) -> list[bool]:
    """Return which rows of ids `[B, T]` match a pattern of letters, one a token."""
    return [pattern.fullmatch("".join(map(_letter, row))) is not None for row in tokens.class_of(ids).tolist()]


def _letter(token_class: int) -> str:
    """Return the letter of a token class: `&` for every join mark, `_` for padding and all other marks."""
    if token_class < len(_LETTERS):
        return _LETTERS[token_class]
    return "&" if tokens.JOIN <= token_class < tokens.JOIN + tokens.NUM_SHIFTS else "_"
