"""Chain-of-thought layout on the device: problems to prompts, and completions to digits.

`engine/language/place_layout.py` calls these functions. The kernels never wait for the host, so that a whole
simplify-then-guess runs as launches. Sequences are read by columns. Each column allows one kind of token, which is one
interval of ids. A row is well-formed if every id lies in the interval of its column; the offset of an id within its
interval is the digit.

Legend: B rows, N digits of an operand, T ids of a completion.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sector.kernels._triton import block_rows, expect, next_power_of_2, num_programs, runs_kernel, tl, triton
from sector.kernels.token_table import TokenTable

# Ids per compiled program: 8 per thread.
_COMPILED_IDS = 1024


@dataclass(frozen=True, slots=True)
class Simplified:
    """Parsed simplifications; rows that do not parse hold zeros.

    a, b: `[B, N-1]` int64, the operands of the remaining problem, most significant digit first.
    carry: `[B]` int64, the carry-in of the remaining problem.
    digit: `[B]` int64, the digit of the answer that was split off.
    valid: `[B]` bool, which rows parse.
    """

    a: Tensor
    b: Tensor
    carry: Tensor
    digit: Tensor
    valid: Tensor


def prompt_ids(
    a: Tensor, b: Tensor, carry: Tensor, variants: Tensor, table: TokenTable, least_first: bool = False
) -> Tensor:
    """Return the `[B, 2N+5]` ids of `< a ) + b ) c`: prompts without their mode marks.

    a, b: `[B, N]` int64 digits, most significant first.
    carry: `[B]` int64.
    variants: `[B]` int64, the variant of each row's marks.
    least_first: whether the ids have the least significant digit first.
    """
    _check_problems(a, b, carry, variants, table)
    if runs_kernel(a):
        return prompt_ids_kernel(a, b, carry, variants, table, least_first)
    return prompt_ids_reference(a, b, carry, variants, table, least_first)


def parse_simplifications(
    ids: Tensor, digits: int, variants: Tensor, table: TokenTable, least_first: bool = False
) -> Simplified:
    """Parse completions `[B, T]` of problems of N = `digits`, T >= 2N+4, as simplifications.

    variants, least_first: as in `prompt_ids`.
    """
    if digits < 2:
        raise ValueError(f"a problem of {digits} digits cannot be simplified")
    _check_completions(ids, 2 * digits + 4, variants, table)
    if runs_kernel(ids):
        return parse_simplifications_kernel(ids, digits, variants, table, least_first)
    return parse_simplifications_reference(ids, digits, variants, table, least_first)


def parse_answers(
    ids: Tensor, digits: int, variants: Tensor, table: TokenTable, least_first: bool = False
) -> tuple[Tensor, Tensor]:
    """Parse completions `[B, T]` of problems of N = `digits`, T >= N+2; return answers `[B, N+1]`, valid `[B]`.

    Answers are int64 with the most significant digit first; rows that do not parse hold zeros.
    """
    if digits < 1:
        raise ValueError(f"there is no problem of {digits} digits")
    _check_completions(ids, digits + 2, variants, table)
    if runs_kernel(ids):
        return parse_answers_kernel(ids, digits, variants, table, least_first)
    return parse_answers_reference(ids, digits, variants, table, least_first)


def prompt_ids_reference(
    a: Tensor, b: Tensor, carry: Tensor, variants: Tensor, table: TokenTable, least_first: bool = False
) -> Tensor:
    """Compute `prompt_ids` in plain torch."""
    places = place_ids(a.shape[1], variants, table)
    last = places[:, -1:]
    columns = [
        mark_ids(table.token.start, variants, table),
        places + (a.flip(1) if least_first else a),
        last + table.token.end,
        mark_ids(table.token.plus, variants, table),
        places + (b.flip(1) if least_first else b),
        last + table.token.end,
        last + table.token.carry_0 + carry.unsqueeze(1),
    ]
    return torch.cat(columns, dim=1)


def parse_simplifications_reference(
    ids: Tensor, digits: int, variants: Tensor, table: TokenTable, least_first: bool = False
) -> Simplified:
    """Compute `parse_simplifications` in plain torch."""
    rest = digits - 1
    places = place_ids(digits, variants, table)
    before, last = places[:, -2:-1], places[:, -1:]
    lowest = torch.cat(
        [
            places[:, :-1],
            before + table.token.end,
            mark_ids(table.token.join, variants, table),
            places[:, :-1],
            before + table.token.end,
            before + table.token.carry_0,
            last,
            last + table.token.eos,
        ],
        dim=1,
    )
    span = torch.zeros(lowest.shape[1], dtype=torch.int64, device=ids.device)
    span[:rest] = span[rest + 2 : 2 * rest + 2] = span[2 * rest + 4] = table.token.num_digits - 1
    span[2 * rest + 3] = 1
    values, valid = _parse(ids, lowest, span)
    a, b = values[:, :rest], values[:, rest + 2 : 2 * rest + 2]
    if least_first:
        a, b = a.flip(1), b.flip(1)
    # Contiguous like the outputs of the kernel: `prompt_ids` requires it of its arguments.
    a, b, carry, digit = (part.contiguous() for part in (a, b, values[:, 2 * rest + 3], values[:, 2 * rest + 4]))
    return Simplified(a, b, carry, digit, valid)


def parse_answers_reference(
    ids: Tensor, digits: int, variants: Tensor, table: TokenTable, least_first: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute `parse_answers` in plain torch."""
    places = place_ids(digits + 1, variants, table)
    lowest = torch.cat([places, places[:, -1:] + table.token.eos], dim=1)
    span = torch.tensor([table.token.num_digits - 1] * (digits + 1) + [0], device=ids.device)
    values, valid = _parse(ids, lowest, span)
    answers = values[:, :-1]
    return answers.flip(1) if least_first else answers.contiguous(), valid


