"""What kernels know of tokens: the table that the engine hands in, and the place rule in torch and in Triton.

A token id is a class and a place; `engine/language/tokens.py` says what they mean. Classes below `num_local` carry
their place in the id, `class + num_local * place`; the others, the marks, stand at place 0 and have the
ids below `num_local`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sector.kernels._triton import tl, triton


@dataclass(frozen=True, slots=True)
class TokenTable:
    """The token constants of the engine.

    num_digits, num_local: classes below them are digits, and have a place. max_place: places end there.
    end, carry_0, eos, start, answer, think, plus, join, pad: classes; carry_0 + 1 is the other carry mark, and marks
        but pad come in `num_shifts` variants each.
    legal: `[2 * num_local]` int32, bit j of entry i is set where class j may follow class i.
    mark_base: `[num_local]` int32, the place before the first digit after each mark, by id.
    """

    num_digits: int
    num_local: int
    num_shifts: int
    max_place: int
    end: int
    carry_0: int
    eos: int
    start: int
    answer: int
    think: int
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
        """Class of each id; any shape."""
        return torch.where(ids < self.num_local, ids + self.num_local, ids % self.num_local)

    def may_follow(self, ids: Tensor) -> Tensor:
        """Ids `[...]` -> `[..., 2 * num_local]` bool, the classes that may follow them."""
        bits = self.legal[self.class_of(ids)].unsqueeze(-1)
        return (bits >> torch.arange(self.num_classes, device=ids.device)) & 1 == 1

    def next_ids(self, ids: Tensor, classes: Tensor) -> Tensor:
        """Ids of the tokens of `classes` that follow `ids`; one shape."""
        marks = self.mark_base[ids.clamp(max=self.num_local - 1)].long()
        base = torch.where(ids < self.num_local, marks, ids // self.num_local)
        places = (base + (classes < self.num_digits)).clamp(max=self.max_place)
        return torch.where(classes < self.num_local, classes + self.num_local * places, classes - self.num_local)


def pack_legal(legal: Tensor) -> Tensor:
    """`[C, C]` bool, may class j follow class i? -> `[C]` int32, one bit a class; C is at most 32."""
    bits = torch.arange(legal.shape[1], device=legal.device)
    # The 32nd bit is the sign: the sum is made in 64 bits and cut.
    return (legal.long() << bits).sum(dim=1).to(torch.int32)


@triton.jit
def class_of(ids, NUM_LOCAL: tl.constexpr):
    """Class of each id of a block."""
    return tl.where(ids < NUM_LOCAL, ids + NUM_LOCAL, ids % NUM_LOCAL)


@triton.jit
def next_ids(ids, classes, mark_base_ptr, NUM_LOCAL: tl.constexpr, NUM_DIGITS: tl.constexpr, MAX_PLACE: tl.constexpr):
    """Ids of the tokens of `classes` that follow `ids`, both int32 blocks of one shape."""
    is_mark = ids < NUM_LOCAL
    base = tl.where(is_mark, tl.load(mark_base_ptr + ids, mask=is_mark, other=0), ids // NUM_LOCAL)
    places = tl.minimum(base + (classes < NUM_DIGITS).to(tl.int32), MAX_PLACE)
    return tl.where(classes < NUM_LOCAL, classes + NUM_LOCAL * places, classes - NUM_LOCAL)
