"""Place-coupled ids of numbers and marks, which the layouts of `place_layout.py` and `number_layout.py` put in order.

In the shape descriptions B is the batch, N the digits of a number and W the digits of an answer.
"""

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

import torch
from torch import Tensor

from sector.engine.language import tokens
from sector.engine.language.constant import Constant
from sector.engine.language.layout import B, Layout, Mode, S_contra

# A letter for each token class, so that regular expressions match the shapes of completions.
_LETTERS = "d" * tokens.NUM_DIGITS + ")cc" + "E"
# Pattern of an answer.
ANSWER = re.compile(r"d+(E_*)?")
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

    def arranged(self, digits: Tensor) -> Tensor:
        """Convert digits `[..., N]` between most significant first and this order; its own inverse."""
        return digits.flip(-1) if self is DigitOrder.LSD else digits


@dataclass(frozen=True, slots=True)
class PlaceIds(Layout[B, S_contra]):
    """Base of layouts with place-coupled ids (`tokens.py`).

    order: most or least significant digit first.
    variant: variant of the marks, 0..NUM_SHIFTS-1, one for the batch or `[B]`; 0 is plain, others are shifted.
    """

    order: DigitOrder = DigitOrder.MSD
    variant: int | Tensor = 0

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

    def mark_ids(self, mode: Mode, count: int, device: torch.device | None = None) -> Tensor:
        """Return the `[B, 1]` ids of the mode mark in the layout's variant."""
        return self._marks(mode, count, device)

    def answer_ids(self, answers: Tensor) -> Tensor:
        """Return the `[B, W+1]` ids that follow `=` for the answers `[B, W]`."""
        return self._number_ids(answers, tokens.EOS)

    def _variants(self, device: torch.device | None) -> Tensor:
        """Return the variant of the batch `[]`, or of each row `[B]`, on a device, by default where it is.

        A number is not copied to a GPU, for which the host would wait, but taken from a table there.
        """
        if isinstance(self.variant, Tensor):
            return self.variant if device is None else self.variant.to(device)
        return _VARIANTS.on(device or _CPU)[self.variant]

    def _marks(self, kind: int, count: int, device: torch.device | None = None) -> Tensor:
        """Return the `[B, 1]` ids of a kind of mark in the layout's variant."""
        variant = self._variants(device).reshape(-1, 1).expand(count, 1)
        return kind - tokens.NUM_LOCAL + variant

    def _number_ids(self, digits: Tensor, end: int) -> Tensor:
        """Return the `[B, N+1]` ids of digits `[B, N]` at places 1..N and the end class at place N, all shifted."""
        count, length = digits.shape
        places = self._place_ids(count, length, digits.device)
        return torch.cat([places + self.order.arranged(digits), places[:, -1:] + end], dim=1)

    def _place_ids(self, count: int, length: int, device: torch.device) -> Tensor:
        """Return the `[B, length]` ids of the digit 0 at the places of a number."""
        table = _PLACE_IDS.on(device)[:, :length]
        # A number selects a row without a copy.
        rows = table[self.variant] if isinstance(self.variant, int) else table[self.variant.to(device)]
        return rows.reshape(-1, length).expand(count, length)

    def _parse_number(self, ids: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Parse ids `[B, >width]` as a number and an end: return digits `[B, width]`, and which rows parse `[B]`."""
        ids = ids[:, : width + 1]
        digits = self.order.arranged(digit_classes(ids[:, :width]))
        valid = (self.answer_ids(digits) == ids).all(dim=1)
        return digits * valid.unsqueeze(1), valid


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
