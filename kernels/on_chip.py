"""Parts of a model as device functions, for kernels that carry tokens through the whole model in registers.

The residual stream `[M, D]` is a block of registers. A plan (`megakernel_plan.py`) says in which blocks the products
are taken: of features, and of D itself. If D is taken in blocks, the normed stream goes through a scratch.
Fields that are no numbers get a name before they are passed on, which makes them constants for Triton 3.6.

Legend: M tokens of a program, D hidden size (padded to a power of two in registers), I inputs and O outputs of a
product, F features of the feed-forward, C classes.
"""

from sector.kernels._triton import product, round_to, tl, triton
from sector.kernels.token_table import class_of


@triton.jit
def dot(x, w, total, PLAN: tl.constexpr):
    """Return `total [M, O]` plus `x [M, I]` times `w [I, O]`, multiplied in the dtype of `w` and summed in float32."""
    PRECISION: tl.constexpr = PLAN.precision
    return product(round_to(x, w.dtype), w, total, PRECISION)


@triton.jit
def project(normed, scratch_ptr, weight_ptr, outputs, PLAN: tl.constexpr):
    """Multiply `[M, D]` by the rows `outputs [O]` of a linear weight `[any, D]` -> `[M, O]`."""
    total = tl.zeros((normed.shape[0], outputs.shape[0]), tl.float32)
    if PLAN.inner == PLAN.hidden:
        inputs = tl.arange(0, PLAN.hidden)
        total = dot(normed, tl.load(weight_ptr + outputs[None, :] * PLAN.hidden + inputs[:, None]), total, PLAN)
    else:
        tokens = tl.arange(0, normed.shape[0])
        for first in tl.range(0, PLAN.hidden, PLAN.inner):
            inputs = first + tl.arange(0, PLAN.inner)
            part = tl.load(scratch_ptr + tokens[:, None] * PLAN.hidden + inputs[None, :])
            total = dot(part, tl.load(weight_ptr + outputs[None, :] * PLAN.hidden + inputs[:, None]), total, PLAN)
    return total


@triton.jit
def project_back(x, weight_ptr, inputs, total, WIDTH: tl.constexpr, PLAN: tl.constexpr):
    """Return `total [M, D]` plus `[M, I]` times the columns `inputs [I]` of a linear weight `[D, WIDTH]`."""
    BLOCK: tl.constexpr = PLAN.hidden_block
    outputs = tl.arange(0, BLOCK)
    pointers = weight_ptr + outputs[None, :] * WIDTH + inputs[:, None]
    return dot(x, tl.load(pointers, mask=(outputs < PLAN.hidden)[None, :], other=0.0), total, PLAN)


@triton.jit
def rms_norm(x, scratch_ptr, weight_ptr, PLAN: tl.constexpr):
    """Normalise `[M, D]`; padding stays zero. If `project` reads the result from the scratch, write it there too."""
    columns = tl.arange(0, PLAN.hidden_block)
    weight = tl.load(weight_ptr + columns, mask=columns < PLAN.hidden, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / PLAN.hidden + PLAN.eps)
    normed = x * scale[:, None] * weight[None, :]
    if PLAN.inner < PLAN.hidden:
        tokens = tl.arange(0, x.shape[0])
        # The first barrier waits for reads of the old contents, the second one for writes of the new contents.
        tl.debug_barrier()
        pointers = scratch_ptr + tokens[:, None] * PLAN.hidden + columns[None, :]
        tl.store(pointers, normed, mask=(columns < PLAN.hidden)[None, :])
        tl.debug_barrier()
    return normed


@triton.jit
def embedded(ids, weights, PLAN: tl.constexpr):
    """Return the embeddings `[M, D]` of ids `[M]`."""
    TOKEN: tl.constexpr = PLAN.token
    columns = tl.arange(0, PLAN.hidden_block)
    pointers = weights.embed + class_of(ids, TOKEN)[:, None] * PLAN.hidden + columns[None, :]
    return tl.load(pointers, mask=(columns < PLAN.hidden)[None, :], other=0.0).to(tl.float32)


@triton.jit
def feed_forward(x, normed, scratch_ptr, layer, weights, PLAN: tl.constexpr):
    """Return the residual stream `[M, D]` plus the feed-forward of its norm, one block of features at a time."""
    WEIGHT: tl.constexpr = PLAN.features * PLAN.hidden
    for first in tl.range(0, PLAN.features, PLAN.feature_block):
        features = first + tl.arange(0, PLAN.feature_block)
        u = project(normed, scratch_ptr, weights.up + layer * WEIGHT, features, PLAN)
        u = tl.maximum(u, 0.0)
        x = project_back(u * u, weights.down + layer * WEIGHT, features, x, PLAN.features, PLAN)
    return x


@triton.jit
def class_logits(x, scratch_ptr, ids, weights, legal_ptr, PLAN: tl.constexpr):
    """Return logits `[M, C]` from the residual stream `[M, D]` of the tokens `ids [M]`, -inf where illegal."""
    TOKEN: tl.constexpr = PLAN.token
    lanes = tl.arange(0, TOKEN.num_classes)
    logits = project(rms_norm(x, scratch_ptr, weights.norm, PLAN), scratch_ptr, weights.head, lanes, PLAN)
    legal = tl.load(legal_ptr + class_of(ids, TOKEN))
    return tl.where((legal[:, None] >> lanes[None, :]) & 1 == 1, logits, float("-inf"))
