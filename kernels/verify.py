"""Verification: one launch reads the whole first pass of a call, for a small model, and accepts drafts.

It does the work of `first_pass.py` at temperature 0 and leaves the same: keys and values of all rows in the cache,
accepted tokens in the output, and their counts. Kernel by kernel, a pass of the preset tiny is 33 launches, and between
them the activations go through memory. Here a program carries a row through all layers in registers.

Legend: B rows, J branches, T tokens of a row, U of them after the prefix, M tokens of a block, D hidden size, L layers,
H heads, S slots of a row, K head size, C classes, O tokens of the output.

Design
  1. A program reads its row in blocks of tokens. A block goes through all layers, then the next one: tokens attend to
     earlier ones only. So a row may have any length, and a model any count of layers.
  2. Head by head, keys and values go to the cache, where decoding looks for them. Queries attend to the cache, as in
     `pass_attention.py`, also to tokens that an earlier call left there. The residual stream `[M, D]` never leaves the
     registers.
  3. Rotation adds two products: of the components, and of those that they rotate with.
  4. After each token a class is chosen. A choice misses if the next token of its branch is another one. The choices up
     to the first miss are accepted. The counts of the branches go from block to block in registers.

Products of float32 are six products of parts in bfloat16, which leave out what is below the 24th bit. The three of TF32
that `pass_attention.py` takes would be as exact, and are 14 % more instructions here.

No GPU has run this kernel yet: docs/research/log.md says what is known of it.
"""

from dataclasses import replace

import torch
from torch import Tensor

from sector.kernels._triton import FLOATS, expect, next_power_of_2, round_to, runs_kernel, tl, triton
from sector.kernels.completion import Model
from sector.kernels.first_pass import PassLayout, first_pass
from sector.kernels.layer import check_cache
from sector.kernels.megakernel_plan import Plan, largest_divisor, make_plan
from sector.kernels.on_chip import class_logits, embedded, feed_forward, project, project_back, rms_norm
from sector.kernels.pass_attention import attend_to_cache
from sector.kernels.token_table import next_ids

# M, as many as four warps multiply at once; the slots and the features that a product takes at a time.
_BLOCK_TOKENS, _BLOCK_SLOTS, _BLOCK_FEATURES = 64, 32, 64
# Wider residual streams do not fit the registers: 128 would spill 672 bytes in float32.
_MOST_HIDDEN = 64
_ENDLESS = tl.constexpr(2**31 - 1)


def verify(model: Model, ids: Tensor, layout: PassLayout, cache: Tensor, output: Tensor) -> Tensor:
    """Return the count of accepted tokens of each branch `[J, B]` int64; they are the model's greedy choices.

    ids: `[B, T]` int64.
    cache: `[L, 2, >= B, H, S, K]` keys and values, without NaN; row b of the batch is row b of the cache.
    output: `[O]` int64. It gets the accepted tokens, with PAD behind them: the rows of the first branch one after
        another, then those of the second.
    """
    batch, device, (layers, _, hidden) = len(ids), ids.device, model.weights.up.shape
    size, written = hidden // model.num_heads, batch * sum(layout.limits)
    expect("ids", ids, (batch, len(layout.spans.slots)), torch.int64, device)
    expect("cache", cache, (layers, 2, None, model.num_heads, None, size), FLOATS, device, contiguous=False)
    expect("output", output, (None,), torch.int64, device)
    keys, values = cache[0]
    check_cache(keys, values, batch)
    if len(output) < written:
        raise ValueError(f"output must have room for {written} tokens, not {len(output)}")
    return (verify_kernel if runs_kernel(ids) else verify_reference)(model, ids, layout, cache, output)


def verify_reference(model: Model, ids: Tensor, layout: PassLayout, cache: Tensor, output: Tensor) -> Tensor:
    """Compute `verify` kernel by kernel, on a CPU in plain torch."""
    return first_pass(model, ids, layout, cache, output)


def verify_kernel(model: Model, ids: Tensor, layout: PassLayout, cache: Tensor, output: Tensor) -> Tensor:
    """Compute `verify` with one launch of the Triton kernel."""
    (batch, length), num_branches, plan = ids.shape, len(layout.limits), verify_plan(model)
    counts = ids.new_empty(num_branches, batch)
    if batch:
        _verify_kernel[(batch,)](
            model.weights,
            model.table.legal,
            model.table.mark_base,
            ids,
            layout.spans.slots,
            layout.spans.starts,
            layout.branches,
            layout.steps,
            layout.lengths,
            cache,
            output,
            counts,
            *cache.stride()[:5],
            length,
            layout.sizes[0],
            layout.spans.prefix_length,
            batch,
            num_branches,
            BLOCK_BRANCHES=next_power_of_2(num_branches),
            PLAN=plan,
            num_warps=plan.num_warps,
            num_stages=plan.num_stages,
        )
    return counts


