"""Decode megakernel: one launch completes a whole batch, from the ids of the prefixes to the ids of every branch.

At the size of the presets a token takes a third of a million to thirty million operations. An engine with one kernel
per operation spends its time on the gaps between kernels (1.3-2.1 us each, some thirty per token) and on the host.
This kernel has no gaps: a program owns a tile of rows and carries it through all layers for all tokens. Programs do not
communicate, so no barrier spans the grid.

Legend: B rows of the batch, R rows of a tile, P prefix tokens, J branches, T tokens per row in one pass, M = R * T,
D hidden size (padded to a power of two in registers), L layers, H heads, G heads of a group, K head size, S slots,
F features of the feed-forward, C classes. A slot is the index of a token's key and value in the cache. A place is the
position that rotates them; it is part of the token's id.

Design
  1. Prefill: passes of T tokens per row over the prefix, in the same launch. The last layer stops at its keys and
     values, because the logits of a prefix are not needed.
  2. Decode: one branch after another, in passes of one token per row: first the mark, then the chosen tokens. Branches
     share the slots of the prefix, and each overwrites the slots of the branch before. A row that has ended is masked,
     and its cache is no longer read. A tile leaves a branch as soon as all its rows have ended.
  3. The residual stream `[M, D]` stays in registers. Attention goes by groups of heads and the feed-forward by blocks
     of features: each block is projected, used, and its contribution added to the stream. Only keys and values go to
     memory. Real and imaginary halves of queries and keys are projected separately, so that rotation is elementwise.
  4. If D is large, a product with all of it at once would overflow the registers. The normed stream then goes through a
     scratch buffer (resident in L1 and L2), and the products loop over blocks of it.
  5. Rows share no keys, so attention is a batch of matrix-vector products: vector arithmetic and an online softmax over
     blocks of slots. Products with weights use `tl.dot`.
  6. Logits, legality, temperature, Gumbel noise (`philox.py`), choice and next id stay in registers.
  7. The grid is persistent: a program takes one tile after another and reuses one slab of cache. So L2 must hold the
     slabs of the running programs only, not the cache of the batch.

Arithmetic: float32 weights multiply in float32 (never tf32), so that greedy tokens equal those of the reference. With
bfloat16 weights, operands and cache are bfloat16, and sums, norms, softmax, logits and the choice are float32.

Bounds on an H100, computed with 3.0 TB/s for device memory, an assumed 5.5 TB/s for L2, 132 programs of 16 rows, 65
tokens of context, bfloat16. They are bounds, not results: on an H200 tiny generated at most 6.6 M tok/s at 20 digits in
bfloat16, and 3.4 M in float32 (docs/research/log.md).

    a token                                    tiny (3 x 64)            base (8 x 384)
    operations in weights + attention          0.30 + 0.05 MFLOP        28.3 + 0.8 MFLOP
    ... at 800 TFLOP/s                         2,300 M tok/s            27 M tok/s
    keys and values read, device memory        50 kB:  60 M tok/s       0.80 MB: 3.8 M tok/s
    weights read, L2 (whole by each program)   18 kB: 300 M tok/s       1.8 MB:  3.1 M tok/s

So tiny is bound by its cache if the batch is large, and base by weights and cache together, at 1.7 M tok/s; operations
bound neither. More rows per tile would read weights less often, but would need more than the 255 registers per thread
that sixteen rows already take. Slabs that fit in L2 (50 MB; tiny: 1,000 rows of 65 tokens) lift the bound of the cache.
The bounds leave out latency: a pass is a chain of about ten dependent steps per layer and one more per block of slots,
which bounds a small batch. The weights of tiny (295 kB) exceed shared memory (227 KiB), so every pass reads them from
L1 and L2.
"""

import torch
from torch import Tensor

from sector.kernels._triton import num_programs, runs_kernel, tl, triton
from sector.kernels.completion import CompletionRequest, Model, check_request, complete_reference
from sector.kernels.megakernel_plan import Plan, make_plan
from sector.kernels.on_chip import class_logits, embedded, feed_forward, project, project_back, rms_norm
from sector.kernels.philox import gumbel_lanes
from sector.kernels.token_table import next_ids


