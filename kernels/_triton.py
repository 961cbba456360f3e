"""The one place that imports Triton, and what every kernel file needs around a kernel.

Triton exists for Linux only, and without a GPU it can merely interpret. Kernel files import `triton` and `tl` from
here, so that they load everywhere; where Triton is missing, their plain-torch references are what runs.

Whether kernels are interpreted (TRITON_INTERPRET=1) is fixed when this file is first imported.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = [
    "AVAILABLE",
    "INTERPRETED",
    "block_rows",
    "expect",
    "next_power_of_2",
    "num_programs",
    "round_to",
    "runs_kernel",
    "tl",
    "triton",
]

try:
    import triton
    import triton.language as tl

    AVAILABLE = True
    INTERPRETED = bool(triton.knobs.runtime.interpret)
except ImportError:
    AVAILABLE = INTERPRETED = False

    class _Absent:
        """Stands in for both modules: enough for `@triton.jit` and for annotations, and nothing can be launched."""

        constexpr = staticmethod(lambda value: value)

        @staticmethod
        def jit(function: Any = None, **_: Any) -> Any:
            return function if function is not None else lambda decorated: decorated

    triton = tl = _Absent()

_ROUND_BY_HAND = tl.constexpr(INTERPRETED)

# Interpreted, a program costs about 5 ms whatever its size.
_INTERPRETED_ROWS = 256


def runs_kernel(tensor: Tensor) -> bool:
    """Do operations on this tensor run the Triton kernel (on a GPU), or the reference (everywhere else)?"""
    return AVAILABLE and tensor.is_cuda


def block_rows(rows: int, compiled: int, smallest: int = 1) -> int:
    """Rows a program, a power of two: as tuned for a GPU, or many where the interpreter pays by the program."""
    return max(smallest, min(_INTERPRETED_ROWS, next_power_of_2(rows))) if INTERPRETED else compiled


def next_power_of_2(size: int) -> int:
    """The smallest power of two that is at least `size`, and at least 1."""
    return 1 << max(size - 1, 0).bit_length()


def num_programs(rows: int, block: int) -> int:
    """Programs that cover `rows` at `block` a program."""
    return -(-rows // block)


def expect(
    name: str,
    tensor: Tensor,
    shape: tuple[int | None, ...],
    dtypes: torch.dtype | tuple[torch.dtype, ...],
    device: torch.device,
    contiguous: bool = True,
) -> None:
    """Raise ValueError, naming the tensor and the rule, unless it is what a kernel takes; None fits any size."""
    dtypes = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    fits = all(want is None or want == have for want, have in zip(shape, tensor.shape, strict=False))
    if tensor.ndim != len(shape) or not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must be [{wanted}], not {list(tensor.shape)}")
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name} must be {' or '.join(map(str, dtypes))}, not {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, not {tensor.device}")
    if contiguous and not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, not of strides {tensor.stride()}")


@triton.jit
def round_to(x, DTYPE: tl.constexpr):
    """A float32 block rounded to DTYPE, to nearest and of two to the even one: `.to(DTYPE)` as compiled.

    Triton's interpreter cuts the bits that do not fit a bfloat16, so there they are rounded first.
    """
    if _ROUND_BY_HAND and tl.bfloat16 == DTYPE:
        bits = x.to(tl.uint32, bitcast=True)
        bits = tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), bits)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(DTYPE)
