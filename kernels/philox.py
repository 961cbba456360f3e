"""Philox4x32-10, the counter-based random stream (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

A draw depends on its key and counter alone, so a row's sample does not depend on the batch it is in. This is the
plain-torch reference; 32-bit words live in int64 tensors.
"""

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
_ROUNDS = 10


def philox_4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Four 32-bit words of counter (broadcastable int64 tensors) and a 64-bit key -> four random 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The int64 product wraps modulo 2^64, which leaves both halves right once masked.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _MASK) ^ c1 ^ k0,
            product1 & _MASK,
            ((product0 >> 32) & _MASK) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


def uniforms(seed: int, rows: Tensor, stage: int, steps: Tensor, lanes: int) -> Tensor:
    """Uniforms in (0, 1) for each row, step and lane.

    seed: 64 bits, the key. rows, steps: broadcastable int64 tensors `[...]`; a row is a problem's index in its stream.
    stage: which generation of that problem. lanes: a multiple of 4. Returns float32 `[..., lanes]`.
    """
    if lanes % 4:
        raise ValueError(f"lanes must be a multiple of 4, got {lanes}")
    rows, steps = torch.broadcast_tensors(rows, steps)
    blocks = torch.arange(lanes // 4, device=rows.device)
    rows, steps = rows.unsqueeze(-1), steps.unsqueeze(-1)
    counter = (rows & _MASK, (rows >> 32) & _MASK, (steps << 8) | blocks, torch.full_like(steps, stage))
    words = philox_4x32(counter, (seed & _MASK, (seed >> 32) & _MASK))
    # 23 bits and half a step are 24 bits: exact in float32, never 0 or 1.
    return torch.stack([((word >> 9).float() + 0.5) * 2.0**-23 for word in words], dim=-1).flatten(-2)
