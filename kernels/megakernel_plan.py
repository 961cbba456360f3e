"""The plan of the megakernel: the block sizes, chosen for a model, and the constants compiled into it.

The letters are those of `megakernel.py`.
"""

from dataclasses import dataclass

import torch

from sector.kernels._triton import next_power_of_2
from sector.kernels.completion import Model
from sector.kernels.token_table import TokenConstants

# The smallest extent of any axis that `tl.dot` accepts.
_MIN_DOT = 16
# The largest hidden size that products take whole, without the scratch.
_WHOLE = 128
_LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class Plan:
    """Constants of the compiled kernel: its block sizes, the sizes of the model, and the constants of its tokens.

    tile_rows: R, at least 16.
    prefill_tokens: T of prefill.
    prefill_slots, decode_slots: slots that attention reads at a time.
    feature_block: features of the feed-forward, of F, that a product takes at a time.
    group_heads: heads, of H, that a product takes at a time.
    inner: hidden components, of D, that a product takes at a time; if it is D, there is no scratch.
    layers, hidden, heads, features: L, D, H, F.
    hidden_block: D rounded up to a power of two.
    half: K/2.
    token: constants of the tokens.
    precision: how float32 is multiplied, as `tl.dot` names it.
    """

    tile_rows: int
    prefill_tokens: int
    prefill_slots: int
    decode_slots: int
    feature_block: int
    group_heads: int
    inner: int
    num_warps: int
    num_stages: int
    layers: int
    hidden: int
    hidden_block: int
    heads: int
    half: int
    features: int
    token: TokenConstants
    eps: float
    precision: str

    @property
    def score_scale(self) -> float:
        """Factor of the queries: 1 / sqrt(K), times log2(e) since the softmax uses powers of two."""
        return (2 * self.half) ** -0.5 * _LOG2_E


def make_plan(model: Model) -> Plan:
    """Return the plan for a model. Raise ValueError, naming the rule, if the kernel cannot run it."""
    layers, features, hidden = model.weights.up.shape
    head_dim = hidden // model.num_heads
    if hidden % model.num_heads or head_dim != next_power_of_2(head_dim):
        raise ValueError(f"the size of a head must be a power of two, not {hidden}/{model.num_heads}")
    # With these sizes the presets compile for sm_90 with few or no spills (tests/test_kernels_compile.py); others, and
    # four warps, are compared on paper in docs/research/gpu_review.md.
    exact = model.weights.qkv.dtype == torch.float32
    whole = hidden <= _WHOLE and hidden == next_power_of_2(hidden)
    inner = hidden if whole else largest_divisor(hidden, 32 if exact else 64)
    block = largest_divisor(features, (32 if whole else 16) if exact else (64 if whole else 32))
    group = largest_divisor(model.num_heads, max(1, (64 if whole else 32) // head_dim))
    if min(inner, block, group * head_dim // 2) < _MIN_DOT:
        raise ValueError(
            f"blocks of less than {_MIN_DOT} cannot be multiplied: hidden size {hidden}, features {features} or "
            f"{model.num_heads} heads of {head_dim} do not divide into larger ones; decode by single kernels"
        )
    return Plan(
        tile_rows=16,
        prefill_tokens=2 if whole and not exact else 1,
        prefill_slots=2 if whole and not exact else 4,
        decode_slots=8 if whole else 4,
        feature_block=block,
        group_heads=group,
        inner=inner,
        num_warps=8,
        num_stages=2 if exact else 3,
        layers=layers,
        hidden=hidden,
        hidden_block=next_power_of_2(hidden),
        heads=model.num_heads,
        half=head_dim // 2,
        features=features,
        token=model.table.token,
        eps=model.eps,
        precision="ieee",
    )


def largest_divisor(size: int, limit: int) -> int:
    """Return the largest power of two that divides `size` and is at most `limit`, a power of two."""
    return min(size & -size, limit)