def complete(model: Model, request: CompletionRequest, logits: Tensor | None = None) -> list[Tensor]:
    """Return J completions `[B, length]` int64, with PAD after the end.

    logits: `[J, B, longest, C]` float32, optional output: the logits of each choice before temperature, -inf where
        illegal, NaN where no token was chosen.
    """
    check_request(model, request, logits)
    run = complete_kernel if runs_kernel(request.prefix) else complete_reference
    return run(model, request, logits)


def complete_kernel(
    model: Model, request: CompletionRequest, logits: Tensor | None = None, plan: Plan | None = None
) -> list[Tensor]:
    """Compute `complete` with one launch of the Triton kernel."""
    plan = make_plan(model) if plan is None else plan
    (batch, prefix_length), longest = request.prefix.shape, max(request.lengths)
    device, dtype = request.prefix.device, model.weights.qkv.dtype
    slots = prefix_length + longest
    if max(plan.layers * 2 * plan.tile_rows * slots * plan.hidden, len(request.lengths) * batch * slots) >= 2**31:
        raise ValueError("too many tokens for 32-bit offsets: cut the batch")
    output = torch.full((len(request.lengths), batch, longest), plan.token.pad_id, dtype=torch.int64, device=device)
    if logits is not None:
        logits.fill_(float("nan"))
    tiles = num_programs(batch, plan.tile_rows)
    programs = min(tiles, _resident_programs(device, plan))
    cache = torch.empty((programs, plan.layers, 2, plan.tile_rows, slots, plan.hidden), dtype=dtype, device=device)
    scratch = torch.empty((programs, plan.tile_rows * plan.prefill_tokens, plan.hidden), dtype=dtype, device=device)
    if batch:
        _complete_kernel[(programs,)](
            model.weights,
            model.table.legal,
            model.table.mark_base,
            request.prefix,
            request.marks,
            torch.tensor(tuple(request.lengths), dtype=torch.int32).to(device, non_blocking=True),
            request.rows,
            cache,
            scratch,
            output,
            logits,
            batch,
            tiles,
            prefix_length,
            len(request.lengths),
            longest,
            slots,
            _signed_word(request.seed),
            _signed_word(request.seed >> 32),
            request.stage,
            float(request.temperature),
            SAMPLE=request.temperature > 0,
            PLAN=plan,
            num_warps=plan.num_warps,
            num_stages=plan.num_stages,
        )
    return [output[branch, :, :length] for branch, length in enumerate(request.lengths)]


