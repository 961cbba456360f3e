"""Layouts of text: one token a character, a mark for each mode, and completions that are compared with fresh ones.

In the shape descriptions B is the batch, N the digits per operand, L the tokens that lead any text.
"""

import re
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from sector.engine.language.alphabet import CHARACTERS, Alphabet
from sector.engine.language.constant import Constant
from sector.engine.language.layout import B, Layout, Mode, S_contra

_MODES = {Mode.ANSWER: "=", Mode.THINK: ">"}


def known_ids(ids: tuple[int, ...], like: Tensor) -> Tensor:
    """Return ids of an alphabet as a tensor of the type of `like`, on its device; it is made once and read only."""
    return _known_ids(ids, like.dtype).on(like.device)


# A step of training asks for the same few hundred times.
@lru_cache(maxsize=1024)
def _known_ids(ids: tuple[int, ...], dtype: torch.dtype) -> Constant:
    return Constant(lambda: torch.tensor(ids, dtype=dtype))


@dataclass(frozen=True, slots=True)
class CharacterLayout(Layout[B, S_contra]):
    """Layout of problems and completions as ids of an alphabet. Text has no places to shift: it has one variant."""

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
        """Return the layout of another variant, here itself."""
        return self

    def beginning_length(self, size: S_contra, /) -> int:
        """Return 0: pads may move all tokens of a prefix, or letters begin anew."""
        return 0

    @abstractmethod
    def shape(self, mode: Mode) -> str:
        """Return the pattern of completions of a mode. They may have been cut off, so ends are optional."""

    def mark_ids(self, mode: Mode, count: int, device: torch.device | None = None) -> Tensor:
        """Return the `[B, 1]` ids of `=` or `>`."""
        return torch.full((count, 1), self.alphabet.id_of(_MODES[mode]), device=device)

    def is_well_formed(self, ids: Tensor, mode: Mode) -> list[bool]:
        """Return which rows of `[B, T]` have the right token pattern, ignoring the lengths of numbers."""
        shape = re.compile(self.shape(mode))
        return [shape.fullmatch(self.shown(row)) is not None for row in ids.tolist()]

    def shown(self, ids: Iterable[int]) -> str:
        """Return ids as patterns see them: CHARACTERS as they are, `a` for each letter, a name for any other id."""
        names = dict(zip(self.alphabet.ids, CHARACTERS, strict=True)) | {self.pad_id: ""}
        # Any letter is as good as another here.
        names |= dict.fromkeys(self.alphabet.letters, "a")
        return "".join(names.get(index, f"<{index}>") for index in ids)

    def checked_answers(self, answers: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return answers `[B, W]` as read from ids, and which rows parse `[B]`: those that are written so."""
        valid = (self.answer_ids(answers) == ids).all(dim=1)
        return answers * valid.unsqueeze(1), valid

    def lead_ids(self, problems: B) -> Tensor:
        """Return the `[B, L]` ids that lead any text."""
        lead = torch.tensor(self.alphabet.lead, dtype=torch.int64, device=problems.device)
        return lead.expand(len(problems), -1)

    def digit_ids(self, digits: Tensor) -> Tensor:
        """Return the ids of digits, any shape."""
        return known_ids(self.alphabet.ids, digits)[digits]

    def values(self, ids: Tensor) -> Tensor:
        """Return the value of each id that is a digit, else 0; comparing with a fresh layout then rejects the row."""
        return (ids.unsqueeze(-1) == known_ids(self.alphabet.ids[:10], ids)).long().argmax(dim=-1)

    def text_ids(self, text: str, like: Tensor) -> Tensor:
        """Return the ids of a text in each row of `like [B, ...]`, on its device."""
        return known_ids(self.alphabet.ids_of(text), like).expand(len(like), -1)
