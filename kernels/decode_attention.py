"""Decode attention: rotate by place, append to the cache, and attend, for one new token per row over a short context.

A row of the cache holds a prefix and the branches behind it. Branches share the prefix and do not attend to each other.
A new token attends to the prefix `[0, prefix_length)` and to its own branch `[start, slot]`, itself included. Other
slots may hold any values, NaN included. Rows are addressed by index, so that a batch shrinks as rows finish while the
cache stays in place.

Arithmetic is float32 for all dtypes. Keys and values are used as the cache rounds them, the new ones too.

Legend: R new tokens, B rows of the cache, H heads, S slots of a row, K head size, P places.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sector.kernels._triton import (
    FLOATS,
    block_rows,
    expect,
    next_power_of_2,
    num_programs,
    round_to,
    runs_kernel,
    tl,
    triton,
)
from sector.kernels.layer import rotate

# Slots that a program reads at a time, and rows per compiled program: 64 KiB of keys and values in float32 at head size
# 32, which four warps hold in registers.
_BLOCK_SLOTS = 32
_COMPILED_ROWS = 4


@dataclass(frozen=True, slots=True)
class Positions:
    """Cache positions of the new tokens, all `[R]` int64, with prefix_lengths <= starts <= slots < S.

    rows: the row of the cache, at most once per branch. A negative row is idle: its output is zero, and the cache is
        not touched.
    slots: the slot of the new token.
    starts: the first slot of its branch.
    prefix_lengths: the number of slots of the shared prefix.
    """

    rows: Tensor
    slots: Tensor
    starts: Tensor
    prefix_lengths: Tensor


def decode_attention(
    qkv: Tensor, places: Tensor, rope: Tensor, keys: Tensor, values: Tensor, at: Positions, out: Tensor | None = None
) -> Tensor:
    """Append new keys and values to the cache in place, and return the attended values `[R, HK]`.

    qkv: `[R, 3HK]` queries, keys and values of the new tokens.
    places: `[R]` int64.
    rope: `[P, 2, K/2]` float32 cosines and sines of each place; the halves of a head are the two components.
    keys, values: `[B, H, S, K]` the cache.
    at: the cache positions of the new tokens.
    out: `[R, HK]` optional memory for the result.
    """
    _check(qkv, places, rope, keys, values, at, out)
    if runs_kernel(qkv):
        return decode_attention_kernel(qkv, places, rope, keys, values, at, out)
    attended = decode_attention_reference(qkv, places, rope, keys, values, at)
    return attended if out is None else out.copy_(attended)


def decode_attention_reference(
    qkv: Tensor, places: Tensor, rope: Tensor, keys: Tensor, values: Tensor, at: Positions
) -> Tensor:
    """Compute `decode_attention` in plain torch."""
    count, (_, heads, num_slots, size) = len(qkv), keys.shape
    query, key, value = qkv.float().view(count, 3, heads, size).unbind(1)
    cos, sin = rope[places].unsqueeze(2).unbind(1)
    query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    active = at.rows >= 0
    rows, slots = at.rows[active], at.slots[active]
    keys[rows, :, slots] = key[active].to(keys.dtype)
    values[rows, :, slots] = value[active].to(values.dtype)
    seen = visible(at.slots, at.starts, at.prefix_lengths.unsqueeze(1), num_slots).unsqueeze(1)
    scores = torch.einsum("rhk,rhsk->rhs", query, keys[at.rows.clamp(min=0)].float()) * size**-0.5
    weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=2)
    # A masked slot may hold NaN, and 0 * NaN is NaN.
    seen_values = values[at.rows.clamp(min=0)].float().masked_fill(~seen.unsqueeze(3), 0)
    attended = torch.einsum("rhs,rhsk->rhk", weights, seen_values).flatten(1)
    return attended.masked_fill(~active.unsqueeze(1), 0).to(qkv.dtype)


def decode_attention_kernel(
    qkv: Tensor, places: Tensor, rope: Tensor, keys: Tensor, values: Tensor, at: Positions, out: Tensor | None = None
) -> Tensor:
    """Compute `decode_attention` with the Triton kernel."""
    count, (_, heads, _, size) = len(qkv), keys.shape
    if out is None:
        out = torch.empty(count, heads * size, dtype=qkv.dtype, device=qkv.device)
    if count == 0:
        return out
    block = block_rows(count, compiled=_COMPILED_ROWS)
    _decode_attention_kernel[(num_programs(count, block), heads)](
        qkv,
        places,
        rope,
        keys,
        values,
        at.rows,
        at.slots,
        at.starts,
        at.prefix_lengths,
        out,
        keys.stride(0),
        keys.stride(1),
        keys.stride(2),
        count,
        heads,
        size**-0.5,
        HALF=size // 2,
        BLOCK_HALF=next_power_of_2(size // 2),
        BLOCK_ROWS=block,
        BLOCK_SLOTS=_BLOCK_SLOTS,
        num_warps=4,
    )
    return out


def _check(
    qkv: Tensor, places: Tensor, rope: Tensor, keys: Tensor, values: Tensor, at: Positions, out: Tensor | None
) -> None:
    """Raise ValueError unless shapes, dtypes, strides and devices are as the kernel expects.

    Values are not checked: reading them would wait for the device.
    """
    expect("keys", keys, (None, None, None, None), FLOATS, qkv.device, contiguous=False)
    expect("values", values, tuple(keys.shape), keys.dtype, qkv.device, contiguous=False)
    if keys.stride(3) != 1 or keys.stride() != values.stride():
        raise ValueError(
            "keys and values must have the same strides and adjacent components, "
            f"not strides {keys.stride()} and {values.stride()}"
        )
    count, (_, heads, _, size) = len(qkv), keys.shape
    if size % 2:
        raise ValueError(f"the head size must be even, a head rotates pairs; it is {size}")
    expect("qkv", qkv, (count, 3 * heads * size), FLOATS, qkv.device)
    expect("rope", rope, (None, 2, size // 2), torch.float32, qkv.device)
    positions = {"rows": at.rows, "slots": at.slots, "starts": at.starts, "prefix_lengths": at.prefix_lengths}
    for name, tensor in {"places": places, **positions}.items():
        expect(name, tensor, (count,), torch.int64, qkv.device)
    if out is not None:
        expect("out", out, (count, heads * size), qkv.dtype, qkv.device)


def visible(slots: Tensor, starts: Tensor, prefix_length: Tensor | int, num_slots: int) -> Tensor:
    """Return `[R, S]` bool: the slots that each token attends to.

    slots: `[R]` slot of the token.
    starts: `[R]` first slot of its branch.
    prefix_length: `[R, 1]`, or one for all: number of slots of the prefix.
    """
    all_slots = torch.arange(num_slots, device=slots.device)
    own = (all_slots < prefix_length) | (all_slots >= starts.unsqueeze(1))
    return own & (all_slots <= slots.unsqueeze(1))


# Strides are fixed for a cache, and specialized: if Triton knows them to be multiples of 16, loads are 16 bytes wide.
@triton.jit(do_not_specialize=["num_rows", "num_heads"])
def _decode_attention_kernel(
    qkv_ptr,  # [R, 3, H, K]
    places_ptr,  # [R]
    rope_ptr,  # [P, 2, K/2]
    keys_ptr,  # [B, H, S, K]
    values_ptr,  # [B, H, S, K]
    rows_ptr,  # [R]
    slots_ptr,  # [R]
    starts_ptr,  # [R]
    prefix_lengths_ptr,  # [R]
    out_ptr,  # [R, H, K]
    stride_row,
    stride_head,
    stride_slot,
    num_rows,
    num_heads,
    scale,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
):
    """Attend for a block of rows and one head. A program holds a head as two halves, the components of its rotation."""
    i_head = tl.program_id(1)
    o_rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_half = tl.arange(0, BLOCK_HALF)[None, :]
    m_all = o_rows < num_rows
    b_row = tl.load(rows_ptr + o_rows, mask=m_all, other=-1)
    m_rows = b_row >= 0
    b_slot = tl.load(slots_ptr + o_rows, mask=m_rows, other=0)
    b_start = tl.load(starts_ptr + o_rows, mask=m_rows, other=0)[:, None]
    b_prefix = tl.load(prefix_lengths_ptr + o_rows, mask=m_rows, other=0)[:, None]
    mask = m_rows[:, None] & (o_half < HALF)

    b_place = tl.load(places_ptr + o_rows, mask=m_rows, other=0)
    p_rope = rope_ptr + b_place[:, None] * (2 * HALF) + o_half
    b_cos = tl.load(p_rope, mask=mask, other=0.0)
    b_sin = tl.load(p_rope + HALF, mask=mask, other=0.0)

    width = num_heads * 2 * HALF
    p_query = qkv_ptr + o_rows.to(tl.int64)[:, None] * (3 * width) + i_head * 2 * HALF + o_half
    b_real = tl.load(p_query, mask=mask, other=0.0).to(tl.float32)
    b_imag = tl.load(p_query + HALF, mask=mask, other=0.0).to(tl.float32)
    b_query_real = (b_real * b_cos - b_imag * b_sin) * scale
    b_query_imag = (b_imag * b_cos + b_real * b_sin) * scale

    b_real = tl.load(p_query + width, mask=mask, other=0.0).to(tl.float32)
    b_imag = tl.load(p_query + width + HALF, mask=mask, other=0.0).to(tl.float32)
    b_key_real = round_to(b_real * b_cos - b_imag * b_sin, keys_ptr.dtype.element_ty)
    b_key_imag = round_to(b_imag * b_cos + b_real * b_sin, keys_ptr.dtype.element_ty)
    b_low = tl.load(p_query + 2 * width, mask=mask, other=0.0).to(tl.float32)
    b_high = tl.load(p_query + 2 * width + HALF, mask=mask, other=0.0).to(tl.float32)
    b_value_low = round_to(b_low, values_ptr.dtype.element_ty)
    b_value_high = round_to(b_high, values_ptr.dtype.element_ty)

    o_cache = b_row * stride_row + i_head.to(tl.int64) * stride_head
    o_new = (o_cache + b_slot * stride_slot)[:, None] + o_half
    tl.store(keys_ptr + o_new, b_key_real, mask=mask)
    tl.store(keys_ptr + o_new + HALF, b_key_imag, mask=mask)
    tl.store(values_ptr + o_new, b_value_low, mask=mask)
    tl.store(values_ptr + o_new + HALF, b_value_high, mask=mask)

    # The new token attends to itself from registers, since other threads may not see its stores yet. Its score also
    # makes every maximum finite. The loop below is an online softmax over the earlier slots.
    b_products = b_query_real * b_key_real.to(tl.float32) + b_query_imag * b_key_imag.to(tl.float32)
    b_highest = tl.sum(b_products, axis=1)
    b_total = tl.full([BLOCK_ROWS], 1.0, dtype=tl.float32)
    b_low = b_value_low.to(tl.float32)
    b_high = b_value_high.to(tl.float32)
    # No row of the block attends to later slots.
    num_slots = tl.max(b_slot, axis=0)
    for start in range(0, num_slots, BLOCK_SLOTS):
        o_slots = start + tl.arange(0, BLOCK_SLOTS)[None, :]
        m_branch = (o_slots >= b_start) & (o_slots < b_slot[:, None])
        m_slots = ((o_slots < b_prefix) | m_branch) & m_rows[:, None]
        o_old = (o_cache[:, None] + o_slots.to(tl.int64) * stride_slot)[:, :, None] + o_half[:, None, :]
        m_old = m_slots[:, :, None] & (o_half < HALF)[:, None, :]
        b_old_real = tl.load(keys_ptr + o_old, mask=m_old, other=0.0).to(tl.float32)
        b_old_imag = tl.load(keys_ptr + o_old + HALF, mask=m_old, other=0.0).to(tl.float32)
        b_old_products = b_query_real[:, None, :] * b_old_real + b_query_imag[:, None, :] * b_old_imag
        b_scores = tl.where(m_slots, tl.sum(b_old_products, axis=2), float("-inf"))
        b_new_highest = tl.maximum(b_highest, tl.max(b_scores, axis=1))
        b_fade = tl.exp(b_highest - b_new_highest)
        b_weights = tl.exp(b_scores - b_new_highest[:, None])
        b_highest = b_new_highest
        b_total = b_total * b_fade + tl.sum(b_weights, axis=1)
        b_old_low = tl.load(values_ptr + o_old, mask=m_old, other=0.0).to(tl.float32)
        b_old_high = tl.load(values_ptr + o_old + HALF, mask=m_old, other=0.0).to(tl.float32)
        b_low = b_low * b_fade[:, None] + tl.sum(b_weights[:, :, None] * b_old_low, axis=1)
        b_high = b_high * b_fade[:, None] + tl.sum(b_weights[:, :, None] * b_old_high, axis=1)

    p_out = out_ptr + o_rows.to(tl.int64)[:, None] * width + i_head * 2 * HALF + o_half
    m_out = m_all[:, None] & (o_half < HALF)
    # An idle row has loaded zeros, and stores zeros.
    tl.store(p_out, round_to(b_low / b_total[:, None], out_ptr.dtype.element_ty), mask=m_out)
    tl.store(p_out + HALF, round_to(b_high / b_total[:, None], out_ptr.dtype.element_ty), mask=m_out)
