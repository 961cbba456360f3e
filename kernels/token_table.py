"""Token constants for kernels, passed in by the engine, and the place rule in torch and in Triton.

A token id encodes a class and a place (`engine/language/tokens.py` explains both). Classes below `num_local` have the
id `class + num_local * place`. The other classes, the marks, are at place 0 and have the ids below `num_local`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sector.kernels._triton import tl, triton


@dataclass(frozen=True, slots=True)
class TokenConstants:
    """Constants of the tokens, which a kernel is compiled with; the launchers pass them as `TOKEN`.

    num_digits: classes below it are digits.
    num_local: classes below it have a place.
    max_place: the largest place.
    end, eos: classes of the end of a number and of a sequence.
    carry_0: class of the carry mark 0; carry_0 + 1 is the carry mark 1.
    start, plus, join, pad: classes of marks; except for `pad`, the first of their variants.
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

    @property
    def num_classes(self) -> int:
        return 2 * self.num_local

    @property
    def pad_id(self) -> int:
        return self.pad - self.num_local


@dataclass(frozen=True, slots=True)
class TokenTable:
    """Tokens of the engine, on a device.

    token: the constants.
    legal: `[2 * num_local]` int32, bit j of entry i is set if class j may follow class i.
    mark_base: `[num_local]` int32, the place before the first digit after each mark, by id.
    """

    token: TokenConstants
    legal: Tensor
    mark_base: Tensor

    def __post_init__(self) -> None:
        if self.token.num_local != 16:
            raise ValueError(f"kernels hold 16 local classes and 16 marks, not {self.token.num_local}")
        for name, tensor, size in (("legal", self.legal, self.token.num_classes), ("mark_base", self.mark_base, 16)):
            if tensor.shape != (size,) or tensor.dtype != torch.int32:
                raise ValueError(f"{name} must be [{size}] int32, not {list(tensor.shape)} {tensor.dtype}")

    @property
    def device(self) -> torch.device:
        return self.legal.device

    def class_of(self, ids: Tensor) -> Tensor:
        """Return the class of each id; any shape."""
        return torch.where(ids < self.token.num_local, ids + self.token.num_local, ids % self.token.num_local)

    def may_follow(self, ids: Tensor) -> Tensor:
        """Return `[..., 2 * num_local]` bool: the classes that may follow ids `[...]`."""
        bits = self.legal[self.class_of(ids)].unsqueeze(-1)
        return (bits >> torch.arange(self.token.num_classes, device=ids.device)) & 1 == 1

    def next_ids(self, ids: Tensor, classes: Tensor) -> Tensor:
        """Return the ids of the tokens of `classes` that follow `ids`; all of one shape."""
        token = self.token
        marks = self.mark_base[ids.clamp(max=token.num_local - 1)].long()
        base = torch.where(ids < token.num_local, marks, ids // token.num_local)
        places = (base + (classes < token.num_digits)).clamp(max=token.max_place)
        return torch.where(classes < token.num_local, classes + token.num_local * places, classes - token.num_local)


def pack_legal(legal: Tensor) -> Tensor:
    """Pack `[C, C]` bool, whether class j may follow class i, into `[C]` int32, one bit per class; C is at most 32."""
    bits = torch.arange(legal.shape[1], device=legal.device)
    # The 32nd bit is the sign, so the sum is computed in 64 bits and truncated.
    return (legal.long() << bits).sum(dim=1).to(torch.int32)


@triton.jit
def class_of(ids, TOKEN: tl.constexpr):
    """Return the class of each id of a block."""
    return tl.where(ids < TOKEN.num_local, ids + TOKEN.num_local, ids % TOKEN.num_local)


@triton.jit
def next_ids(ids, classes, mark_base_ptr, TOKEN: tl.constexpr):
    """Return the ids of the tokens of `classes` that follow `ids`, int32 blocks of one shape."""
    is_mark = ids < TOKEN.num_local
    base = tl.where(is_mark, tl.load(mark_base_ptr + ids, mask=is_mark, other=0), ids // TOKEN.num_local)
    places = tl.minimum(base + (classes < TOKEN.num_digits).to(tl.int32), TOKEN.max_place)
    return tl.where(classes < TOKEN.num_local, classes + TOKEN.num_local * places, classes - TOKEN.num_local)
