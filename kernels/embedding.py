"""The embedding: from the ids of tokens to the residual stream and to their places, in one pass.

Legend: N tokens, C classes (32), D hidden size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sector.kernels._triton import FLOATS, block_rows, expect, next_power_of_2, num_programs, runs_kernel, tl, triton
from sector.kernels.token_table import TokenTable, class_of

# Numbers that a compiled program holds at a time: sixteen a thread.
_COMPILED_NUMBERS = 2048


def embed(ids: Tensor, weight: Tensor, table: TokenTable) -> tuple[Tensor, Tensor]:
    """Return the embeddings `[N, D]` float32 and the places `[N]` int64 of ids `[N]`.

    weight: `[C, D]` embedding of each class.
    """
    expect("ids", ids, (None,), torch.int64, ids.device)
    expect("weight", weight, (table.token.num_classes, None), FLOATS, ids.device)
    return (embed_kernel if runs_kernel(ids) else embed_reference)(ids, weight, table)


def embed_reference(ids: Tensor, weight: Tensor, table: TokenTable) -> tuple[Tensor, Tensor]:
    """Compute `embed` in plain torch."""
    return F.embedding(table.class_of(ids), weight).float(), ids // table.token.num_local


def embed_kernel(ids: Tensor, weight: Tensor, table: TokenTable) -> tuple[Tensor, Tensor]:
    """Compute `embed` with the Triton kernel."""
    count, hidden = len(ids), weight.shape[1]
    x = torch.empty(count, hidden, dtype=torch.float32, device=ids.device)
    places = torch.empty_like(ids)
    if count:
        width = next_power_of_2(hidden)
        block = block_rows(count, compiled=max(1, _COMPILED_NUMBERS // width))
        _embed_kernel[(num_programs(count, block),)](
            ids,
            weight,
            x,
            places,
            count,
            HIDDEN=hidden,
            BLOCK_HIDDEN=width,
            BLOCK_ROWS=block,
            TOKEN=table.token,
            num_warps=4,
        )
    return x, places


@triton.jit(do_not_specialize=["num_rows"])
def _embed_kernel(
    ids_ptr,  # [N]
    weight_ptr,  # [C, D]
    x_ptr,  # [N, D]
    places_ptr,  # [N]
    num_rows,
    HIDDEN: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    TOKEN: tl.constexpr,
):
    o_rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_hidden = tl.arange(0, BLOCK_HIDDEN)[None, :]
    m_rows = o_rows < num_rows
    mask = m_rows[:, None] & (o_hidden < HIDDEN)
    b_ids = tl.load(ids_ptr + o_rows, mask=m_rows, other=0).to(tl.int32)
    b_x = tl.load(weight_ptr + class_of(b_ids, TOKEN)[:, None] * HIDDEN + o_hidden, mask=mask, other=0.0)
    tl.store(x_ptr + o_rows[:, None] * HIDDEN + o_hidden, b_x.to(tl.float32), mask=mask)
    tl.store(places_ptr + o_rows, (b_ids // TOKEN.num_local).to(tl.int64), mask=m_rows)
