"""The vote over K guesses: the most frequent answer of each problem and its count, without leaving the device.

Legend: B rows, K guesses per row, L digits of an answer.
"""

import torch
from torch import Tensor

from sector.kernels._triton import block_rows, expect, next_power_of_2, num_programs, runs_kernel, tl, triton

# Digits of an answer that a program copies at a time, and pairs of guesses per compiled program.
_BLOCK_DIGITS = 32
_COMPILED_PAIRS = 1024


def majority(guesses: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the most frequent answer `[B, L]` of `[B, K, L]` guesses, and its count `[B]`.

    valid: `[B, K]` bool, the guesses that count. Of equally frequent answers the earliest guess wins. Rows without a
    valid guess get zeros and count 0.
    """
    count, num_guesses, _ = guesses.shape
    expect("guesses", guesses, (count, num_guesses, None), torch.int64, guesses.device, contiguous=False)
    expect("valid", valid, (count, num_guesses), torch.bool, guesses.device, contiguous=False)
    if num_guesses == 0:
        raise ValueError("a vote needs at least one guess per row")
    if runs_kernel(guesses):
        return majority_kernel(guesses.contiguous(), valid.contiguous())
    return majority_reference(guesses, valid)


def majority_reference(guesses: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `majority` in plain torch."""
    same = (guesses.unsqueeze(1) == guesses.unsqueeze(2)).all(dim=3)
    counts = (same & valid.unsqueeze(1) & valid.unsqueeze(2)).sum(dim=2)
    votes, winner = counts.max(dim=1)
    index = winner.view(-1, 1, 1).expand(-1, 1, guesses.shape[2])
    return guesses.gather(1, index).squeeze(1) * (votes > 0).unsqueeze(1), votes


def majority_kernel(guesses: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `majority` with the Triton kernel."""
    count, num_guesses, length = guesses.shape
    answers = torch.empty(count, length, dtype=torch.int64, device=guesses.device)
    votes = torch.empty(count, dtype=torch.int64, device=guesses.device)
    if count == 0:
        return answers, votes
    padded = next_power_of_2(num_guesses)
    block = block_rows(count, compiled=max(1, _COMPILED_PAIRS // padded**2))
    _majority_kernel[(num_programs(count, block),)](
        guesses,
        valid,
        answers,
        votes,
        count,
        num_guesses,
        length,
        BLOCK_ROWS=block,
        BLOCK_GUESSES=padded,
        BLOCK_DIGITS=_BLOCK_DIGITS,
        num_warps=4,
    )
    return answers, votes


@triton.jit(do_not_specialize=["num_rows", "num_guesses", "length"])
def _majority_kernel(
    guesses_ptr,  # [B, K, L]
    valid_ptr,  # [B, K]
    answers_ptr,  # [B, L]
    votes_ptr,  # [B]
    num_rows,
    num_guesses,
    length,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_GUESSES: tl.constexpr,
    BLOCK_DIGITS: tl.constexpr,
):
    o_rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_guesses = tl.arange(0, BLOCK_GUESSES)
    m_rows = o_rows < num_rows
    m_guesses = m_rows[:, None] & (o_guesses < num_guesses)[None, :]
    o_long = o_rows.to(tl.int64)

    p_one = guesses_ptr + (o_long[:, None] * num_guesses + o_guesses[None, :])[:, :, None] * length
    p_other = guesses_ptr + (o_long[:, None] * num_guesses + o_guesses[None, :])[:, None, :] * length
    m_one, m_other = m_guesses[:, :, None], m_guesses[:, None, :]
    b_differs = tl.zeros([BLOCK_ROWS, BLOCK_GUESSES, BLOCK_GUESSES], dtype=tl.int32)
    for i_digit in range(length):
        b_one = tl.load(p_one + i_digit, mask=m_one, other=0)
        b_other = tl.load(p_other + i_digit, mask=m_other, other=0)
        b_differs |= (b_one != b_other).to(tl.int32)

    p_valid = valid_ptr + o_long[:, None] * num_guesses + o_guesses[None, :]
    b_valid = tl.load(p_valid, mask=m_guesses, other=0).to(tl.int32)
    b_same = (1 - b_differs) * b_valid[:, :, None] * b_valid[:, None, :]
    # Padding guesses get -1, below every count, so that they never win.
    b_counts = tl.where((o_guesses < num_guesses)[None, :], tl.sum(b_same, axis=2), -1)
    b_votes = tl.max(b_counts, axis=1)
    b_winner = tl.argmax(b_counts, axis=1)
    tl.store(votes_ptr + o_rows, b_votes.to(tl.int64), mask=m_rows)
    p_winner = guesses_ptr + (o_long * num_guesses + b_winner)[:, None] * length
    for start in range(0, length, BLOCK_DIGITS):
        o_digits = start + tl.arange(0, BLOCK_DIGITS)[None, :]
        m_digits = m_rows[:, None] & (o_digits < length)
        b_answer = tl.load(p_winner + o_digits, mask=m_digits & (b_votes > 0)[:, None], other=0)
        tl.store(answers_ptr + o_long[:, None] * length + o_digits, b_answer, mask=m_digits)
