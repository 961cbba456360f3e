"""Simplifications as ids, on the device: the drafts of a chain of thought, each written by one launch.

`PlaceLayout.simplification_ids` calls it. `layout.py` reads such ids back.

Legend: B rows, M digits of an operand of the remaining problem.
"""

import torch
from torch import Tensor

from sector.kernels._triton import expect, runs_kernel, tl, triton
from sector.kernels.layout import launch_shape, mark_ids, place_ids, rows_of_program, simplification_digits
from sector.kernels.token_table import TokenTable


def simplification_ids(
    a: Tensor, b: Tensor, carry: Tensor, digit: Tensor, variants: Tensor, table: TokenTable, least_first: bool = False
) -> Tensor:
    """Return the `[B, 2M+6]` ids of `a ) & b ) c d E`: the remaining problem, the digit split off, and the end.

    a, b: `[B, M]` int64 digits, most significant first, adjacent in a row.
    carry, digit: `[B]` int64.
    variants: `[B]` int64, the variant of each row's marks.
    least_first: whether the ids have the least significant digit first.
    """
    for name, operand in (("a", a), ("b", b)):
        expect(name, operand, (len(carry), a.shape[1]), torch.int64, a.device, contiguous=False)
        if a.shape[1] == 0 or (a.shape[1] > 1 and operand.stride(1) != 1):
            raise ValueError(
                f"{name} must have digits, adjacent in a row, not {list(operand.shape)} of strides {operand.stride()}"
            )
    for name, column in (("carry", carry), ("digit", digit), ("variants", variants)):
        expect(name, column, (len(a),), torch.int64, a.device)
    run = simplification_ids_kernel if runs_kernel(a) else simplification_ids_reference
    return run(a, b, carry, digit, variants, table, least_first)


def simplification_ids_reference(
    a: Tensor, b: Tensor, carry: Tensor, digit: Tensor, variants: Tensor, table: TokenTable, least_first: bool = False
) -> Tensor:
    """Compute `simplification_ids` in plain torch."""
    places = place_ids(a.shape[1] + 1, variants, table)
    before, last = places[:, -2:-1], places[:, -1:]
    columns = [
        places[:, :-1] + (a.flip(1) if least_first else a),
        before + table.token.end,
        mark_ids(table.token.join, variants, table),
        places[:, :-1] + (b.flip(1) if least_first else b),
        before + table.token.end,
        before + table.token.carry_0 + carry.unsqueeze(1),
        last + digit.unsqueeze(1),
        last + table.token.eos,
    ]
    return torch.cat(columns, dim=1)


def simplification_ids_kernel(
    a: Tensor, b: Tensor, carry: Tensor, digit: Tensor, variants: Tensor, table: TokenTable, least_first: bool = False
) -> Tensor:
    """Compute `simplification_ids` with the Triton kernel."""
    count, rest = a.shape
    out = torch.empty(count, 2 * rest + 6, dtype=torch.int64, device=a.device)
    if count == 0:
        return out
    grid, blocks = launch_shape(count, 2 * rest + 6)
    _simplification_ids_kernel[grid](
        a,
        b,
        a.stride(0),
        b.stride(0),
        carry,
        digit,
        variants,
        table.mark_base,
        out,
        count,
        rest,
        LEAST_FIRST=least_first,
        TOKEN=table.token,
        **blocks,
    )
    return out


@triton.jit(do_not_specialize=["stride_a", "stride_b", "num_rows", "rest"])
def _simplification_ids_kernel(
    a_ptr,  # [B, M]
    b_ptr,  # [B, M]
    stride_a,
    stride_b,
    carry_ptr,  # [B]
    digit_ptr,  # [B]
    variants_ptr,  # [B]
    mark_base_ptr,  # [num_local]
    out_ptr,  # [B, 2M + 6]
    num_rows,
    rest,
    LEAST_FIRST: tl.constexpr,
    TOKEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Write simplifications. Columns as in `layout._simplification_kernel`."""
    o_rows, m_rows, b_variant, b_first = rows_of_program(variants_ptr, mark_base_ptr, num_rows, TOKEN, BLOCK_ROWS)
    o_long = o_rows.to(tl.int64)[:, None]
    o_columns = tl.arange(0, BLOCK_COLUMNS)[None, :]
    b_carry = tl.load(carry_ptr + o_rows, mask=m_rows, other=0).to(tl.int32)[:, None]
    b_split = tl.load(digit_ptr + o_rows, mask=m_rows, other=0).to(tl.int32)[:, None]

    m_a, m_b, i_digit = simplification_digits(o_columns, rest)
    o_digit = rest - 1 - i_digit if LEAST_FIRST else i_digit
    b_digit = tl.load(a_ptr + o_long * stride_a + o_digit, mask=m_rows[:, None] & m_a, other=0)
    b_digit += tl.load(b_ptr + o_long * stride_b + o_digit, mask=m_rows[:, None] & m_b, other=0)

    b_last = TOKEN.num_local * (b_first + rest)
    b_before = b_last - TOKEN.num_local
    # The last column, the end, has no mask and comes first.
    b_ids = tl.where(o_columns == rest + 1, TOKEN.join - TOKEN.num_local + b_variant, b_last + TOKEN.eos)
    b_ids = tl.where(m_a | m_b, TOKEN.num_local * (b_first + i_digit) + b_digit.to(tl.int32), b_ids)
    b_ids = tl.where((o_columns == rest) | (o_columns == 2 * rest + 2), b_before + TOKEN.end, b_ids)
    b_ids = tl.where(o_columns == 2 * rest + 3, b_before + TOKEN.carry_0 + b_carry, b_ids)
    b_ids = tl.where(o_columns == 2 * rest + 4, b_last + b_split, b_ids)
    width = 2 * rest + 6
    tl.store(out_ptr + o_long * width + o_columns, b_ids.to(tl.int64), mask=m_rows[:, None] & (o_columns < width))