def verify_plan(model: Model) -> Plan:
    """Return the plan for a model. Raise ValueError, naming the rule, if the kernel cannot run it."""
    plan = make_plan(model)
    if plan.inner < plan.hidden or plan.hidden > _MOST_HIDDEN:
        sizes = f"a power of two, at most {_MOST_HIDDEN}"
        raise ValueError(f"the hidden size must be {sizes}, to verify in one launch, not {plan.hidden}")
    if 2 * plan.half < 16:
        raise ValueError(f"heads must have at least 16 components to verify in one launch, not {2 * plan.half}")
    return replace(
        plan,
        tile_rows=1,
        prefill_tokens=_BLOCK_TOKENS,
        prefill_slots=_BLOCK_SLOTS,
        feature_block=largest_divisor(plan.features, _BLOCK_FEATURES),
        num_warps=4,
        num_stages=1,
        precision="bf16x6",
    )


@triton.jit
def _rotation(ids, weights, PLAN: tl.constexpr):
    """Return cosines and signed sines `[M, K]` of the components of a head, by the places of ids `[M]`."""
    o_size = tl.arange(0, 2 * PLAN.half)[None, :]
    p_rope = weights.rope + (ids // PLAN.token.num_local)[:, None] * (2 * PLAN.half) + o_size % PLAN.half
    return tl.load(p_rope), tl.where(o_size < PLAN.half, -1.0, 1.0) * tl.load(p_rope + PLAN.half)


@triton.jit
def _attention(
    x, normed, layer, head, b_ids, weights, keys_ptr, values_ptr, b_slot, b_start, prefix_length, stride_slot,
    PLAN: tl.constexpr,
):  # fmt: skip
    """Cache keys and values of a head; return the residual stream `[M, D]` plus its attention."""
    SIZE: tl.constexpr = 2 * PLAN.half
    SQUARE: tl.constexpr = PLAN.hidden * PLAN.hidden
    PRECISION: tl.constexpr = PLAN.precision
    DTYPE: tl.constexpr = keys_ptr.dtype.element_ty
    o_size = tl.arange(0, SIZE)
    own = head * SIZE + o_size
    # A component rotates with the one half a head away.
    other = head * SIZE + (o_size + PLAN.half) % SIZE
    query_ptr = weights.qkv + layer * (3 * SQUARE)
    key_ptr = query_ptr + SQUARE
    cos, sin = _rotation(b_ids, weights, PLAN)

    o_cache = b_slot[:, None] * stride_slot + o_size[None, :]
    m_tokens = (b_slot >= 0)[:, None]
    b_keys = project(normed, None, key_ptr, own, PLAN) * cos + project(normed, None, key_ptr, other, PLAN) * sin
    tl.store(keys_ptr + o_cache, round_to(b_keys, DTYPE), mask=m_tokens)
    b_values = project(normed, None, key_ptr + SQUARE, own, PLAN)
    tl.store(values_ptr + o_cache, round_to(b_values, DTYPE), mask=m_tokens)
    b_queries = project(normed, None, query_ptr, own, PLAN) * cos + project(normed, None, query_ptr, other, PLAN) * sin
    # Threads read each other's writes to the cache.
    tl.debug_barrier()
    y = attend_to_cache(
        round_to(b_queries, DTYPE), keys_ptr, values_ptr, b_slot, b_start, prefix_length, stride_slot, SIZE**-0.5,
        SIZE, PLAN.prefill_slots, PRECISION,
    )  # fmt: skip
    return project_back(y, weights.out + layer * SQUARE, own, x, PLAN.hidden, PLAN)


@triton.jit
def _pad(output_ptr, lengths_ptr, i_row, num_rows, num_branches, PLAN: tl.constexpr):
    """Fill the output of a row with padding."""
    o_tokens = tl.arange(0, PLAN.prefill_tokens)
    b_pad = tl.full([PLAN.prefill_tokens], PLAN.token.pad_id, tl.int64)
    for branch in tl.range(0, num_branches):
        limit = tl.load(lengths_ptr + branch).to(tl.int32)
        p_output = output_ptr + tl.load(lengths_ptr + num_branches + branch) * num_rows + i_row * limit
        for first in tl.range(0, limit, PLAN.prefill_tokens):
            tl.store(p_output + first + o_tokens, b_pad, mask=first + o_tokens < limit)


@triton.jit
def _accept(
    b_chosen, b_counts, ids_ptr, branches_ptr, steps_ptr, lengths_ptr, output_ptr, i_row, o_tokens, num_tokens,
    num_prefix, num_rows, num_branches,
):  # fmt: skip
    """Write the accepted choices of a block of tokens; return the counts `[J]` up to it.

    b_chosen: `[M]` the ids that follow the tokens.
    b_counts: `[J]` the counts up to the block before.
    """
    o_chosen = o_tokens - num_prefix
    m_chosen = (o_chosen >= 0) & (o_tokens < num_tokens)
    m_next = m_chosen & (o_tokens + 1 < num_tokens)
    b_branch = tl.load(branches_ptr + o_chosen, mask=m_chosen, other=-1).to(tl.int32)
    b_step = tl.load(steps_ptr + o_chosen, mask=m_chosen, other=0).to(tl.int32)
    # The last choice of a branch has no token to be compared with, which is as good as a miss.
    b_next_branch = tl.load(branches_ptr + o_chosen + 1, mask=m_next, other=-1).to(tl.int32)
    b_next = tl.load(ids_ptr + o_tokens + 1, mask=m_next, other=-1).to(tl.int32)
    m_misses = (b_next_branch != b_branch) | (b_next != b_chosen)

    m_own = b_branch[:, None] == tl.arange(0, b_counts.shape[0])[None, :]
    b_ends = tl.where(m_own & m_misses[:, None], b_step[:, None] + 1, _ENDLESS)
    b_counts = tl.minimum(b_counts, tl.min(b_ends, axis=0))
    m_accepted = m_chosen & (b_step < tl.sum(tl.where(m_own, b_counts[None, :], 0), axis=1))
    b_limit = tl.load(lengths_ptr + b_branch, mask=m_chosen, other=0)
    b_offset = tl.load(lengths_ptr + num_branches + b_branch, mask=m_chosen, other=0)
    tl.store(output_ptr + b_offset * num_rows + i_row * b_limit + b_step, b_chosen.to(tl.int64), mask=m_accepted)
    return b_counts


# Strides are fixed for a cache, and specialized, as in `decode_attention`. Loops compute their invariants anew
# (`disable_licm`): kept in registers, these would spill.
@triton.jit(do_not_specialize=["num_tokens", "num_prefix", "prefix_length", "num_rows", "num_branches"])
def _verify_kernel(
    weights,  # Weights
    legal_ptr,  # [C]
    mark_base_ptr,  # [C / 2]
    ids_ptr,  # [B, T]
    slots_ptr,  # [T]
    starts_ptr,  # [T]
    branches_ptr,  # [U]
    steps_ptr,  # [U]
    lengths_ptr,  # [2, J]
    cache_ptr,  # [L, 2, B, H, S, K]
    output_ptr,  # [O]
    counts_ptr,  # [J, B]
    stride_layer,
    stride_values,
    stride_row,
    stride_head,
    stride_slot,
    num_tokens,
    num_prefix,
    prefix_length,
    num_rows,
    num_branches,
    BLOCK_BRANCHES: tl.constexpr,
    PLAN: tl.constexpr,
):
    """Read a row."""
    TOKEN: tl.constexpr = PLAN.token
    i_row = tl.program_id(0).to(tl.int64)
    ids_ptr += i_row * num_tokens
    cache_ptr += i_row * stride_row
    _pad(output_ptr, lengths_ptr, i_row, num_rows, num_branches, PLAN)
    b_counts = tl.full([BLOCK_BRANCHES], _ENDLESS, tl.int32)
    for first in tl.range(0, num_tokens, PLAN.prefill_tokens, disable_licm=True):
        o_tokens = first + tl.arange(0, PLAN.prefill_tokens)
        m_tokens = o_tokens < num_tokens
        b_ids = tl.load(ids_ptr + o_tokens, mask=m_tokens, other=TOKEN.pad_id).to(tl.int32)
        b_slot = tl.load(slots_ptr + o_tokens, mask=m_tokens, other=-1).to(tl.int32)
        b_start = tl.load(starts_ptr + o_tokens, mask=m_tokens, other=0).to(tl.int32)
        x = embedded(b_ids, weights, PLAN)
        p_keys = cache_ptr
        for layer in tl.range(0, PLAN.layers, disable_licm=True):
            normed = rms_norm(x, None, weights.attention_norm + layer * PLAN.hidden, PLAN)
            for head in tl.range(0, PLAN.heads, disable_licm=True):
                p_head = p_keys + head * stride_head
                x = _attention(
                    x, normed, layer, head, b_ids, weights, p_head, p_head + stride_values, b_slot, b_start,
                    prefix_length, stride_slot, PLAN,
                )  # fmt: skip
            normed = rms_norm(x, None, weights.mlp_norm + layer * PLAN.hidden, PLAN)
            x = feed_forward(x, normed, None, layer, weights, PLAN)
            p_keys += stride_layer
        logits = class_logits(x, None, b_ids, weights, legal_ptr, PLAN)
        b_chosen = next_ids(b_ids, tl.argmax(logits, axis=1), mark_base_ptr, TOKEN)
        b_counts = _accept(
            b_chosen, b_counts, ids_ptr, branches_ptr, steps_ptr, lengths_ptr, output_ptr, i_row, o_tokens, num_tokens,
            num_prefix, num_rows, num_branches,
        )  # fmt: skip
    o_branches = tl.arange(0, BLOCK_BRANCHES)
    tl.store(counts_ptr + o_branches * num_rows + i_row, b_counts.to(tl.int64), mask=o_branches < num_branches)
