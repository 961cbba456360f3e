"""Letters that mark the places of digits in text; see `hint_layout.py`.

Letters begin anywhere in the alphabet and go on at its beginning: variant v begins at letter v.

In the shape descriptions B is the batch and W the digits of a number.
"""

from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from sector.engine.language.alphabet import Alphabet
from sector.engine.language.character_layout import known_ids


class Lettered:
    """Part of a layout that has a letter before each digit, and a variant for each letter to begin with.

    alphabet: ids of the characters, with letters.
    variant: letter of place 0: one for the batch, or one a row `[B]`.
    """

    __slots__ = ()
    alphabet: Alphabet
    variant: int | Tensor

    @property
    def num_variants(self) -> int:
        """Number of variants; variant 0 is the plain one."""
        return len(self.alphabet.letters)

    def shifted(self, variant: int | Tensor) -> Self:
        """Return the layout of another variant: one for the batch, or one a row `[B]`."""
        # Each layout is a dataclass, which this part of it is not.
        return replace(self, variant=variant)  # type: ignore[type-var]

    def __getitem__(self, rows: Tensor) -> Self:
        """Return the layout of some rows."""
        return self.shifted(self.variant[rows] if isinstance(self.variant, Tensor) else self.variant)

    def letters_of(self, places: Tensor, like: Tensor) -> Tensor:
        """Return the ids `[B or 1, W]` of the letters of places `[W]`, in the type of `like`; both on one device."""
        if isinstance(self.variant, Tensor):
            places = self.variant.to(like.device).unsqueeze(1) + places
        else:
            places = (places + self.variant).unsqueeze(0)
        letters = known_ids(self.alphabet.letters, like)
        return letters[places % len(letters)]

    def with_letters(self, ids: Tensor, places: Tensor) -> Tensor:
        """Return the `[B, 2W]` ids of digits `[B, W]` with the letters of their places `[W]` before them."""
        return behind_letters(ids, self.letters_of(places, ids))


def behind_letters(ids: Tensor, letters: Tensor) -> Tensor:
    """Return the `[B, 2W]` ids of digits `[B, W]`, each behind its letter; letters: `[B or 1, W]`."""
    return torch.stack([letters.expand_as(ids), ids], dim=2).flatten(1)
