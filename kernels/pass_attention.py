"""Attention of a first pass: the queries of many tokens of each row over the cache, which holds their keys and values.

All rows have the same layout: a prefix, and branches behind it that share the prefix and do not attend to each other.
Fused attention of libraries pads heads of 16 components to 64 and reads a mask of all pairs. Here a program holds the
queries of a block of tokens, and reads the blocks of slots that one of them attends to.

Sums, softmax and weights are float32 for all dtypes; weights are rounded to the dtype of the values for the product.
Products of float32 are three products of TF32 on a GPU, which is as exact as float32 but for the last bits.

Legend: B rows, T tokens of a row, H heads, S slots of a row, K head size.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sector.kernels._triton import (
    FLOATS,
    expect,
    next_power_of_2,
    num_programs,
    product,
    round_to,
    runs_kernel,
    tl,
    triton,
)
from sector.kernels.decode_attention import visible
from sector.kernels.layer import check_cache

# Tokens of a program, and slots that it reads at a time.
_BLOCK_TOKENS, _BLOCK_SLOTS = 64, 32
# The smallest extent of a product.
_LEAST = 16


@dataclass(frozen=True, slots=True)
class Spans:
    """The slots that each token of a row attends to: those of the prefix and of its own branch, up to itself.

    slots: `[T]` int64, the slot of the token.
    starts: `[T]` int64, the first slot of its branch; 0 for tokens of the prefix.
    prefix_length: slots of the prefix, which come first.
    """

    slots: Tensor
    starts: Tensor
    prefix_length: int

    def since(self, token: int) -> "Spans":
        """Return the spans of the tokens from one on."""
        return Spans(self.slots[token:], self.starts[token:], self.prefix_length)

    def visible(self, num_slots: int) -> Tensor:
        """Return `[T, S]` bool: the slots that each token attends to."""
        return visible(self.slots, self.starts, self.prefix_length, num_slots)


def pass_attention(queries: Tensor, keys: Tensor, values: Tensor, spans: Spans) -> Tensor:
    """Return the attended values `[B, T, HK]`.

    queries: `[B, T, H, K]`, rotated. They may be the last tokens of more: only a row's must be side by side.
    keys, values: `[>= B, H, S, K]` the cache, of equal strides, without NaN; row b of the batch is row b of the cache.
    spans: the slots that each token attends to.
    """
    batch, length, heads, size = queries.shape
    expect("queries", queries, (None, None, None, None), FLOATS, queries.device, contiguous=False)
    if queries.stride(0) % (heads * size) or not queries[:1].is_contiguous():
        raise ValueError(f"queries must have rows of whole tokens, side by side, not strides {queries.stride()}")
    expect("keys", keys, (None, heads, None, size), queries.dtype, queries.device, contiguous=False)
    expect("values", values, tuple(keys.shape), queries.dtype, queries.device, contiguous=False)
    expect("slots", spans.slots, (length,), torch.int64, queries.device)
    expect("starts", spans.starts, (length,), torch.int64, queries.device)
    check_cache(keys, values, batch)
    return (pass_attention_kernel if runs_kernel(queries) else pass_attention_reference)(queries, keys, values, spans)


def pass_attention_reference(queries: Tensor, keys: Tensor, values: Tensor, spans: Spans) -> Tensor:
    """Compute `pass_attention` in plain torch."""
    past = keys[: len(queries)], values[: len(queries)]
    mask = spans.visible(keys.shape[2])
    attended = F.scaled_dot_product_attention(queries.transpose(1, 2), *past, attn_mask=mask)
    return attended.transpose(1, 2).flatten(2)


def pass_attention_kernel(queries: Tensor, keys: Tensor, values: Tensor, spans: Spans) -> Tensor:
    """Compute `pass_attention` with the Triton kernel."""
    batch, length, heads, size = queries.shape
    out = torch.empty(batch, length, heads * size, dtype=queries.dtype, device=queries.device)
    blocks = num_programs(length, _BLOCK_TOKENS)
    if batch * blocks == 0:
        return out
    _pass_attention_kernel[(batch * blocks, heads)](
        queries,
        keys,
        values,
        spans.slots,
        spans.starts,
        out,
        keys.stride(0),
        keys.stride(1),
        keys.stride(2),
        length,
        queries.stride(0) // (heads * size),
        spans.prefix_length,
        heads,
        size**-0.5,
        SIZE=size,
        BLOCK_SIZE=max(_LEAST, next_power_of_2(size)),
        BLOCK_TOKENS=_BLOCK_TOKENS,
        BLOCK_SLOTS=_BLOCK_SLOTS,
        num_warps=4,
    )
    return out


@triton.jit
def _sees(o_slots, b_slot, b_start, prefix_length):
    """Return `[T, S]` whether each token attends to each slot: the kernel's `Spans.visible`."""
    b_own = (o_slots[None, :] < prefix_length) | (o_slots[None, :] >= b_start[:, None])
    return b_own & (o_slots[None, :] <= b_slot[:, None])


