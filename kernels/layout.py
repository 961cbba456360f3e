"""Chain-of-thought layout on the device: problems to prompts, completions to digits, and on to the next prompt.

The same as `engine/language/place_layout.py`, for loops that never wait for the host: a whole simplify-then-guess runs
as launches. Sequences are read by columns. In each column one kind of token may stand, so one interval of ids: a
row is well-formed if every id lies in its column's interval, and what an id exceeds the interval by is its digit.

Legend: B rows, N digits of an operand, T ids of a completion.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sector.kernels._triton import block_rows, expect, next_power_of_2, num_programs, runs_kernel, tl, triton
from sector.kernels.token_table import TokenTable

# What an output holds until a kernel has written it: no id and no digit.
PLACEHOLDER = -1

# Ids of a compiled program: 8 a thread.
_COMPILED_IDS = 1024


@dataclass(frozen=True, slots=True)
class Simplified:
    """What simplifications say; rows that do not parse hold zeros.

    a, b: `[B, N-1]`, most significant digit first, and carry `[B]`: the remaining problem, int64. digit: `[B]` int64,
    the digit split off. valid: `[B]` bool. prompts: `[B, 2N+3]` or, with a mode mark, `[B, 2N+4]` int64 ids that ask
    for the remaining problem.
    """

    a: Tensor
    b: Tensor
    carry: Tensor
    digit: Tensor
    valid: Tensor
    prompts: Tensor


def prompt_ids(
    a: Tensor,
    b: Tensor,
    carry: Tensor,
    variants: Tensor,
    table: TokenTable,
    mode: int | None = None,
    least_first: bool = False,
) -> Tensor:
    """`[B, 2N+5]` ids of `< a ) + b ) c`; `[B, 2N+6]` with the mark of `mode`, the class table.answer or table.think.

    a, b: `[B, N]` digits, most significant first. carry: `[B]`. variants: `[B]`, which start marks. All int64.
    least_first: are digits written least significant first?
    """
    _check_problems(a, b, carry, variants, table)
    if runs_kernel(a):
        return prompt_ids_kernel(a, b, carry, variants, table, mode, least_first)
    return prompt_ids_reference(a, b, carry, variants, table, mode, least_first)


def parse_simplifications(
    ids: Tensor,
    digits: int,
    variants: Tensor,
    table: TokenTable,
    mode: int | None = None,
    least_first: bool = False,
) -> Simplified:
    """Completions `[B, T]` of problems of N = `digits`, T >= 2N+4, to what they say and the next prompts.

    mode: of the next prompts. variants, least_first: as in `prompt_ids`.
    """
    if digits < 2:
        raise ValueError(f"a problem of {digits} digits cannot be simplified")
    _check_completions(ids, 2 * digits + 4, variants, table)
    if runs_kernel(ids):
        return parse_simplifications_kernel(ids, digits, variants, table, mode, least_first)
    return parse_simplifications_reference(ids, digits, variants, table, mode, least_first)


def parse_answers(
    ids: Tensor, digits: int, variants: Tensor, table: TokenTable, least_first: bool = False
) -> tuple[Tensor, Tensor]:
    """Completions `[B, T]` of problems of N = `digits`, T >= N+2, to answers `[B, N+1]` and which parsed `[B]`.

    Answers are most significant digit first, int64; rows that do not parse hold zeros.
    """
    if digits < 1:
        raise ValueError(f"there is no problem of {digits} digits")
    _check_completions(ids, digits + 2, variants, table)
    if runs_kernel(ids):
        return parse_answers_kernel(ids, digits, variants, table, least_first)
    return parse_answers_reference(ids, digits, variants, table, least_first)


def prompt_ids_reference(
    a: Tensor,
    b: Tensor,
    carry: Tensor,
    variants: Tensor,
    table: TokenTable,
    mode: int | None = None,
    least_first: bool = False,
) -> Tensor:
    """`prompt_ids` in plain torch."""
    places = _place_ids(a.shape[1], variants, table)
    last = places[:, -1:]
    columns = [
        _mark(table.start, variants, table),
        places + (a.flip(1) if least_first else a),
        last + table.end,
        _mark(table.plus, variants, table),
        places + (b.flip(1) if least_first else b),
        last + table.end,
        last + table.carry_0 + carry.unsqueeze(1),
    ]
    if mode is not None:
        columns.append(_mark(mode, variants, table))
    return torch.cat(columns, dim=1)


def parse_simplifications_reference(
    ids: Tensor,
    digits: int,
    variants: Tensor,
    table: TokenTable,
    mode: int | None = None,
    least_first: bool = False,
) -> Simplified:
    """`parse_simplifications` in plain torch."""
    rest = digits - 1
    places = _place_ids(digits, variants, table)
    before, last = places[:, -2:-1], places[:, -1:]
    lowest = torch.cat(
        [
            places[:, :-1],
            before + table.end,
            _mark(table.join, variants, table),
            places[:, :-1],
            before + table.end,
            before + table.carry_0,
            last,
            last + table.eos,
        ],
        dim=1,
    )
    any_digit = [table.num_digits - 1]
    span = torch.tensor([*any_digit * rest, 0, 0, *any_digit * rest, 0, 1, *any_digit, 0], device=ids.device)
    values, valid = _parse(ids, lowest, span)
    a, b = values[:, :rest], values[:, rest + 2 : 2 * rest + 2]
    if least_first:
        a, b = a.flip(1), b.flip(1)
    # Contiguous, as the kernel's are: the next call asks for that.
    a, b, carry, digit = (part.contiguous() for part in (a, b, values[:, 2 * rest + 3], values[:, 2 * rest + 4]))
    return Simplified(a, b, carry, digit, valid, prompt_ids_reference(a, b, carry, variants, table, mode, least_first))


def parse_answers_reference(
    ids: Tensor, digits: int, variants: Tensor, table: TokenTable, least_first: bool = False
) -> tuple[Tensor, Tensor]:
    """`parse_answers` in plain torch."""
    places = _place_ids(digits + 1, variants, table)
    lowest = torch.cat([places, places[:, -1:] + table.eos], dim=1)
    span = torch.tensor([table.num_digits - 1] * (digits + 1) + [0], device=ids.device)
    values, valid = _parse(ids, lowest, span)
    answers = values[:, :-1]
    return answers.flip(1) if least_first else answers.contiguous(), valid


def prompt_ids_kernel(
    a: Tensor,
    b: Tensor,
    carry: Tensor,
    variants: Tensor,
    table: TokenTable,
    mode: int | None = None,
    least_first: bool = False,
) -> Tensor:
    """`prompt_ids` by the Triton kernel."""
    count, digits = a.shape
    width = 2 * digits + 5 + (mode is not None)
    out = torch.full((count, width), PLACEHOLDER, dtype=torch.int64, device=a.device)
    if count == 0:
        return out
    columns = next_power_of_2(width)
    block = block_rows(count, compiled=max(1, _COMPILED_IDS // columns))
    _prompt_kernel[(num_programs(count, block),)](
        a,
        b,
        carry,
        variants,
        table.mark_base,
        out,
        count,
        digits,
        width,
        LEAST_FIRST=least_first,
        NUM_LOCAL=table.num_local,
        START=table.start,
        PLUS=table.plus,
        MODE=mode or table.pad,
        END=table.end,
        CARRY_0=table.carry_0,
        BLOCK_ROWS=block,
        BLOCK_COLUMNS=columns,
        num_warps=4,
    )
    return out


def parse_simplifications_kernel(
    ids: Tensor, digits: int, variants: Tensor, table: TokenTable, mode: int | None = None, least_first: bool = False
) -> Simplified:
    """`parse_simplifications` by the Triton kernel."""
    count, rest = len(ids), digits - 1
    prompt_width = 2 * rest + 5 + (mode is not None)

    def placeholder(*shape: int) -> Tensor:
        return torch.full(shape, PLACEHOLDER, dtype=torch.int64, device=ids.device)

    out = Simplified(
        a=placeholder(count, rest),
        b=placeholder(count, rest),
        carry=placeholder(count),
        digit=placeholder(count),
        valid=torch.zeros(count, dtype=torch.bool, device=ids.device),
        prompts=placeholder(count, prompt_width),
    )
    if count == 0:
        return out
    columns = next_power_of_2(2 * rest + 6)
    block = block_rows(count, compiled=max(1, _COMPILED_IDS // columns))
    _simplification_kernel[(num_programs(count, block),)](
        ids,
        ids.stride(0),
        variants,
        table.mark_base,
        out.a,
        out.b,
        out.carry,
        out.digit,
        out.valid,
        out.prompts,
        count,
        rest,
        prompt_width,
        LEAST_FIRST=least_first,
        NUM_LOCAL=table.num_local,
        NUM_DIGITS=table.num_digits,
        START=table.start,
        PLUS=table.plus,
        JOIN=table.join,
        MODE=mode or table.pad,
        END=table.end,
        CARRY_0=table.carry_0,
        EOS=table.eos,
        BLOCK_ROWS=block,
        BLOCK_COLUMNS=columns,
        num_warps=4,
    )
    return out


def parse_answers_kernel(
    ids: Tensor, digits: int, variants: Tensor, table: TokenTable, least_first: bool = False
) -> tuple[Tensor, Tensor]:
    """`parse_answers` by the Triton kernel."""
    count, length = len(ids), digits + 1
    answers = torch.full((count, length), PLACEHOLDER, dtype=torch.int64, device=ids.device)
    valid = torch.zeros(count, dtype=torch.bool, device=ids.device)
    if count == 0:
        return answers, valid
    columns = next_power_of_2(length + 1)
    block = block_rows(count, compiled=max(1, _COMPILED_IDS // columns))
    _answer_kernel[(num_programs(count, block),)](
        ids,
        ids.stride(0),
        variants,
        table.mark_base,
        answers,
        valid,
        count,
        length,
        LEAST_FIRST=least_first,
        NUM_LOCAL=table.num_local,
        NUM_DIGITS=table.num_digits,
        START=table.start,
        EOS=table.eos,
        BLOCK_ROWS=block,
        BLOCK_COLUMNS=columns,
        num_warps=4,
    )
    return answers, valid


def _place_ids(length: int, variants: Tensor, table: TokenTable) -> Tensor:
    """`[B, length]` ids of the digit 0 at the places of a number."""
    first = 1 + table.mark_base[table.start - table.num_local + variants].long()
    return table.num_local * (first.unsqueeze(1) + torch.arange(length, device=variants.device))


def _mark(kind: int, variants: Tensor, table: TokenTable) -> Tensor:
    """`[B, 1]` ids of a mark in each row's variant."""
    return (kind - table.num_local + variants).unsqueeze(1)


