"""Philox4x32-10, the counter-based random stream (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

A draw depends on its key and counter alone, so a row's sample does not depend on its batch. The plain-torch reference
holds 32-bit words in int64 tensors; `uniform_lanes` draws the same bits inside a kernel.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sector.kernels._triton import tl, triton

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
_ROUNDS = 10


def philox_4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Return four random 32-bit words from four words of counter (broadcastable int64) and the two words of the key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The int64 product wraps modulo 2^64, so both halves are right after the mask.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _MASK) ^ c1 ^ k0,
            product1 & _MASK,
            ((product0 >> 32) & _MASK) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


def uniforms(seed: int, rows: Tensor, stage: int | Tensor, steps: Tensor, lanes: int) -> Tensor:
    """Return float32 uniforms `[..., lanes]` in (0, 1), one per row, step and lane.

    seed: the key, 64 bits.
    rows: `[...]` int64, the index of the problem in its stream.
    stage: the index of the call for that problem, an int or an int64 tensor that broadcasts with `rows`.
    steps: int64 that broadcasts with `rows`, the index of the new token.
    lanes: a multiple of 4.
    """
    if lanes % 4:
        raise ValueError(f"lanes must be a multiple of 4, got {lanes}")
    stages = torch.as_tensor(stage, dtype=torch.int64, device=rows.device)
    rows, stages, steps = (part.unsqueeze(-1) for part in torch.broadcast_tensors(rows, stages, steps))
    blocks = torch.arange(lanes // 4, device=rows.device)
    counter = (rows & _MASK, (rows >> 32) & _MASK, (steps << 8) | blocks, stages)
    words = philox_4x32(counter, (seed & _MASK, (seed >> 32) & _MASK))
    # 23 bits plus half a step need 24 bits, so they are exact in float32 and never 0 or 1.
    return torch.stack([((word >> 9).float() + 0.5) * 2.0**-23 for word in words], dim=-1).flatten(-2)


@dataclass(frozen=True, slots=True)
class Stream:
    """Positions of the rows of a batch in the random stream, all int64 and on the device, as kernels read them.

    seed: `[1]`, the 64 bits of the key.
    rows, stages, steps: `[B]`, as in `uniforms`.
    """

    seed: Tensor
    rows: Tensor
    stages: Tensor
    steps: Tensor

    def gumbel(self, lanes: int) -> Tensor:
        """Return Gumbel noise `[B, lanes]`."""
        return -(-uniforms(int(self.seed), self.rows, self.stages, self.steps, lanes).log()).log()


@triton.jit
def uniform_lanes(seed, rows, stages, steps, LANES: tl.constexpr):
    """Draw the same bits as `uniforms` inside a kernel: float32 `[R, LANES]`.

    seed: int64.
    rows, stages, steps: `[R]` int64.
    LANES: a power of two, at least 4.
    """
    blocks = tl.arange(0, LANES // 4)[None, :]
    counter2 = ((steps[:, None] << 8) | blocks).to(tl.uint32)
    zeros = tl.zeros_like(counter2)
    # Conversion to 32 bits keeps the low bits.
    counter0 = zeros | rows.to(tl.uint32)[:, None]
    counter1 = zeros | (rows >> 32).to(tl.uint32)[:, None]
    counter3 = zeros | stages.to(tl.uint32)[:, None]
    key0 = zeros | seed.to(tl.uint32)
    key1 = zeros | (seed >> 32).to(tl.uint32)
    word0, word1, word2, word3 = tl.philox_impl(counter0, counter1, counter2, counter3, key0, key1, 10)
    # [R, LANES / 4, 2, 2]: the last two axes are the high and the low bit of the index of the word.
    words = tl.join(tl.join(word0, word2), tl.join(word1, word3))
    words = tl.reshape(words, [steps.shape[0], LANES])
    return ((words >> 9).to(tl.float32) + 0.5) * (2.0**-23)


@triton.jit
def gumbel_lanes(seed, rows, stages, steps, LANES: tl.constexpr):
    """Return Gumbel noise `[R, LANES]` from `uniform_lanes`: the argmax of logits / temperature + noise is a sample."""
    return -tl.log(-tl.log(uniform_lanes(seed, rows, stages, steps, LANES)))
