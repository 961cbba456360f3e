"""Acceptance of drafts: keep the model's choices up to the first one that contradicts the draft.

Legend: B rows, U choices after the mark and after each token of the draft, T tokens of a completion.
"""

import torch
from torch import Tensor

from sector.kernels._triton import block_rows, expect, next_power_of_2, num_programs, runs_kernel, tl, triton

# Numbers that a compiled program holds at a time.
_COMPILED_NUMBERS = 2048


def accept(output: Tensor, chosen: Tensor, draft: Tensor | None, pad_id: int, counts: Tensor | None = None) -> Tensor:
    """Write the accepted choices of a branch and padding into `output [B, T]`; return their count `[B]`.

    A choice is accepted if the model itself chose every drafted token before it, which makes drafts lossless.

    output: int64, rows adjacent.
    chosen: `[B, U]` int64, U <= T, the model's choices after the mark and after each token of the draft.
    draft: `[B, >= U - 1]` int64; None accepts every choice.
    counts: `[B]` int64, optional memory for the result.
    """
    count, width = chosen.shape
    expect("output", output, (count, None), torch.int64, chosen.device)
    expect("chosen", chosen, (count, None), torch.int64, chosen.device, contiguous=False)
    if draft is not None:
        expect("draft", draft, (count, None), torch.int64, chosen.device, contiguous=False)
        if draft.shape[1] < width - 1:
            raise ValueError(f"draft must have {width - 1} tokens at least, not {draft.shape[1]}")
    if width > output.shape[1]:
        raise ValueError(f"output must have room for {width} choices, not {output.shape[1]}")
    if counts is not None:
        expect("counts", counts, (count,), torch.int64, chosen.device)
    return (accept_kernel if runs_kernel(chosen) else accept_reference)(output, chosen, draft, pad_id, counts)


def accept_reference(
    output: Tensor, chosen: Tensor, draft: Tensor | None, pad_id: int, counts: Tensor | None = None
) -> Tensor:
    """Compute `accept` in plain torch."""
    count = chosen.shape[1]
    accepted = torch.ones_like(chosen)
    if draft is not None:
        accepted[:, 1:] = (chosen[:, :-1] == draft[:, : count - 1]).long().cumprod(dim=1)
    output.fill_(pad_id)
    output[:, :count] = torch.where(accepted.bool(), chosen, pad_id)
    return torch.sum(accepted, dim=1, out=counts)


def accept_kernel(
    output: Tensor, chosen: Tensor, draft: Tensor | None, pad_id: int, counts: Tensor | None = None
) -> Tensor:
    """Compute `accept` with the Triton kernel."""
    (count, length), width = output.shape, chosen.shape[1]
    counts = torch.empty(count, dtype=torch.int64, device=chosen.device) if counts is None else counts
    if count == 0:
        return counts
    columns = next_power_of_2(length)
    block = block_rows(count, compiled=max(1, _COMPILED_NUMBERS // columns))
    _accept_kernel[(num_programs(count, block),)](
        chosen,
        chosen if draft is None else draft,
        output,
        counts,
        chosen.stride(0),
        chosen.stride(1),
        0 if draft is None else draft.stride(0),
        0 if draft is None else draft.stride(1),
        count,
        width,
        length,
        pad_id,
        BLOCK_ROWS=block,
        BLOCK_COLUMNS=columns,
        DRAFTED=draft is not None,
        num_warps=4,
    )
    return counts


@triton.jit(
    do_not_specialize=[
        "stride_chosen",
        "step_chosen",
        "stride_draft",
        "step_draft",
        "num_rows",
        "width",
        "length",
        "pad_id",
    ]
)
def _accept_kernel(
    chosen_ptr,  # [B, U]
    draft_ptr,  # [B, >= U - 1]
    output_ptr,  # [B, T]
    counts_ptr,  # [B]
    stride_chosen,
    step_chosen,
    stride_draft,
    step_draft,
    num_rows,
    width,
    length,
    pad_id,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    DRAFTED: tl.constexpr,
):
    o_rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_columns = tl.arange(0, BLOCK_COLUMNS)[None, :]
    m_rows = o_rows < num_rows
    m_chosen = m_rows[:, None] & (o_columns < width)
    b_chosen = tl.load(chosen_ptr + o_rows[:, None] * stride_chosen + o_columns * step_chosen, mask=m_chosen, other=0)
    m_accepted = m_chosen
    if DRAFTED:
        # The choice before each one, and the drafted token that it should have been.
        m_before = m_chosen & (o_columns > 0)
        o_before = o_columns - 1
        b_before = tl.load(
            chosen_ptr + o_rows[:, None] * stride_chosen + o_before * step_chosen, mask=m_before, other=0
        )
        b_draft = tl.load(draft_ptr + o_rows[:, None] * stride_draft + o_before * step_draft, mask=m_before, other=0)
        b_misses = tl.cumsum((b_before != b_draft).to(tl.int32), axis=1)
        m_accepted = m_chosen & (b_misses == 0)
    b_output = tl.where(m_accepted, b_chosen, pad_id)
    p_output = output_ptr + o_rows[:, None] * length + o_columns
    tl.store(p_output, b_output, mask=m_rows[:, None] & (o_columns < length))
    tl.store(counts_ptr + o_rows, tl.sum(m_accepted.to(tl.int64), axis=1), mask=m_rows)
