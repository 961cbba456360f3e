"""The state of sequences that are generated token by token: its beginning after the first pass, and its advance.

Every sequence is a branch of a row. The whole state is one tensor on the device, so that a step can be captured as a
CUDA graph, and the host need not wait for it.

Legend: B rows, J branches, Q sequences, O tokens of the output.
"""

from enum import IntEnum

import torch
from torch import Tensor

from sector.kernels._triton import block_rows, expect, num_programs, runs_kernel, tl, triton
from sector.kernels.token_table import TokenTable, class_of

# Sequences of a compiled program, one a thread.
_COMPILED_SEQUENCES = 128


class SequenceField(IntEnum):
    """Fields of the state of a sequence, an int64 each.

    ID: its last token, not yet read.
    ROW: its row of the cache; -1 if it is idle or finished.
    START: the first slot of its branch, as in `Positions`.
    PREFIX: the number of slots of its prefix, as in `Positions`.
    LIMIT: the maximum of its new tokens.
    COUNTER: its row in the random stream.
    STAGE: its stage in the random stream.
    SLOT: the slot of its last token, as in `Positions`.
    STEP: the number of its new tokens so far.
    OUT: the index of the next token in the output.
    """

    ID = 0
    ROW = 1
    START = 2
    PREFIX = 3
    LIMIT = 4
    COUNTER = 5
    STAGE = 6
    # The following three grow by one per step.
    SLOT = 7
    STEP = 8
    OUT = 9


# As kernels name them.
_ID, _ROW, _START, _PREFIX, _LIMIT, _COUNTER, _STAGE, _SLOT, _STEP, _OUT = (
    tl.constexpr(int(field)) for field in SequenceField
)


def begin(
    lengths: Tensor, prefix_length: int, counts: Tensor, output: Tensor, rows: Tensor, stage: int, table: TokenTable
) -> tuple[Tensor, Tensor]:
    """Return the state `[fields, J * B]` of sequences after their first tokens, and which are unfinished `[J * B]`.

    The output holds the rows of the first branch one after another, then those of the second. A row of the cache holds
    the prefix, then the slots of each branch.

    lengths: `[2, J]` int64: slots of each branch, which are the maximum of its tokens, and those of all before it.
    prefix_length: slots of a prefix.
    counts: `[J, B]` int64, at least 1: tokens that each sequence has in the output.
    output: `[O]` int64.
    rows: `[B]` int64 counters of the random stream.
    stage: stage of the random stream of the first branch.
    """
    num_branches, num_rows = counts.shape
    expect("lengths", lengths, (2, num_branches), torch.int64, output.device)
    expect("counts", counts, (num_branches, num_rows), torch.int64, output.device)
    expect("output", output, (None,), torch.int64, output.device)
    expect("rows", rows, (num_rows,), torch.int64, output.device)
    run = begin_kernel if runs_kernel(output) else begin_reference
    return run(lengths, prefix_length, counts, output, rows, stage, table)


def begin_reference(
    lengths: Tensor, prefix_length: int, counts: Tensor, output: Tensor, rows: Tensor, stage: int, table: TokenTable
) -> tuple[Tensor, Tensor]:
    """Compute `begin` in plain torch."""
    (num_branches, num_rows), (limits, offsets) = counts.shape, lengths.unsqueeze(2)
    in_batch = torch.arange(num_rows, device=rows.device)
    state = counts.new_empty(len(SequenceField), num_branches, num_rows)
    state[SequenceField.ROW] = in_batch
    state[SequenceField.START] = prefix_length + offsets
    state[SequenceField.PREFIX] = prefix_length
    state[SequenceField.LIMIT] = limits
    state[SequenceField.COUNTER] = rows
    state[SequenceField.STAGE] = stage + torch.arange(num_branches, device=rows.device).unsqueeze(1)
    state[SequenceField.SLOT] = state[SequenceField.START] + counts
    state[SequenceField.STEP] = counts
    state[SequenceField.OUT] = offsets * num_rows + in_batch * limits + counts
    ids = state[SequenceField.ID] = output[state[SequenceField.OUT] - 1]
    classes = table.class_of(ids)
    unfinished = (counts < limits) & (classes != table.token.eos) & (classes != table.token.pad)
    return state.flatten(1), unfinished.flatten()


def begin_kernel(
    lengths: Tensor, prefix_length: int, counts: Tensor, output: Tensor, rows: Tensor, stage: int, table: TokenTable
) -> tuple[Tensor, Tensor]:
    """Compute `begin` with the Triton kernel."""
    num_branches, num_rows = counts.shape
    state = counts.new_empty(len(SequenceField), counts.numel())
    unfinished = torch.empty(counts.numel(), dtype=torch.bool, device=counts.device)
    if counts.numel():
        block = block_rows(num_rows, compiled=_COMPILED_SEQUENCES)
        _begin_kernel[(num_programs(num_rows, block), num_branches)](
            lengths,
            counts,
            output,
            rows,
            state,
            unfinished,
            num_rows,
            num_branches,
            prefix_length,
            stage,
            TOKEN=table.token,
            BLOCK_ROWS=block,
            num_warps=4,
        )
    return state, unfinished