@triton.jit
def _attend(b_scores, b_values, b_most, b_total, b_sum, PRECISION: tl.constexpr):
    """Add slots to a softmax: return its largest score `[T]`, sum of weights `[T]` and sum of values `[T, K]`.

    b_scores: `[T, S]`, -inf where a token does not attend to a slot.
    b_values: `[S, K]`.
    """
    b_new = tl.maximum(b_most, tl.max(b_scores, axis=1))
    # Tokens that saw no slot yet have no maximum.
    b_finite = tl.where(b_new == float("-inf"), 0.0, b_new)
    b_shares = tl.exp(b_scores - b_finite[:, None])
    b_kept = tl.exp(b_most - b_finite)
    b_total = b_total * b_kept + tl.sum(b_shares, axis=1)
    b_sum = product(round_to(b_shares, b_values.dtype), b_values, b_sum * b_kept[:, None], PRECISION)
    return b_new, b_total, b_sum


@triton.jit
def attend_to_cache(
    b_queries,
    keys_ptr,
    values_ptr,
    b_slot,
    b_start,
    prefix_length,
    stride_slot,
    scale,
    SIZE: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the attended values `[T, K]` float32 of the tokens of one row, in one head.

    b_queries: `[T, K]` in the dtype of the cache; K is rounded up from SIZE.
    keys_ptr, values_ptr: the row and the head in the cache.
    b_slot: `[T]` the slot of each token; -1 for tokens past the end.
    b_start: `[T]` the first slot of its branch; 0 for tokens of the prefix.
    PRECISION: how to multiply float32, as `tl.dot` names it.
    """
    BLOCK_TOKENS: tl.constexpr = b_queries.shape[0]
    BLOCK_SIZE: tl.constexpr = b_queries.shape[1]
    o_size = tl.arange(0, BLOCK_SIZE)[None, :]
    last = tl.max(b_slot)
    b_most = tl.full([BLOCK_TOKENS], float("-inf"), tl.float32)
    b_total = tl.zeros([BLOCK_TOKENS], tl.float32)
    b_sum = tl.zeros([BLOCK_TOKENS, BLOCK_SIZE], tl.float32)
    for start in range(0, last + 1, BLOCK_SLOTS):
        o_slots = start + tl.arange(0, BLOCK_SLOTS)
        b_visible = _sees(o_slots, b_slot, b_start, prefix_length)
        # Not the blocks of another branch.
        if tl.max(b_visible.to(tl.int32)) > 0:
            o_past = o_slots[:, None] * stride_slot + o_size
            m_past = (o_slots <= last)[:, None] & (o_size < SIZE)
            b_keys = tl.load(keys_ptr + o_past, mask=m_past, other=0.0)
            b_values = tl.load(values_ptr + o_past, mask=m_past, other=0.0)
            b_zeros = tl.zeros([BLOCK_TOKENS, BLOCK_SLOTS], tl.float32)
            b_scores = product(b_queries, tl.trans(b_keys), b_zeros, PRECISION) * scale
            b_scores = tl.where(b_visible, b_scores, float("-inf"))
            b_most, b_total, b_sum = _attend(b_scores, b_values, b_most, b_total, b_sum, PRECISION)
    # Tokens past the end saw none.
    return b_sum / tl.where(b_slot >= 0, b_total, 1.0)[:, None]


# Strides are fixed for a cache, and specialized, as in `decode_attention`.
@triton.jit(
    do_not_specialize=["length", "row_tokens", "prefix_length", "num_heads"],
    # Spans may begin at any token.
    do_not_specialize_on_alignment=["slots_ptr", "starts_ptr"],
)
def _pass_attention_kernel(
    queries_ptr,  # [B, row_tokens, H, K], of which each row's first T are read
    keys_ptr,  # [B, H, S, K]
    values_ptr,  # [B, H, S, K]
    slots_ptr,  # [T]
    starts_ptr,  # [T]
    out_ptr,  # [B, T, H, K]
    stride_row,
    stride_head,
    stride_slot,
    length,
    row_tokens,
    prefix_length,
    num_heads,
    scale,
    SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
):
    """Attend for a block of tokens of one row, and one head."""
    blocks = tl.cdiv(length, BLOCK_TOKENS)
    i_row = (tl.program_id(0) // blocks).to(tl.int64)
    i_head = tl.program_id(1)
    o_tokens = (tl.program_id(0) % blocks) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    o_size = tl.arange(0, BLOCK_SIZE)[None, :]
    m_tokens = o_tokens < length
    b_slot = tl.load(slots_ptr + o_tokens, mask=m_tokens, other=-1).to(tl.int32)
    b_start = tl.load(starts_ptr + o_tokens, mask=m_tokens, other=0).to(tl.int32)

    o_head = o_tokens[:, None] * (num_heads * SIZE) + i_head * SIZE + o_size
    m_queries = m_tokens[:, None] & (o_size < SIZE)
    b_queries = tl.load(queries_ptr + i_row * row_tokens * (num_heads * SIZE) + o_head, mask=m_queries, other=0.0)
    o_cache = i_row * stride_row + i_head * stride_head
    b_out = attend_to_cache(
        b_queries,
        keys_ptr + o_cache,
        values_ptr + o_cache,
        b_slot,
        b_start,
        prefix_length,
        stride_slot,
        scale,
        SIZE,
        BLOCK_SLOTS,
        "tf32x3",
    )
    p_out = out_ptr + i_row * length * (num_heads * SIZE) + o_head
    tl.store(p_out, round_to(b_out, out_ptr.dtype.element_ty), mask=m_queries)