def _parse(ids: Tensor, lowest: Tensor, span: Tensor) -> tuple[Tensor, Tensor]:
    """By how much ids exceed the lowest of their column, zero in rows where any lies outside; which rows are valid."""
    values = ids[:, : lowest.shape[1]] - lowest
    valid = ((values >= 0) & (values <= span)).all(dim=1)
    return values * valid.unsqueeze(1), valid


def _check_problems(a: Tensor, b: Tensor, carry: Tensor, variants: Tensor, table: TokenTable) -> None:
    """Raise ValueError on what the kernels would misread."""
    expect("a", a, (None, None), torch.int64, a.device)
    if a.shape[1] == 0:
        raise ValueError("there is no problem of 0 digits")
    expect("b", b, tuple(a.shape), torch.int64, a.device)
    expect("carry", carry, (len(a),), torch.int64, a.device)
    expect("variants", variants, (len(a),), torch.int64, a.device)
    expect("table.mark_base", table.mark_base, (table.num_local,), torch.int32, a.device)


def _check_completions(ids: Tensor, length: int, variants: Tensor, table: TokenTable) -> None:
    """Raise ValueError on what the kernels would misread."""
    expect("ids", ids, (None, None), torch.int64, ids.device, contiguous=False)
    if ids.shape[1] < length or (ids.numel() and ids.stride(1) != 1):
        raise ValueError(
            f"ids must be [B, at least {length}] with adjacent ids, not {list(ids.shape)} of strides {ids.stride()}"
        )
    expect("variants", variants, (len(ids),), torch.int64, ids.device)
    expect("table.mark_base", table.mark_base, (table.num_local,), torch.int32, ids.device)