def _resident_programs(device: torch.device, plan: Plan) -> int:
    """Return the number of programs that run at a time, 2 if interpreted.

    The registers of an SM hold eight warps at the maximum of registers per thread.
    """
    if device.type != "cuda":
        return 2
    return max(1, 8 // plan.num_warps) * torch.cuda.get_device_properties(device).multi_processor_count


def _signed_word(value: int) -> int:
    """Return the low 32 bits as a signed number, so that all seeds give arguments of the same type."""
    return ((value & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


@triton.jit
def _read(ids, weights, PLAN: tl.constexpr):
    """Return embeddings `[M, D]` of ids `[M]`, and cosines and sines `[M, G * K/2]` of the pairs of a head group."""
    pairs = tl.arange(0, PLAN.group_heads * PLAN.half) % PLAN.half
    rope = weights.rope + (ids // PLAN.token.num_local)[:, None] * (2 * PLAN.half) + pairs[None, :]
    return embedded(ids, weights, PLAN), tl.load(rope), tl.load(rope + PLAN.half)


@triton.jit
def _rotated(normed, scratch_ptr, weight_ptr, group, cos, sin, PLAN: tl.constexpr):
    """Return the rotated queries or keys of a group of heads: real and imaginary halves `[M, G * K/2]`."""
    pairs = tl.arange(0, PLAN.group_heads * PLAN.half)
    features = (group * PLAN.group_heads + pairs // PLAN.half) * (2 * PLAN.half) + pairs % PLAN.half
    real = project(normed, scratch_ptr, weight_ptr, features, PLAN)
    imaginary = project(normed, scratch_ptr, weight_ptr, features + PLAN.half, PLAN)
    return real * cos - imaginary * sin, imaginary * cos + real * sin


@triton.jit
def _keys_values(
    normed, layer, group, cos, sin, weights, cache_ptr, scratch_ptr, first_slot, num_slots, real, TOKENS: tl.constexpr,
    PLAN: tl.constexpr,
):  # fmt: skip
    """Return keys (two halves `[M, G * K/2]`) and values `[M, G * K]` of a head group; cache them where `real`."""
    SQUARE: tl.constexpr = PLAN.hidden * PLAN.hidden
    PAIRS: tl.constexpr = PLAN.group_heads * PLAN.half
    pairs = tl.arange(0, PAIRS)
    columns = group * (2 * PAIRS) + tl.arange(0, 2 * PAIRS)
    qkv = weights.qkv + layer * (3 * SQUARE)
    k_real, k_imag = _rotated(normed, scratch_ptr, qkv + SQUARE, group, cos, sin, PLAN)
    v = project(normed, scratch_ptr, qkv + 2 * SQUARE, columns, PLAN)
    tokens = tl.arange(0, PLAN.tile_rows * TOKENS)
    row = layer * (2 * PLAN.tile_rows) + tokens // TOKENS
    keys = cache_ptr + (row * num_slots + first_slot + tokens % TOKENS) * PLAN.hidden
    values = keys + PLAN.tile_rows * num_slots * PLAN.hidden
    # In the cache the real halves of a group come first, so that each load is contiguous.
    k_pointers = keys[:, None] + group * (2 * PAIRS) + pairs[None, :]
    tl.store(k_pointers, k_real, mask=real[:, None])
    tl.store(k_pointers + PAIRS, k_imag, mask=real[:, None])
    tl.store(values[:, None] + columns[None, :], v, mask=real[:, None])
    return k_real, k_imag, v


@triton.jit
def _attend(q_real, q_imag, k_real, k_imag, v, visible, peak, total, mixed):
    """Take one step of the online softmax over a block of slots; return the new peak, total and mixed.

    q_real, q_imag: `[R, T, G, K/2]` queries.
    k_real, k_imag: `[R, S, G, K/2]` keys.
    v: `[R, S, G, K]` values.
    visible: `[1, T or 1, S, 1]` bool, the slots that a query attends to.
    peak: `[R, T, G]` the largest score so far.
    total: `[R, T, G]` the sum of weights, 2 ** (score - peak).
    mixed: `[R, T, G, K]` the weighted sum of values.
    """
    products = q_real[:, :, None] * k_real[:, None] + q_imag[:, :, None] * k_imag[:, None]
    scores = tl.where(visible, tl.sum(products, axis=4), float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, axis=2))
    shares = tl.exp2(scores - new_peak[:, :, None])
    shrink = tl.exp2(peak - new_peak)
    total = total * shrink + tl.sum(shares, axis=2)
    mixed = mixed * shrink[:, :, :, None] + tl.sum(shares[:, :, :, :, None] * v[:, None], axis=2)
    return new_peak, total, mixed


@triton.jit
def _attention(
    x, normed, layer, group, cos, sin, weights, cache_ptr, scratch_ptr, first_slot, num_slots, real, live,
    TOKENS: tl.constexpr, SLOTS: tl.constexpr, PLAN: tl.constexpr,
):  # fmt: skip
    """Return the residual stream `[M, D]` plus the attention of one group of heads to its norm."""
    R: tl.constexpr = PLAN.tile_rows
    G: tl.constexpr = PLAN.group_heads
    HALF: tl.constexpr = PLAN.half
    q_real, q_imag = _rotated(
        normed, scratch_ptr, weights.qkv + layer * (3 * PLAN.hidden * PLAN.hidden), group, cos, sin, PLAN
    )
    k_real, k_imag, v = _keys_values(
        normed, layer, group, cos, sin, weights, cache_ptr, scratch_ptr, first_slot, num_slots, real, TOKENS, PLAN
    )
    q_real = tl.reshape(q_real * PLAN.score_scale, (R, TOKENS, G, HALF))
    q_imag = tl.reshape(q_imag * PLAN.score_scale, (R, TOKENS, G, HALF))
    # First the tokens of this pass, from registers: every query attends at least to itself, so the peak is finite.
    steps = tl.arange(0, TOKENS)
    causal = steps[None, :, None, None] >= steps[None, None, :, None]
    peak, total, mixed = _attend(
        q_real,
        q_imag,
        tl.reshape(k_real, (R, TOKENS, G, HALF)),
        tl.reshape(k_imag, (R, TOKENS, G, HALF)),
        tl.reshape(v, (R, TOKENS, G, 2 * HALF)),
        causal,
        tl.full((R, TOKENS, G), float("-inf"), tl.float32),
        tl.zeros((R, TOKENS, G), tl.float32),
        tl.zeros((R, TOKENS, G, 2 * HALF), tl.float32),
    )
    rows = tl.arange(0, R)[:, None, None, None]
    heads = tl.arange(0, G)[None, None, :, None]
    halves = tl.arange(0, HALF)[None, None, None, :]
    whole = tl.arange(0, 2 * HALF)[None, None, None, :]
    keys = cache_ptr + (layer * (2 * R) + rows) * num_slots * PLAN.hidden + group * (2 * G * HALF)
    values = keys + R * num_slots * PLAN.hidden
    for block in tl.range(0, first_slot, SLOTS):
        slots = block + tl.arange(0, SLOTS)[None, :, None, None]
        mask = (slots < first_slot) & live[:, None, None, None]
        k_pointers = keys + slots * PLAN.hidden + heads * HALF + halves
        k_real4 = tl.load(k_pointers, mask=mask, other=0.0).to(tl.float32)
        k_imag4 = tl.load(k_pointers + G * HALF, mask=mask, other=0.0).to(tl.float32)
        v4 = tl.load(values + slots * PLAN.hidden + heads * (2 * HALF) + whole, mask=mask, other=0.0).to(tl.float32)
        visible = (block + tl.arange(0, SLOTS) < first_slot)[None, None, :, None]
        peak, total, mixed = _attend(q_real, q_imag, k_real4, k_imag4, v4, visible, peak, total, mixed)
    y = tl.reshape(mixed / total[:, :, :, None], (R * TOKENS, 2 * G * HALF))
    columns = group * (2 * G * HALF) + tl.arange(0, 2 * G * HALF)
    return project_back(y, weights.out + layer * (PLAN.hidden * PLAN.hidden), columns, x, PLAN.hidden, PLAN)


@triton.jit
def _layer(
    x, layer, cos, sin, weights, cache_ptr, scratch_ptr, first_slot, num_slots, real, live,
    TOKENS: tl.constexpr, SLOTS: tl.constexpr, PLAN: tl.constexpr,
):  # fmt: skip
    """Run one block of the model: `[M, D]` -> `[M, D]`."""
    normed = rms_norm(x, scratch_ptr, weights.attention_norm + layer * PLAN.hidden, PLAN)
    for group in tl.range(0, PLAN.heads // PLAN.group_heads):
        x = _attention(
            x, normed, layer, group, cos, sin, weights, cache_ptr, scratch_ptr, first_slot, num_slots, real, live,
            TOKENS, SLOTS, PLAN,
        )  # fmt: skip
    normed = rms_norm(x, scratch_ptr, weights.mlp_norm + layer * PLAN.hidden, PLAN)
    return feed_forward(x, normed, scratch_ptr, layer, weights, PLAN)


@triton.jit
def _choose(
    logits, ids, mark_base_ptr, seed, counters, stage, step, temperature, SAMPLE: tl.constexpr, PLAN: tl.constexpr
):  # fmt: skip
    """Choose the ids `[R]` that follow the tokens `ids [R]` from logits `[R, C]`; return them and which rows end."""
    TOKEN: tl.constexpr = PLAN.token
    if SAMPLE:
        zeros = tl.zeros_like(counters)
        noise = gumbel_lanes(seed, counters, zeros + stage, zeros + step, TOKEN.num_classes)
        logits = tl.div_rn(logits, tl.zeros_like(logits) + temperature) + noise
    classes = tl.argmax(logits, axis=1)
    chosen = next_ids(ids, classes, mark_base_ptr, TOKEN)
    return chosen, (chosen == TOKEN.pad_id) | (classes == TOKEN.eos)


@triton.jit
def _prefill(
    tile, prefix_ptr, num_rows, prefix_length, weights, cache_ptr, scratch_ptr, num_slots, PLAN: tl.constexpr
):  # fmt: skip
    """Fill the cache slots of the prefixes of a tile."""
    TOKENS: tl.constexpr = PLAN.prefill_tokens
    LAST: tl.constexpr = PLAN.layers - 1
    live = tile * PLAN.tile_rows + tl.arange(0, PLAN.tile_rows) < num_rows
    tokens = tl.arange(0, PLAN.tile_rows * TOKENS)
    rows = tile * PLAN.tile_rows + tokens // TOKENS
    for first in tl.range(0, prefix_length, TOKENS):
        at = first + tokens % TOKENS
        real = (rows < num_rows) & (at < prefix_length)
        ids = tl.load(prefix_ptr + rows * prefix_length + at, mask=real, other=PLAN.token.pad_id).to(tl.int32)
        x, cos, sin = _read(ids, weights, PLAN)
        for layer in tl.range(0, LAST, disable_licm=True):
            x = _layer(
                x, layer, cos, sin, weights, cache_ptr, scratch_ptr, first, num_slots, real, live,
                TOKENS, PLAN.prefill_slots, PLAN,
            )  # fmt: skip
        normed = rms_norm(x, scratch_ptr, weights.attention_norm + LAST * PLAN.hidden, PLAN)
        for group in tl.range(0, PLAN.heads // PLAN.group_heads):
            _keys_values(
                normed, LAST, group, cos, sin, weights, cache_ptr, scratch_ptr, first, num_slots, real, TOKENS, PLAN
            )
        # In the next pass threads read each other's writes to the cache.
        tl.debug_barrier()


# Compiled once per plan, not once per batch size.
@triton.jit(
    do_not_specialize=[
        "num_rows", "num_tiles", "prefix_length", "num_branches", "longest", "num_slots", "key_low", "key_high", "stage"
    ]
)  # fmt: skip
def _complete_kernel(
    weights,  # Weights
    legal_ptr,  # [C]
    mark_base_ptr,  # [C / 2]
    prefix_ptr,  # [B, P]
    marks_ptr,  # [B, J]
    lengths_ptr,  # [J]
    counters_ptr,  # [B]
    cache_ptr,  # [programs, L, 2, R, S, D]
    scratch_ptr,  # [programs, R * T, D]
    output_ptr,  # [J, B, longest]
    logits_ptr,  # [J, B, longest, C] or None
    num_rows,
    num_tiles,
    prefix_length,
    num_branches,
    longest,
    num_slots,
    key_low,
    key_high,
    stage,
    temperature,
    SAMPLE: tl.constexpr,
    PLAN: tl.constexpr,
):
    SLAB: tl.constexpr = PLAN.layers * 2 * PLAN.tile_rows * PLAN.hidden
    seed = (tl.cast(key_high, tl.int64) << 32) | (tl.cast(key_low, tl.int64) & 0xFFFFFFFF)
    lanes = tl.arange(0, PLAN.token.num_classes)
    cache_ptr += tl.program_id(0).to(tl.int64) * SLAB * num_slots
    scratch_ptr += tl.program_id(0) * (PLAN.tile_rows * PLAN.prefill_tokens * PLAN.hidden)
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        rows = tile * PLAN.tile_rows + tl.arange(0, PLAN.tile_rows)
        in_batch = rows < num_rows
        counters = tl.load(counters_ptr + rows, mask=in_batch, other=0)
        _prefill(tile, prefix_ptr, num_rows, prefix_length, weights, cache_ptr, scratch_ptr, num_slots, PLAN)
        for branch in tl.range(0, num_branches):
            length = tl.load(lengths_ptr + branch)
            ids = tl.load(marks_ptr + rows * num_branches + branch, mask=in_batch, other=PLAN.token.pad_id).to(tl.int32)
            live = in_batch
            step = 0
            # Set to 0 when the last row of the tile has ended.
            until = length
            while step < until:
                x, cos, sin = _read(ids, weights, PLAN)
                for layer in tl.range(0, PLAN.layers, disable_licm=True):
                    x = _layer(
                        x, layer, cos, sin, weights, cache_ptr, scratch_ptr, prefix_length + step, num_slots,
                        live, live, 1, PLAN.decode_slots, PLAN,
                    )  # fmt: skip
                tl.debug_barrier()
                logits = class_logits(x, scratch_ptr, ids, weights, legal_ptr, PLAN)
                at = (branch * num_rows + rows) * longest + step
                if logits_ptr is not None:
                    pointers = logits_ptr + at.to(tl.int64)[:, None] * PLAN.token.num_classes + lanes[None, :]
                    tl.store(pointers, logits, mask=live[:, None])
                ids, ended = _choose(
                    logits, ids, mark_base_ptr, seed, counters, stage + branch, step, temperature, SAMPLE, PLAN
                )
                tl.store(output_ptr + at, ids.to(tl.int64), mask=live)
                live = live & ~ended
                step += 1
                until = tl.where(tl.max(live.to(tl.int32), axis=0) > 0, length, 0)
