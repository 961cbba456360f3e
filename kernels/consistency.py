"""Consistency: the vote over K guesses and the looks that must agree, without leaving the device.

`majority` counts guesses; `judge` says of each row whether the looks that a filter asks for agree, and if not, which
failed first: what the engine's improved policy (`engine/policy/improve.py`) does, of which the vote is this one.

Legend: B rows, K guesses a row, L digits of an answer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sector.kernels._triton import block_rows, expect, next_power_of_2, num_programs, runs_kernel, tl, triton

# What `judge` says of a row: accepted, or the look that failed first.
ACCEPTED, UNPARSABLE, OUTVOTED, NOT_DIRECT, NOT_COMMUTATIVE, NOT_COMPLEMENT = range(6)

_UNPARSABLE, _OUTVOTED = tl.constexpr(UNPARSABLE), tl.constexpr(OUTVOTED)
_NOT_DIRECT, _NOT_COMMUTATIVE = tl.constexpr(NOT_DIRECT), tl.constexpr(NOT_COMMUTATIVE)
_NOT_COMPLEMENT = tl.constexpr(NOT_COMPLEMENT)

# What an output holds until a kernel has written it.
PLACEHOLDER = -1

# Digits of an answer that a program compares at a time, and pairs of guesses a compiled program.
_BLOCK_DIGITS = 32
_COMPILED_PAIRS = 1024
_COMPILED_ROWS = 32


@dataclass(frozen=True, slots=True)
class Ballot:
    """A vote and what it counted. answers: `[B, L]` int64. votes: `[B]` int64. valid: `[B, K]` bool, which guesses."""

    answers: Tensor
    votes: Tensor
    valid: Tensor


@dataclass(frozen=True, slots=True)
class Single:
    """An answer a row that no vote was held over. answers: `[B, L]` int64. valid: `[B]` bool, which of them parsed."""

    answers: Tensor
    valid: Tensor


def majority(guesses: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Vote over `[B, K, L]` guesses, of which `valid [B, K]` count: the most frequent answer and its count `[B]`.

    Of equally frequent answers the earliest guess wins. Rows without a valid guess get zeros and count 0.
    """
    count, num_guesses, _ = guesses.shape
    expect("guesses", guesses, (count, num_guesses, None), torch.int64, guesses.device, contiguous=False)
    expect("valid", valid, (count, num_guesses), torch.bool, guesses.device, contiguous=False)
    if num_guesses == 0:
        raise ValueError("a vote needs at least one guess a row")
    if runs_kernel(guesses):
        return majority_kernel(guesses.contiguous(), valid.contiguous())
    return majority_reference(guesses, valid)