def prompt_ids_kernel(
    a: Tensor, b: Tensor, carry: Tensor, variants: Tensor, table: TokenTable, least_first: bool = False
) -> Tensor:
    """Compute `prompt_ids` with the Triton kernel."""
    count, digits = a.shape
    width = 2 * digits + 5
    out = _memory(a.device, count, width)
    if count == 0:
        return out
    grid, blocks = launch_shape(count, width)
    _prompt_kernel[grid](
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
        TOKEN=table.token,
        **blocks,
    )
    return out


def parse_simplifications_kernel(
    ids: Tensor, digits: int, variants: Tensor, table: TokenTable, least_first: bool = False
) -> Simplified:
    """Compute `parse_simplifications` with the Triton kernel."""
    count, rest, device = len(ids), digits - 1, ids.device
    out = Simplified(
        a=_memory(device, count, rest),
        b=_memory(device, count, rest),
        carry=_memory(device, count),
        digit=_memory(device, count),
        valid=torch.empty(count, dtype=torch.bool, device=device),
    )
    if count == 0:
        return out
    grid, blocks = launch_shape(count, 2 * rest + 6)
    _simplification_kernel[grid](
        ids,
        ids.stride(0),
        variants,
        table.mark_base,
        out.a,
        out.b,
        out.carry,
        out.digit,
        out.valid,
        count,
        rest,
        LEAST_FIRST=least_first,
        TOKEN=table.token,
        **blocks,
    )
    return out


