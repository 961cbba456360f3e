"""Parts that the kernel files share: block sizes, checks, rounding, and work without Triton."""

import subprocess
import sys

import pytest
import torch

from sector.kernels import _triton
from sector.kernels._triton import block_rows, expect, next_power_of_2, num_programs, round_to, tl, triton

# Stands before imports in a program of its own, as a system that Triton does not exist for.
WITHOUT_TRITON = """
import sys
sys.argv[0] = "sector"
sys.modules["triton"] = None
import torch
from sector.engine.language.tokens import kernel_table
from sector.kernels import _triton, consistency, decode_attention, digit_sampler, layout, philox
assert not _triton.AVAILABLE and not _triton.INTERPRETED
ids = torch.tensor([0, 16 * 3 + 4])
head = digit_sampler.Head(torch.ones(8), torch.zeros(32, 8), 1e-6)
print(digit_sampler.sample_digits(torch.ones(2, 8), ids, head, kernel_table()).ids.tolist())
"""


@triton.jit
def _round_kernel(x_ptr, y_ptr, count, BLOCK: tl.constexpr):
    o_x = tl.arange(0, BLOCK)
    b_x = tl.load(x_ptr + o_x, mask=o_x < count, other=0.0)
    tl.store(y_ptr + o_x, round_to(b_x, y_ptr.dtype.element_ty), mask=o_x < count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_rounding_is_torchs(dtype: torch.dtype, kernel_device: torch.device) -> None:
    """Every kind of number: ties to even both ways, numbers that round up to infinity, and numbers of all sizes."""
    special = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-40, -1e-45, 3.4e38, 1 + 2**-8, 1 + 3 * 2**-8]
    bits = torch.randint(-(2**31), 2**31, (990,), generator=torch.Generator().manual_seed(9), dtype=torch.int64)
    x = torch.cat([torch.tensor(special), bits.to(torch.int32).view(torch.float32)]).to(kernel_device)
    y = torch.full((1000,), 7.0, dtype=dtype, device=kernel_device)
    _round_kernel[(1,)](x, y, 1000, BLOCK=1024)
    torch.testing.assert_close(y, x.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("size", "power"), [(0, 1), (1, 1), (2, 2), (3, 4), (31, 32), (32, 32), (33, 64), (1025, 2048)], ids=str
)
def test_next_power_of_two(size: int, power: int) -> None:
    assert next_power_of_2(size) == power


def test_programs_cover_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [num_programs(rows, 32) for rows in (0, 1, 32, 33)] == [0, 1, 1, 2]
    monkeypatch.setattr(_triton, "INTERPRETED", True)
    assert [block_rows(rows, compiled=4) for rows in (1, 5, 256, 1000)] == [1, 8, 256, 256]
    assert block_rows(1, compiled=32, smallest=16) == 16
    monkeypatch.setattr(_triton, "INTERPRETED", False)
    assert [block_rows(rows, compiled=4) for rows in (1, 1000)] == [4, 4]


def test_a_check_names_the_tensor_and_the_rule() -> None:
    cpu, x = torch.device("cpu"), torch.zeros(2, 3)
    expect("x", x, (None, 3), (torch.bfloat16, torch.float32), cpu)
    expect("x", x.T, (3, 2), torch.float32, cpu, contiguous=False)
    for message, arguments in {
        r"x must be \[2, any, 3\], not \[2, 3\]": (x, (2, None, 3), torch.float32, cpu),
        r"x must be \[2, 4\], not \[2, 3\]": (x, (2, 4), torch.float32, cpu),
        r"x must be torch\.int64, not torch\.float32": (x, (2, 3), torch.int64, cpu),
        "x must be on meta, not cpu": (x, (2, 3), torch.float32, torch.device("meta")),
        r"x must be contiguous, not of strides \(1, 3\)": (x.T, (3, 2), torch.float32, cpu),
    }.items():
        with pytest.raises(ValueError, match=message):
            expect("x", *arguments)


def test_without_triton_the_references_run() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "[16, 64]"
