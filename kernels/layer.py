"""The parts of a layer between its matrix products, for many tokens at once: each reads and writes memory once.

Between two products a small model is bound by memory, and plain torch reads and writes each intermediate: about 60
kilobytes a token for the preset tiny in float32. These kernels halve that.

Arithmetic is float32 for all dtypes.

Legend: N tokens, B rows, T tokens of a row, D hidden size, F features of the feed-forward, H heads, K head size,
S slots of a row of the cache, P places.
"""

import torch
import torch.nn.functional as F
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

# Numbers that a compiled program holds at a time: eight a thread.
_COMPILED_NUMBERS = 1024
_INTERPRETED_NUMBERS = 1 << 16


def add_norm(x: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Add an update to the residual stream in place, and return its RMS norm `[N, D]` in the dtype of the weight.

    x: `[N, D]` float32, the residual stream.
    update: `[N, D]`; None adds nothing.
    weight: `[D]`.
    """
    expect("x", x, (None, None), torch.float32, x.device)
    expect("weight", weight, (x.shape[1],), FLOATS, x.device)
    if update is not None:
        expect("update", update, tuple(x.shape), FLOATS, x.device)
    return (add_norm_kernel if runs_kernel(x) else add_norm_reference)(x, update, weight, eps)


def add_norm_reference(x: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Compute `add_norm` in plain torch."""
    if update is not None:
        x += update
    return F.rms_norm(x, weight.shape, weight.float(), eps).to(weight.dtype)


def add_norm_kernel(x: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Compute `add_norm` with the Triton kernel."""
    count, hidden = x.shape
    out = torch.empty(x.shape, dtype=weight.dtype, device=x.device)
    if count == 0:
        return out
    width = next_power_of_2(hidden)
    block = block_rows(count, compiled=max(1, 4 * _COMPILED_NUMBERS // width))
    _add_norm_kernel[(num_programs(count, block),)](
        x,
        x if update is None else update,
        weight,
        out,
        count,
        eps,
        HIDDEN=hidden,
        BLOCK_HIDDEN=width,
        BLOCK_ROWS=block,
        ADDS=update is not None,
        num_warps=4,
    )
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `[..., K]` by the angles of `[..., K/2]` cosines and sines; the halves of K are the two components."""
    real, imaginary = x.chunk(2, dim=-1)
    return torch.cat([real * cos - imaginary * sin, imaginary * cos + real * sin], dim=-1)


def rotate_to_cache(qkv: Tensor, places: Tensor, slots: Tensor, rope: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Rotate queries and keys by place, write keys and values to the cache, and return the queries `[B, T, H, K]`.

    qkv: `[B, T, 3HK]` queries, keys and values of the tokens.
    places: `[B, T]` int64.
    slots: `[T]` int64, the slot of each token of a row.
    rope: `[P, 2, K/2]` float32 cosines and sines of each place; the halves of a head are the two components.
    keys, values: `[>= B, H, S, K]` the cache, of equal strides; row b of the batch is row b of the cache.
    """
    (batch, length, _), (_, heads, _, size) = qkv.shape, keys.shape
    expect("keys", keys, (None, None, None, None), FLOATS, qkv.device, contiguous=False)
    expect("values", values, tuple(keys.shape), keys.dtype, qkv.device, contiguous=False)
    expect("qkv", qkv, (batch, length, 3 * heads * size), FLOATS, qkv.device)
    expect("places", places, (batch, length), torch.int64, qkv.device)
    expect("slots", slots, (length,), torch.int64, qkv.device)
    expect("rope", rope, (None, 2, size // 2), torch.float32, qkv.device)
    check_cache(keys, values, batch)
    run = rotate_to_cache_kernel if runs_kernel(qkv) else rotate_to_cache_reference
    return run(qkv, places, slots, rope, keys, values)


def check_cache(keys: Tensor, values: Tensor, batch: int) -> None:
    """Raise ValueError unless a cache has a row for each of a batch, and keys and values as kernels read them."""
    if len(keys) < batch or keys.stride(3) != 1 or keys.stride() != values.stride():
        raise ValueError(
            "keys and values must have a row for each of the batch, the same strides and adjacent components, "
            f"not {len(keys)} rows and strides {keys.stride()} and {values.stride()}"
        )


def rotate_to_cache_reference(
    qkv: Tensor, places: Tensor, slots: Tensor, rope: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """Compute `rotate_to_cache` in plain torch."""
    batch, length, _ = qkv.shape
    query, key, value = qkv.view(batch, length, 3, keys.shape[1], keys.shape[3]).unbind(2)
    cos, sin = rope[places].unsqueeze(2).unbind(3)
    keys[:batch, :, slots] = rotate(key.float(), cos, sin).to(keys.dtype).transpose(1, 2)
    values[:batch, :, slots] = value.to(values.dtype).transpose(1, 2)
    return rotate(query.float(), cos, sin).to(qkv.dtype)


def rotate_to_cache_kernel(
    qkv: Tensor, places: Tensor, slots: Tensor, rope: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """Compute `rotate_to_cache` with the Triton kernel."""
    (batch, length, _), (_, heads, _, size) = qkv.shape, keys.shape
    queries = torch.empty(batch, length, heads, size, dtype=qkv.dtype, device=qkv.device)
    count = batch * length
    if count == 0:
        return queries
    width = next_power_of_2(heads) * next_power_of_2(size // 2)
    block = block_rows(count, compiled=max(1, _COMPILED_NUMBERS // width))
    _rotate_to_cache_kernel[(num_programs(count, block),)](
        qkv,
        places,
        slots,
        rope,
        keys,
        values,
        queries,
        keys.stride(0),
        keys.stride(1),
        keys.stride(2),
        count,
        length,
        HEADS=heads,
        HALF=size // 2,
        BLOCK_HEADS=next_power_of_2(heads),
        BLOCK_HALF=next_power_of_2(size // 2),
        BLOCK_ROWS=block,
        num_warps=4,
    )
    return queries


def square_of_relu_(x: Tensor) -> Tensor:
    """Replace `x [N, F]` by the square of its positive part, in place, and return it."""
    expect("x", x, (None, None), FLOATS, x.device)
    return (square_of_relu_kernel if runs_kernel(x) else square_of_relu_reference)(x)


def square_of_relu_reference(x: Tensor) -> Tensor:
    """Compute `square_of_relu_` in plain torch."""
    return x.relu_().square_()


def square_of_relu_kernel(x: Tensor) -> Tensor:
    """Compute `square_of_relu_` with the Triton kernel."""
    count = x.numel()
    block = block_rows(
        count, compiled=2 * _COMPILED_NUMBERS, smallest=min(_INTERPRETED_NUMBERS, next_power_of_2(count))
    )
    if count:
        _square_of_relu_kernel[(num_programs(count, block),)](x, count, BLOCK=block, num_warps=4)
    return x


@triton.jit(do_not_specialize=["num_rows"])
def _add_norm_kernel(
    x_ptr,  # [N, D]
    update_ptr,  # [N, D]
    weight_ptr,  # [D]
    out_ptr,  # [N, D]
    num_rows,
    eps,
    HIDDEN: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    ADDS: tl.constexpr,
):
    o_rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_hidden = tl.arange(0, BLOCK_HIDDEN)
    mask = (o_rows < num_rows)[:, None] & (o_hidden < HIDDEN)[None, :]
    o_x = o_rows[:, None] * HIDDEN + o_hidden[None, :]
    b_x = tl.load(x_ptr + o_x, mask=mask, other=0.0)
    if ADDS:
        b_x += tl.load(update_ptr + o_x, mask=mask, other=0.0).to(tl.float32)
        tl.store(x_ptr + o_x, b_x, mask=mask)
    b_scale = 1.0 / tl.sqrt_rn(tl.sum(b_x * b_x, axis=1) / HIDDEN + eps)
    b_weight = tl.load(weight_ptr + o_hidden, mask=o_hidden < HIDDEN, other=0.0).to(tl.float32)
    b_out = b_x * b_scale[:, None] * b_weight[None, :]
    tl.store(out_ptr + o_x, round_to(b_out, out_ptr.dtype.element_ty), mask=mask)


# Strides are specialized: if Triton knows them to be multiples of 16, stores are 16 bytes wide.
@triton.jit(do_not_specialize=["num_rows", "length"])
def _rotate_to_cache_kernel(
    qkv_ptr,  # [N, 3, H, K]
    places_ptr,  # [N]
    slots_ptr,  # [T]
    rope_ptr,  # [P, 2, K/2]
    keys_ptr,  # [B, H, S, K]
    values_ptr,  # [B, H, S, K]
    queries_ptr,  # [N, H, K]
    stride_row,
    stride_head,
    stride_slot,
    num_rows,
    length,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Rotate and store a block of tokens with all their heads. A head is held as the two components of its rotation."""
    WIDTH: tl.constexpr = 2 * HALF * HEADS
    o_rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_heads = tl.arange(0, BLOCK_HEADS)[None, :, None]
    o_half = tl.arange(0, BLOCK_HALF)[None, None, :]
    m_rows = o_rows < num_rows
    mask = m_rows[:, None, None] & (o_heads < HEADS) & (o_half < HALF)

    b_place = tl.load(places_ptr + o_rows, mask=m_rows, other=0)
    p_rope = rope_ptr + b_place[:, None, None] * (2 * HALF) + o_half
    m_rope = m_rows[:, None, None] & (o_half < HALF)
    b_cos = tl.load(p_rope, mask=m_rope, other=0.0)
    b_sin = tl.load(p_rope + HALF, mask=m_rope, other=0.0)

    o_own = o_heads * (2 * HALF) + o_half
    p_query = qkv_ptr + o_rows[:, None, None] * (3 * WIDTH) + o_own
    b_real = tl.load(p_query, mask=mask, other=0.0).to(tl.float32)
    b_imag = tl.load(p_query + HALF, mask=mask, other=0.0).to(tl.float32)
    p_out = queries_ptr + o_rows[:, None, None] * WIDTH + o_own
    tl.store(p_out, round_to(b_real * b_cos - b_imag * b_sin, queries_ptr.dtype.element_ty), mask=mask)
    tl.store(p_out + HALF, round_to(b_imag * b_cos + b_real * b_sin, queries_ptr.dtype.element_ty), mask=mask)

    b_slot = tl.load(slots_ptr + o_rows % length, mask=m_rows, other=0)
    o_cache = (o_rows // length * stride_row + b_slot * stride_slot)[:, None, None] + o_heads * stride_head + o_half
    b_real = tl.load(p_query + WIDTH, mask=mask, other=0.0).to(tl.float32)
    b_imag = tl.load(p_query + WIDTH + HALF, mask=mask, other=0.0).to(tl.float32)
    DTYPE: tl.constexpr = keys_ptr.dtype.element_ty
    tl.store(keys_ptr + o_cache, round_to(b_real * b_cos - b_imag * b_sin, DTYPE), mask=mask)
    tl.store(keys_ptr + o_cache + HALF, round_to(b_imag * b_cos + b_real * b_sin, DTYPE), mask=mask)
    b_low = tl.load(p_query + 2 * WIDTH, mask=mask, other=0.0).to(tl.float32)
    b_high = tl.load(p_query + 2 * WIDTH + HALF, mask=mask, other=0.0).to(tl.float32)
    tl.store(values_ptr + o_cache, round_to(b_low, DTYPE), mask=mask)
    tl.store(values_ptr + o_cache + HALF, round_to(b_high, DTYPE), mask=mask)


# The count is specialized: if Triton knows it to be a multiple of 16, loads are 16 bytes wide.
@triton.jit
def _square_of_relu_kernel(x_ptr, count, BLOCK: tl.constexpr):
    o_x = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_x = tl.maximum(tl.load(x_ptr + o_x, mask=o_x < count, other=0.0).to(tl.float32), 0.0)
    tl.store(x_ptr + o_x, round_to(b_x * b_x, x_ptr.dtype.element_ty), mask=o_x < count)