@triton.jit
def _first_place(mark_base_ptr, variants, START: tl.constexpr, NUM_LOCAL: tl.constexpr):
    """Place of the first digit of a number after marks of these variants."""
    return 1 + tl.load(mark_base_ptr + (START - NUM_LOCAL) + variants)


@triton.jit(do_not_specialize=["num_rows", "digits", "width"])
def _prompt_kernel(
    a_ptr,  # [B, N]
    b_ptr,  # [B, N]
    carry_ptr,  # [B]
    variants_ptr,  # [B]
    mark_base_ptr,  # [NUM_LOCAL]
    out_ptr,  # [B, width]
    num_rows,
    digits,
    width,
    LEAST_FIRST: tl.constexpr,
    NUM_LOCAL: tl.constexpr,
    START: tl.constexpr,
    PLUS: tl.constexpr,
    MODE: tl.constexpr,
    END: tl.constexpr,
    CARRY_0: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Columns: `<` 0, a 1..N, `)` N+1, `+` N+2, b N+3..2N+2, `)` 2N+3, c 2N+4, and the mode mark 2N+5."""
    o_rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_long = o_rows.to(tl.int64)[:, None]
    o_columns = tl.arange(0, BLOCK_COLUMNS)[None, :]
    m_rows = o_rows < num_rows
    b_variant = tl.load(variants_ptr + o_rows, mask=m_rows, other=0).to(tl.int32)
    b_first = _first_place(mark_base_ptr, b_variant, START, NUM_LOCAL)[:, None]
    b_carry = tl.load(carry_ptr + o_rows, mask=m_rows, other=0).to(tl.int32)

    m_a = (o_columns >= 1) & (o_columns <= digits)
    m_b = (o_columns >= digits + 3) & (o_columns <= 2 * digits + 2)
    i_digit = tl.where(m_a, o_columns - 1, o_columns - digits - 3)
    o_digit = o_long * digits + (digits - 1 - i_digit if LEAST_FIRST else i_digit)
    b_digit = tl.load(a_ptr + o_digit, mask=m_rows[:, None] & m_a, other=0)
    b_digit += tl.load(b_ptr + o_digit, mask=m_rows[:, None] & m_b, other=0)

    b_last = NUM_LOCAL * (b_first + digits - 1)
    b_mark = tl.where(o_columns == 0, START, tl.where(o_columns == digits + 2, PLUS, MODE)) - NUM_LOCAL
    b_ids = b_mark + b_variant[:, None]
    b_ids = tl.where((o_columns == digits + 1) | (o_columns == 2 * digits + 3), b_last + END, b_ids)
    b_ids = tl.where(o_columns == 2 * digits + 4, b_last + CARRY_0 + b_carry[:, None], b_ids)
    b_ids = tl.where(m_a | m_b, NUM_LOCAL * (b_first + i_digit) + b_digit.to(tl.int32), b_ids)
    m_out = m_rows[:, None] & (o_columns < width)
    tl.store(out_ptr + o_long * width + o_columns, b_ids.to(tl.int64), mask=m_out)


@triton.jit(do_not_specialize=["stride_ids", "num_rows", "rest", "prompt_width"])
def _simplification_kernel(
    ids_ptr,  # [B, T]
    stride_ids,
    variants_ptr,  # [B]
    mark_base_ptr,  # [NUM_LOCAL]
    a_ptr,  # [B, M]
    b_ptr,  # [B, M]
    carry_ptr,  # [B]
    digit_ptr,  # [B]
    valid_ptr,  # [B]
    prompts_ptr,  # [B, prompt_width]
    num_rows,
    rest,
    prompt_width,
    LEAST_FIRST: tl.constexpr,
    NUM_LOCAL: tl.constexpr,
    NUM_DIGITS: tl.constexpr,
    START: tl.constexpr,
    PLUS: tl.constexpr,
    JOIN: tl.constexpr,
    MODE: tl.constexpr,
    END: tl.constexpr,
    CARRY_0: tl.constexpr,
    EOS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Columns, M = N-1 = rest: a' 0..M-1, `)` M, `&` M+1, b' M+2..2M+1, `)` 2M+2, c' 2M+3, d 2M+4, E 2M+5."""
    o_rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_long = o_rows.to(tl.int64)[:, None]
    o_columns = tl.arange(0, BLOCK_COLUMNS)[None, :]
    m_rows = o_rows < num_rows
    m_all = m_rows[:, None] & (o_columns < 2 * rest + 6)
    b_ids = tl.load(ids_ptr + o_long * stride_ids + o_columns, mask=m_all, other=0).to(tl.int32)
    b_variant = tl.load(variants_ptr + o_rows, mask=m_rows, other=0).to(tl.int32)
    b_first = _first_place(mark_base_ptr, b_variant, START, NUM_LOCAL)[:, None]
    b_variant = b_variant[:, None]

    m_a = o_columns < rest
    m_b = (o_columns >= rest + 2) & (o_columns <= 2 * rest + 1)
    m_end = (o_columns == rest) | (o_columns == 2 * rest + 2)
    m_carry = o_columns == 2 * rest + 3
    m_digit = o_columns == 2 * rest + 4
    i_digit = tl.where(m_a, o_columns, o_columns - rest - 2)
    b_last = NUM_LOCAL * (b_first + rest)
    # The lowest id of each column and how far above it an id may lie; the first case is the last column's.
    b_lowest = tl.where(o_columns == rest + 1, JOIN - NUM_LOCAL + b_variant, b_last + EOS)
    b_lowest = tl.where(m_a | m_b, NUM_LOCAL * (b_first + i_digit), b_lowest)
    b_lowest = tl.where(m_end, b_last - NUM_LOCAL + END, b_lowest)
    b_lowest = tl.where(m_carry, b_last - NUM_LOCAL + CARRY_0, b_lowest)
    b_lowest = tl.where(m_digit, b_last, b_lowest)
    b_span = tl.where(m_a | m_b | m_digit, NUM_DIGITS - 1, tl.where(m_carry, 1, 0))
    b_value = b_ids - b_lowest
    m_wrong = m_all & ((b_value < 0) | (b_value > b_span))
    b_valid = tl.sum(m_wrong.to(tl.int32), axis=1) == 0
    b_value = tl.where(b_valid[:, None], b_value, 0)

    b_stored = b_value.to(tl.int64)
    o_digit = o_long * rest + (rest - 1 - i_digit if LEAST_FIRST else i_digit)
    tl.store(a_ptr + o_digit, b_stored, mask=m_all & m_a)
    tl.store(b_ptr + o_digit, b_stored, mask=m_all & m_b)
    tl.store(carry_ptr + o_long + 0 * o_columns, b_stored, mask=m_all & m_carry)
    tl.store(digit_ptr + o_long + 0 * o_columns, b_stored, mask=m_all & m_digit)
    tl.store(valid_ptr + o_rows, b_valid, mask=m_rows)

    # The next prompt is what was written up to the carry mark, one column on, behind `<` and with `+` for `&`.
    b_next = tl.where(o_columns == rest + 1, PLUS - NUM_LOCAL + b_variant, b_lowest + b_value)
    b_next = tl.where(m_digit, MODE - NUM_LOCAL + b_variant, b_next)
    p_prompts = prompts_ptr + o_long * prompt_width
    tl.store(p_prompts + o_columns + 1, b_next.to(tl.int64), mask=m_rows[:, None] & (o_columns + 1 < prompt_width))
    tl.store(p_prompts, (START - NUM_LOCAL + b_variant).to(tl.int64), mask=m_rows[:, None])


@triton.jit(do_not_specialize=["stride_ids", "num_rows", "length"])
def _answer_kernel(
    ids_ptr,  # [B, T]
    stride_ids,
    variants_ptr,  # [B]
    mark_base_ptr,  # [NUM_LOCAL]
    answers_ptr,  # [B, length]
    valid_ptr,  # [B]
    num_rows,
    length,
    LEAST_FIRST: tl.constexpr,
    NUM_LOCAL: tl.constexpr,
    NUM_DIGITS: tl.constexpr,
    START: tl.constexpr,
    EOS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Columns: the answer's digits 0..length-1, E."""
    o_rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_long = o_rows.to(tl.int64)[:, None]
    o_columns = tl.arange(0, BLOCK_COLUMNS)[None, :]
    m_rows = o_rows < num_rows
    m_all = m_rows[:, None] & (o_columns <= length)
    b_ids = tl.load(ids_ptr + o_long * stride_ids + o_columns, mask=m_all, other=0).to(tl.int32)
    b_variant = tl.load(variants_ptr + o_rows, mask=m_rows, other=0).to(tl.int32)
    b_first = _first_place(mark_base_ptr, b_variant, START, NUM_LOCAL)[:, None]
    m_digits = o_columns < length
    b_end = NUM_LOCAL * (b_first + length - 1) + EOS
    b_value = b_ids - tl.where(m_digits, NUM_LOCAL * (b_first + o_columns), b_end)
    m_wrong = m_all & ((b_value < 0) | (b_value > tl.where(m_digits, NUM_DIGITS - 1, 0)))
    b_valid = tl.sum(m_wrong.to(tl.int32), axis=1) == 0
    o_digit = o_long * length + (length - 1 - o_columns if LEAST_FIRST else o_columns)
    b_value = tl.where(b_valid[:, None], b_value, 0)
    tl.store(answers_ptr + o_digit, b_value.to(tl.int64), mask=m_all & m_digits)
    tl.store(valid_ptr + o_rows, b_valid, mask=m_rows)
