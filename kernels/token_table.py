"""Token constants for kernels, passed in by the engine, and the place rule in torch and in Triton.

A token id encodes a class and a place (`engine/language/tokens.py` explains both). Classes below `num_local` have the
id `class + num_local * place`. The other classes, the marks, are at place 0 and have the ids below `num_local`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sector.kernels._triton import tl, triton


@dataclass(frozen=True, slots=True)
class TokenTable:
    """Token constants of the engine.

    num_digits: classes below it are digits.
    num_local: classes below it have a place.
    max_place: the largest place.
    end, eos: classes of the end of a number and of a sequence.
    carry_0: class of the carry mark 0; carry_0 + 1 is the carry mark 1.
    start, plus, join, pad: classes of marks; except for `pad`, the first of their variants.
    legal: `[2 * num_local]` int32, bit j of entry i is set if class j may follow class i.
    mark_base: `[num_local]` int32, the place before the first digit after each mark, by id.
    """

    num_digits: int
    num_local: int
    max_place: int
    end: int
    carry_0: int
    eos: int
    start: int
    plus: int
    join: int
    pad: int
    legal: Tensor
    mark_base: Tensor

    def __post_init__(self) -> None:
        if self.num_local != 16:
            raise ValueError(f"kernels hold 16 local classes and 16 marks, not {self.num_local}")
        for name, tensor, size in (("legal", self.legal, self.num_classes), ("mark_base", self.mark_base, 16)):
            if tensor.shape != (size,) or tensor.dtype != torch.int32:
                raise ValueError(f"{name} must be [{size}] int32, not {list(tensor.shape)} {tensor.dtype}")

    @property
    def num_classes(self) -> int:
        return 2 * self.num_local

    @property
    def pad_id(self) -> int:
        return self.pad - self.num_local

    @property
    def device(self) -> torch.device:
        return self.legal.device

    def class_of(self, ids: Tensor) -> Tensor:
        """Return the class of each id; any shape."""
        return torch.where(ids < self.num_local, ids + self.num_local, ids % self.num_local)

    def may_follow(self, ids: Tensor) -> Tensor:
        """Return `[..., 2 * num_local]` bool: the classes that may follow ids `[...]`."""
        bits = self.legal[self.class_of(ids)].unsqueeze(-1)
        return (bits >> torch.arange(self.num_classes, device=ids.device)) & 1 == 1

    def next_ids(self, ids: Tensor, classes: Tensor) -> Tensor:
        """Return the ids of the tokens of `classes` that follow `ids`; all of one shape."""
        marks = self.mark_base[ids.clamp(max=self.num_local - 1)].long()
        base = torch.where(ids < self.num_local, marks, ids // self.num_local)
        places = (base + (classes < self.num_digits)).clamp(max=self.max_place)
        return torch.where(classes < self.num_local, classes + self.num_local * places, classes - self.num_local)


def pack_legal(legal: Tensor) -> Tensor:
    """Pack `[C, C]` bool, whether class j may follow class i, into `[C]` int32, one bit per class; C is at most 32."""
    bits = torch.arange(legal.shape[1], device=legal.device)
    # The 32nd bit is the sign, so the sum is computed in 64 bits and truncated.
    return (legal.long() << bits).sum(dim=1).to(torch.int32)


@triton.jit
def class_of(ids, NUM_LOCAL: tl.constexpr):
    """Return the class of each id of a block."""
    return tl.where(ids < NUM_LOCAL, ids + NUM_LOCAL, ids % NUM_LOCAL)


@triton.jit
def next_ids(ids, classes, mark_base_ptr, NUM_LOCAL: tl.constexpr, NUM_DIGITS: tl.constexpr, MAX_PLACE: tl.constexpr):
    """Return the ids of the tokens of `classes` that follow `ids`, int32 blocks of one shape."""
    is_mark = ids < NUM_LOCAL
    base = tl.where(is_mark, tl.load(mark_base_ptr + ids, mask=is_mark, other=0), ids // NUM_LOCAL)
    places = tl.minimum(base + (classes < NUM_DIGITS).to(tl.int32), MAX_PLACE)
    return tl.where(classes < NUM_LOCAL, classes + NUM_LOCAL * places, classes - NUM_LOCAL)