def advance(state: Tensor, stopped: Tensor, output: Tensor) -> None:
    """Write the new tokens of sequences to the output, and move each on by one; those that end become idle.

    state: `[fields, Q]` int64; its ids are the new tokens.
    stopped: `[Q]` bool, sequences that end with the new token.
    output: `[O]` int64; the last one is the spare output of idle sequences.
    """
    expect("state", state, (len(SequenceField), None), torch.int64, output.device)
    expect("stopped", stopped, (state.shape[1],), torch.bool, output.device)
    expect("output", output, (None,), torch.int64, output.device)
    (advance_kernel if runs_kernel(state) else advance_reference)(state, stopped, output)


def advance_reference(state: Tensor, stopped: Tensor, output: Tensor) -> None:
    """Compute `advance` in plain torch."""
    output.scatter_(0, state[SequenceField.OUT], state[SequenceField.ID])
    state[SequenceField.SLOT :].add_(1)
    ended = stopped | (state[SequenceField.STEP] >= state[SequenceField.LIMIT])
    state[SequenceField.ROW].masked_fill_(ended, -1)
    state[SequenceField.OUT].masked_fill_(ended, len(output) - 1)


def advance_kernel(state: Tensor, stopped: Tensor, output: Tensor) -> None:
    """Compute `advance` with the Triton kernel."""
    count = state.shape[1]
    if count:
        block = block_rows(count, compiled=_COMPILED_SEQUENCES)
        _advance_kernel[(num_programs(count, block),)](
            state, stopped, output, count, len(output) - 1, BLOCK_SEQUENCES=block, num_warps=4
        )


@triton.jit(do_not_specialize=["num_rows", "num_branches", "prefix_length", "stage"])
def _begin_kernel(
    lengths_ptr,  # [2, J]
    counts_ptr,  # [J, B]
    output_ptr,  # [O]
    rows_ptr,  # [B]
    state_ptr,  # [fields, J, B]
    unfinished_ptr,  # [J, B]
    num_rows,
    num_branches,
    prefix_length,
    stage,
    TOKEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    branch = tl.program_id(1)
    o_rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    mask = o_rows < num_rows
    limit = tl.load(lengths_ptr + branch)
    offset = tl.load(lengths_ptr + num_branches + branch)
    start = prefix_length + offset
    o_sequences = branch.to(tl.int64) * num_rows + o_rows
    b_count = tl.load(counts_ptr + o_sequences, mask=mask, other=1)
    b_out = offset * num_rows + o_rows * limit + b_count
    b_id = tl.load(output_ptr + b_out - 1, mask=mask, other=0)

    b_zeros = tl.zeros_like(o_rows)
    p_state = state_ptr + o_sequences
    num_sequences = num_branches.to(tl.int64) * num_rows
    tl.store(p_state + _ID * num_sequences, b_id, mask=mask)
    tl.store(p_state + _ROW * num_sequences, o_rows, mask=mask)
    tl.store(p_state + _START * num_sequences, b_zeros + start, mask=mask)
    tl.store(p_state + _PREFIX * num_sequences, b_zeros + prefix_length, mask=mask)
    tl.store(p_state + _LIMIT * num_sequences, b_zeros + limit, mask=mask)
    tl.store(p_state + _COUNTER * num_sequences, tl.load(rows_ptr + o_rows, mask=mask, other=0), mask=mask)
    tl.store(p_state + _STAGE * num_sequences, b_zeros + stage + branch, mask=mask)
    tl.store(p_state + _SLOT * num_sequences, start + b_count, mask=mask)
    tl.store(p_state + _STEP * num_sequences, b_count, mask=mask)
    tl.store(p_state + _OUT * num_sequences, b_out, mask=mask)
    b_class = class_of(b_id, TOKEN)
    b_goes_on = (b_class != TOKEN.eos) & (b_class != TOKEN.pad)
    tl.store(unfinished_ptr + o_sequences, (b_count < limit) & b_goes_on, mask=mask)


@triton.jit(do_not_specialize=["num_sequences", "spare"])
def _advance_kernel(
    state_ptr,  # [fields, Q]
    stopped_ptr,  # [Q]
    output_ptr,  # [O]
    num_sequences,
    spare,
    BLOCK_SEQUENCES: tl.constexpr,
):
    o_sequences = tl.program_id(0) * BLOCK_SEQUENCES + tl.arange(0, BLOCK_SEQUENCES)
    mask = o_sequences < num_sequences
    p_state = state_ptr + o_sequences
    b_row = tl.load(p_state + _ROW * num_sequences, mask=mask, other=-1)
    b_slot = tl.load(p_state + _SLOT * num_sequences, mask=mask, other=0)
    b_step = tl.load(p_state + _STEP * num_sequences, mask=mask, other=0) + 1
    b_out = tl.load(p_state + _OUT * num_sequences, mask=mask, other=0)
    tl.store(output_ptr + b_out, tl.load(p_state + _ID * num_sequences, mask=mask, other=0), mask=mask)
    b_limit = tl.load(p_state + _LIMIT * num_sequences, mask=mask, other=0)
    m_ended = (tl.load(stopped_ptr + o_sequences, mask=mask, other=1) != 0) | (b_step >= b_limit)
    tl.store(p_state + _ROW * num_sequences, tl.where(m_ended, -1, b_row), mask=mask)
    tl.store(p_state + _SLOT * num_sequences, b_slot + 1, mask=mask)
    tl.store(p_state + _STEP * num_sequences, b_step, mask=mask)
    tl.store(p_state + _OUT * num_sequences, tl.where(m_ended, spare, b_out + 1), mask=mask)