def majority_reference(guesses: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """`majority` in plain torch."""
    same = (guesses.unsqueeze(1) == guesses.unsqueeze(2)).all(dim=3)
    counts = (same & valid.unsqueeze(1) & valid.unsqueeze(2)).sum(dim=2)
    votes, winner = counts.max(dim=1)
    index = winner.view(-1, 1, 1).expand(-1, 1, guesses.shape[2])
    return guesses.gather(1, index).squeeze(1) * (votes > 0).unsqueeze(1), votes


def majority_kernel(guesses: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """`majority` by the Triton kernel."""
    count, num_guesses, length = guesses.shape
    answers = torch.full((count, length), PLACEHOLDER, dtype=torch.int64, device=guesses.device)
    votes = torch.full((count,), PLACEHOLDER, dtype=torch.int64, device=guesses.device)
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


def judge(
    first: Ballot,
    unanimous: bool,
    direct: Single | None = None,
    complement: Single | None = None,
    second: Ballot | None = None,
) -> tuple[Tensor, Tensor]:
    """What became of each row, `[B]` int64, and whether both orders agree, `[B]` bool.

    A row is UNPARSABLE if its vote lacks what it needs: one valid guess, or all of them where it must be unanimous;
    OUTVOTED if it must be unanimous and is not; NOT_DIRECT if `direct` is asked for and another answer; NOT_COMPLEMENT
    likewise (`complement` holds answers to the complement, complemented back); NOT_COMMUTATIVE if a second look is
    asked for and was not decided for the same answer. Both orders agree only in rows that no earlier look rejects.
    """
    _check_judged(first, direct, complement, second)
    if runs_kernel(first.answers):
        return judge_kernel(first, unanimous, direct, complement, second)
    return judge_reference(first, unanimous, direct, complement, second)


def judge_reference(
    first: Ballot,
    unanimous: bool,
    direct: Single | None = None,
    complement: Single | None = None,
    second: Ballot | None = None,
) -> tuple[Tensor, Tensor]:
    """`judge` in plain torch: the last look first, so that an earlier one overrides it."""
    parsed, decided = _parsed_and_decided(first, unanimous)
    verdict = torch.full_like(first.votes, ACCEPTED)
    agrees = torch.zeros_like(parsed)
    if second is not None:
        agrees = _parsed_and_decided(second, unanimous)[1] & (second.answers == first.answers).all(dim=1)
        verdict = verdict.masked_fill(~agrees, NOT_COMMUTATIVE)
    for single, reason in ((complement, NOT_COMPLEMENT), (direct, NOT_DIRECT)):
        if single is not None:
            verdict = verdict.masked_fill(~(single.valid & (single.answers == first.answers).all(dim=1)), reason)
    verdict = verdict.masked_fill(~decided, OUTVOTED).masked_fill(~parsed, UNPARSABLE)
    return verdict, agrees & (verdict == ACCEPTED)


def judge_kernel(
    first: Ballot,
    unanimous: bool,
    direct: Single | None = None,
    complement: Single | None = None,
    second: Ballot | None = None,
) -> tuple[Tensor, Tensor]:
    """`judge` by the Triton kernel."""
    (count, length), num_guesses = first.answers.shape, first.valid.shape[1]
    verdict = torch.full((count,), PLACEHOLDER, dtype=torch.int64, device=first.answers.device)
    agrees = torch.zeros(count, dtype=torch.bool, device=first.answers.device)
    if count == 0:
        return verdict, agrees
    block = block_rows(count, compiled=_COMPILED_ROWS)
    # A look that was not taken is not read; any pointer will do.
    other = first if second is None else second
    nothing = Single(first.answers, first.valid)
    _judge_kernel[(num_programs(count, block),)](
        first.answers,
        first.votes,
        first.valid,
        (direct or nothing).answers,
        (direct or nothing).valid,
        (complement or nothing).answers,
        (complement or nothing).valid,
        other.answers,
        other.votes,
        other.valid,
        verdict,
        agrees,
        count,
        num_guesses,
        length,
        UNANIMOUS=unanimous,
        DIRECT=direct is not None,
        COMPLEMENT=complement is not None,
        SECOND=second is not None,
        BLOCK_ROWS=block,
        BLOCK_GUESSES=next_power_of_2(num_guesses),
        BLOCK_DIGITS=_BLOCK_DIGITS,
        num_warps=4,
    )
    return verdict, agrees


def _parsed_and_decided(ballot: Ballot, unanimous: bool) -> tuple[Tensor, Tensor]:
    """`[B]` did the vote get what it needs, and does it decide?"""
    if unanimous:
        return ballot.valid.all(dim=1), ballot.votes == ballot.valid.shape[1]
    return ballot.votes > 0, ballot.votes > 0


def _check_judged(first: Ballot, direct: Single | None, complement: Single | None, second: Ballot | None) -> None:
    """Raise ValueError on what the kernel would misread."""
    device = first.answers.device
    expect("first.answers", first.answers, (None, None), torch.int64, device)
    count, length = first.answers.shape
    for name, ballot in (("first", first), ("second", second)):
        if ballot is not None:
            expect(f"{name}.answers", ballot.answers, (count, length), torch.int64, device)
            expect(f"{name}.votes", ballot.votes, (count,), torch.int64, device)
            expect(f"{name}.valid", ballot.valid, (count, first.valid.shape[-1]), torch.bool, device)
    for name, single in (("direct", direct), ("complement", complement)):
        if single is not None:
            expect(f"{name}.answers", single.answers, (count, length), torch.int64, device)
            expect(f"{name}.valid", single.valid, (count,), torch.bool, device)


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
    # A guess that does not exist has no count, not even 0, and so never wins.
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


@triton.jit
def _decides(votes_ptr, valid_ptr, o_rows, o_guesses, num_rows, num_guesses, UNANIMOUS: tl.constexpr):
    """Did the votes of these rows get what they need, and do they decide?"""
    m_rows = o_rows < num_rows
    b_votes = tl.load(votes_ptr + o_rows, mask=m_rows, other=0)
    b_parsed = b_votes > 0
    b_decided = b_parsed
    if UNANIMOUS:
        m_guesses = m_rows[:, None] & (o_guesses < num_guesses)[None, :]
        p_valid = valid_ptr + o_rows.to(tl.int64)[:, None] * num_guesses + o_guesses[None, :]
        b_parsed = tl.sum(tl.load(p_valid, mask=m_guesses, other=0).to(tl.int32), axis=1) == num_guesses
        b_decided = b_votes == num_guesses
    return b_parsed, b_decided


@triton.jit(do_not_specialize=["num_rows", "num_guesses", "length"])
def _judge_kernel(
    answers_ptr,  # [B, L]
    votes_ptr,  # [B]
    valid_ptr,  # [B, K]
    direct_ptr,  # [B, L]
    direct_valid_ptr,  # [B]
    complement_ptr,  # [B, L]
    complement_valid_ptr,  # [B]
    second_answers_ptr,  # [B, L]
    second_votes_ptr,  # [B]
    second_valid_ptr,  # [B, K]
    verdict_ptr,  # [B]
    agrees_ptr,  # [B]
    num_rows,
    num_guesses,
    length,
    UNANIMOUS: tl.constexpr,
    DIRECT: tl.constexpr,
    COMPLEMENT: tl.constexpr,
    SECOND: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_GUESSES: tl.constexpr,
    BLOCK_DIGITS: tl.constexpr,
):
    o_rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_guesses = tl.arange(0, BLOCK_GUESSES)
    m_rows = o_rows < num_rows

    b_direct_differs = tl.zeros([BLOCK_ROWS], dtype=tl.int32)
    b_complement_differs = tl.zeros([BLOCK_ROWS], dtype=tl.int32)
    b_second_differs = tl.zeros([BLOCK_ROWS], dtype=tl.int32)
    for start in range(0, length, BLOCK_DIGITS):
        o_digits = start + tl.arange(0, BLOCK_DIGITS)[None, :]
        mask = m_rows[:, None] & (o_digits < length)
        o_answers = o_rows.to(tl.int64)[:, None] * length + o_digits
        b_answers = tl.load(answers_ptr + o_answers, mask=mask, other=0)
        if DIRECT:
            b_direct = tl.load(direct_ptr + o_answers, mask=mask, other=0)
            b_direct_differs += tl.sum((b_direct != b_answers).to(tl.int32), axis=1)
        if COMPLEMENT:
            b_complement = tl.load(complement_ptr + o_answers, mask=mask, other=0)
            b_complement_differs += tl.sum((b_complement != b_answers).to(tl.int32), axis=1)
        if SECOND:
            b_second = tl.load(second_answers_ptr + o_answers, mask=mask, other=0)
            b_second_differs += tl.sum((b_second != b_answers).to(tl.int32), axis=1)

    # The last look first, so that an earlier one overrides it.
    b_parsed, b_decided = _decides(votes_ptr, valid_ptr, o_rows, o_guesses, num_rows, num_guesses, UNANIMOUS)
    b_verdict = tl.zeros([BLOCK_ROWS], dtype=tl.int32)
    if SECOND:
        b_again = _decides(second_votes_ptr, second_valid_ptr, o_rows, o_guesses, num_rows, num_guesses, UNANIMOUS)[1]
        b_verdict = tl.where(b_again & (b_second_differs == 0), b_verdict, _NOT_COMMUTATIVE)
    if COMPLEMENT:
        b_complement_valid = tl.load(complement_valid_ptr + o_rows, mask=m_rows, other=0).to(tl.int32)
        b_verdict = tl.where((b_complement_valid != 0) & (b_complement_differs == 0), b_verdict, _NOT_COMPLEMENT)
    if DIRECT:
        b_direct_valid = tl.load(direct_valid_ptr + o_rows, mask=m_rows, other=0).to(tl.int32)
        b_verdict = tl.where((b_direct_valid != 0) & (b_direct_differs == 0), b_verdict, _NOT_DIRECT)
    b_verdict = tl.where(b_decided, b_verdict, _OUTVOTED)
    b_verdict = tl.where(b_parsed, b_verdict, _UNPARSABLE)
    tl.store(verdict_ptr + o_rows, b_verdict.to(tl.int64), mask=m_rows)
    if SECOND:
        tl.store(agrees_ptr + o_rows, b_verdict == 0, mask=m_rows)