def parse_answers_kernel(
    ids: Tensor, digits: int, variants: Tensor, table: TokenTable, least_first: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute `parse_answers` with the Triton kernel."""
    count, length = len(ids), digits + 1
    answers = _memory(ids.device, count, length)
    valid = torch.empty(count, dtype=torch.bool, device=ids.device)
    if count == 0:
        return answers, valid
    grid, blocks = launch_shape(count, length + 1)
    _answer_kernel[grid](
        ids,
        ids.stride(0),
        variants,
        table.mark_base,
        answers,
        valid,
        count,
        length,
        LEAST_FIRST=least_first,
        TOKEN=table.token,
        **blocks,
    )
    return answers, valid


def launch_shape(rows: int, width: int) -> tuple[tuple[int], dict[str, int]]:
    """Return the grid and the block sizes of a launch that covers `[rows, width]` ids."""
    columns = next_power_of_2(width)
    block = block_rows(rows, compiled=max(1, _COMPILED_IDS // columns))
    return (num_programs(rows, block),), {"BLOCK_ROWS": block, "BLOCK_COLUMNS": columns, "num_warps": 4}


def _memory(device: torch.device, *shape: int) -> Tensor:
    """Return memory for an int64 output, all of which a kernel writes; in tests it holds no values that could pass."""
    return torch.empty(shape, dtype=torch.int64, device=device)


def place_ids(length: int, variants: Tensor, table: TokenTable) -> Tensor:
    """Return the `[B, length]` ids of the digit 0 at the places of a number."""
    first = 1 + table.mark_base[table.token.start - table.token.num_local + variants].long()
    return table.token.num_local * (first.unsqueeze(1) + torch.arange(length, device=variants.device))


def mark_ids(kind: int, variants: Tensor, table: TokenTable) -> Tensor:
    """Return the `[B, 1]` ids of a mark in each row's variant."""
    return (kind - table.token.num_local + variants).unsqueeze(1)


def _parse(ids: Tensor, lowest: Tensor, span: Tensor) -> tuple[Tensor, Tensor]:
    """Return the offset of each id from the lowest of its column, and which rows are valid.

    A row is valid if all its offsets are at most `span`. Invalid rows hold zeros.
    """
    values = ids[:, : lowest.shape[1]] - lowest
    valid = ((values >= 0) & (values <= span)).all(dim=1)
    return values * valid.unsqueeze(1), valid


def _check_problems(a: Tensor, b: Tensor, carry: Tensor, variants: Tensor, table: TokenTable) -> None:
    """Raise ValueError unless the kernel can read problems from these tensors."""
    expect("a", a, (None, None), torch.int64, a.device)
    if a.shape[1] == 0:
        raise ValueError("there is no problem of 0 digits")
    expect("b", b, tuple(a.shape), torch.int64, a.device)
    expect("carry", carry, (len(a),), torch.int64, a.device)
    _check_marks(variants, table, a)


def _check_completions(ids: Tensor, length: int, variants: Tensor, table: TokenTable) -> None:
    """Raise ValueError unless the kernels can read completions of `length` ids from these tensors."""
    expect("ids", ids, (None, None), torch.int64, ids.device, contiguous=False)
    if ids.shape[1] < length or (ids.numel() and ids.stride(1) != 1):
        raise ValueError(
            f"ids must be [B, at least {length}] with adjacent ids, not {list(ids.shape)} of strides {ids.stride()}"
        )
    _check_marks(variants, table, ids)


def _check_marks(variants: Tensor, table: TokenTable, rows: Tensor) -> None:
    """Raise ValueError unless variants and table fit `rows [B, ...]`."""
    expect("variants", variants, (len(rows),), torch.int64, rows.device)
    expect("table.mark_base", table.mark_base, (table.token.num_local,), torch.int32, rows.device)


@triton.jit
def rows_of_program(variants_ptr, mark_base_ptr, num_rows, TOKEN: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """Return the rows `[R]` of a program, whether each exists, its variant `[R, 1]` and the place of first digits."""
    o_rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    m_rows = o_rows < num_rows
    b_variant = tl.load(variants_ptr + o_rows, mask=m_rows, other=0).to(tl.int32)
    b_first = 1 + tl.load(mark_base_ptr + (TOKEN.start - TOKEN.num_local) + b_variant)
    return o_rows, m_rows, b_variant[:, None], b_first[:, None]


@triton.jit
def simplification_digits(o_columns, rest):
    """Return which columns of a simplification hold digits of a' and of b', and the index in the number of each."""
    m_a = o_columns < rest
    m_b = (o_columns >= rest + 2) & (o_columns <= 2 * rest + 1)
    return m_a, m_b, tl.where(m_a, o_columns, o_columns - rest - 2)


@triton.jit(do_not_specialize=["num_rows", "digits", "width"])
def _prompt_kernel(
    a_ptr,  # [B, N]
    b_ptr,  # [B, N]
    carry_ptr,  # [B]
    variants_ptr,  # [B]
    mark_base_ptr,  # [num_local]
    out_ptr,  # [B, width]
    num_rows,
    digits,
    width,
    LEAST_FIRST: tl.constexpr,
    TOKEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Write prompts. Columns: `<` 0, a 1..N, `)` N+1, `+` N+2, b N+3..2N+2, `)` 2N+3, c 2N+4."""
    o_rows, m_rows, b_variant, b_first = rows_of_program(variants_ptr, mark_base_ptr, num_rows, TOKEN, BLOCK_ROWS)
    o_long = o_rows.to(tl.int64)[:, None]
    o_columns = tl.arange(0, BLOCK_COLUMNS)[None, :]
    b_carry = tl.load(carry_ptr + o_rows, mask=m_rows, other=0).to(tl.int32)

    m_a = (o_columns >= 1) & (o_columns <= digits)
    m_b = (o_columns >= digits + 3) & (o_columns <= 2 * digits + 2)
    i_digit = tl.where(m_a, o_columns - 1, o_columns - digits - 3)
    o_digit = o_long * digits + (digits - 1 - i_digit if LEAST_FIRST else i_digit)
    b_digit = tl.load(a_ptr + o_digit, mask=m_rows[:, None] & m_a, other=0)
    b_digit += tl.load(b_ptr + o_digit, mask=m_rows[:, None] & m_b, other=0)

    b_last = TOKEN.num_local * (b_first + digits - 1)
    b_mark = tl.where(o_columns == 0, TOKEN.start, TOKEN.plus) - TOKEN.num_local
    b_ids = b_mark + b_variant
    b_ids = tl.where((o_columns == digits + 1) | (o_columns == 2 * digits + 3), b_last + TOKEN.end, b_ids)
    b_ids = tl.where(o_columns == 2 * digits + 4, b_last + TOKEN.carry_0 + b_carry[:, None], b_ids)
    b_ids = tl.where(m_a | m_b, TOKEN.num_local * (b_first + i_digit) + b_digit.to(tl.int32), b_ids)
    m_out = m_rows[:, None] & (o_columns < width)
    tl.store(out_ptr + o_long * width + o_columns, b_ids.to(tl.int64), mask=m_out)


@triton.jit(do_not_specialize=["stride_ids", "num_rows", "rest"])
def _simplification_kernel(
    ids_ptr,  # [B, T]
    stride_ids,
    variants_ptr,  # [B]
    mark_base_ptr,  # [num_local]
    a_ptr,  # [B, M]
    b_ptr,  # [B, M]
    carry_ptr,  # [B]
    digit_ptr,  # [B]
    valid_ptr,  # [B]
    num_rows,
    rest,
    LEAST_FIRST: tl.constexpr,
    TOKEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Parse simplifications. With M = N-1 = rest, the remaining problem a', b', c', its digit d, and the end E:

    columns a' 0..M-1, `)` M, `&` M+1, b' M+2..2M+1, `)` 2M+2, c' 2M+3, d 2M+4, E 2M+5.
    """
    o_rows, m_rows, b_variant, b_first = rows_of_program(variants_ptr, mark_base_ptr, num_rows, TOKEN, BLOCK_ROWS)
    o_long = o_rows.to(tl.int64)[:, None]
    o_columns = tl.arange(0, BLOCK_COLUMNS)[None, :]
    m_all = m_rows[:, None] & (o_columns < 2 * rest + 6)
    b_ids = tl.load(ids_ptr + o_long * stride_ids + o_columns, mask=m_all, other=0).to(tl.int32)

    m_a, m_b, i_digit = simplification_digits(o_columns, rest)
    m_end = (o_columns == rest) | (o_columns == 2 * rest + 2)
    m_carry = o_columns == 2 * rest + 3
    m_digit = o_columns == 2 * rest + 4
    b_last = TOKEN.num_local * (b_first + rest)
    # The lowest id of each column, and the largest offset from it. The last column, E, has no mask and comes first.
    b_lowest = tl.where(o_columns == rest + 1, TOKEN.join - TOKEN.num_local + b_variant, b_last + TOKEN.eos)
    b_lowest = tl.where(m_a | m_b, TOKEN.num_local * (b_first + i_digit), b_lowest)
    b_lowest = tl.where(m_end, b_last - TOKEN.num_local + TOKEN.end, b_lowest)
    b_lowest = tl.where(m_carry, b_last - TOKEN.num_local + TOKEN.carry_0, b_lowest)
    b_lowest = tl.where(m_digit, b_last, b_lowest)
    b_span = tl.where(m_a | m_b | m_digit, TOKEN.num_digits - 1, tl.where(m_carry, 1, 0))
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


@triton.jit(do_not_specialize=["stride_ids", "num_rows", "length"])
def _answer_kernel(
    ids_ptr,  # [B, T]
    stride_ids,
    variants_ptr,  # [B]
    mark_base_ptr,  # [num_local]
    answers_ptr,  # [B, length]
    valid_ptr,  # [B]
    num_rows,
    length,
    LEAST_FIRST: tl.constexpr,
    TOKEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Parse answers. Columns: the digits of the answer 0..length-1, then the end E."""
    o_rows, m_rows, _, b_first = rows_of_program(variants_ptr, mark_base_ptr, num_rows, TOKEN, BLOCK_ROWS)
    o_long = o_rows.to(tl.int64)[:, None]
    o_columns = tl.arange(0, BLOCK_COLUMNS)[None, :]
    m_all = m_rows[:, None] & (o_columns <= length)
    b_ids = tl.load(ids_ptr + o_long * stride_ids + o_columns, mask=m_all, other=0).to(tl.int32)
    m_digits = o_columns < length
    b_end = TOKEN.num_local * (b_first + length - 1) + TOKEN.eos
    b_value = b_ids - tl.where(m_digits, TOKEN.num_local * (b_first + o_columns), b_end)
    m_wrong = m_all & ((b_value < 0) | (b_value > tl.where(m_digits, TOKEN.num_digits - 1, 0)))
    b_valid = tl.sum(m_wrong.to(tl.int32), axis=1) == 0
    o_digit = o_long * length + (length - 1 - o_columns if LEAST_FIRST else o_columns)
    b_value = tl.where(b_valid[:, None], b_value, 0)
    tl.store(answers_ptr + o_digit, b_value.to(tl.int64), mask=m_all & m_digits)
    tl.store(valid_ptr + o_rows, b_valid, mask=m_rows)
