"""The only file that imports Triton, and the helpers that every kernel file needs.

Triton exists for Linux only, and without a GPU it can only interpret. Kernel files import `triton` and `tl` from here,
so that they load everywhere. Without Triton their plain-torch references run.

The first import of this file fixes whether kernels are interpreted (TRITON_INTERPRET=1).
"""

import torch
from torch import Tensor

__all__ = [
    "AVAILABLE",
    "FLOATS",
    "INTERPRETED",
    "block_rows",
    "expect",
    "next_power_of_2",
    "num_programs",
    "product",
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
        """Placeholder for both modules: enough for `@triton.jit` and for annotations, but it cannot launch anything."""

        constexpr = staticmethod(lambda value: value)

        @staticmethod
        def jit(function: object = None, **_: object) -> object:
            return function if function is not None else lambda decorated: decorated

    triton = tl = _Absent()

_INTERPRETED = tl.constexpr(INTERPRETED)

# Dtypes of activations and weights.
FLOATS = (torch.float32, torch.bfloat16)

# An interpreted program costs about 5 ms at any size.
_INTERPRETED_ROWS = 256


def runs_kernel(tensor: Tensor) -> bool:
    """Return whether operations on this tensor run the Triton kernel (on a GPU) and not the reference."""
    return AVAILABLE and tensor.is_cuda


def block_rows(rows: int, compiled: int, smallest: int = 1) -> int:
    """Return the rows per program, a power of two: `compiled` on a GPU, many rows if interpreted.

    The time of the interpreter depends on the number of programs, not on their size.
    """
    return max(smallest, min(_INTERPRETED_ROWS, next_power_of_2(rows))) if INTERPRETED else compiled


def next_power_of_2(size: int) -> int:
    """Return the smallest power of two that is at least `size`, and at least 1."""
    return 1 << max(size - 1, 0).bit_length()


def num_programs(rows: int, block: int) -> int:
    """Return the number of programs that cover `rows` at `block` rows each."""
    return -(-rows // block)


def expect(
    name: str,
    tensor: Tensor,
    shape: tuple[int | None, ...],
    dtypes: torch.dtype | tuple[torch.dtype, ...],
    device: torch.device,
    contiguous: bool = True,
) -> None:
    """Raise ValueError, naming the tensor and the rule, unless shape, dtype, device and layout are as expected.

    shape: the expected sizes; None matches any size.
    """
    dtypes = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    fits = all(expected in (None, size) for expected, size in zip(shape, tensor.shape, strict=False))
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
    """Round a float32 block to DTYPE, to nearest with ties to even, as `.to(DTYPE)` does when it is compiled.

    Triton's interpreter truncates to bfloat16, so there the bits are rounded first.
    """
    if _INTERPRETED and tl.bfloat16 == DTYPE:
        bits = x.to(tl.uint32, bitcast=True)
        bits = tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), bits)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def product(x, y, total, PRECISION: tl.constexpr):
    """Return `total [M, N]` float32 plus `x [M, K]` times `y [K, N]`, both of one dtype.

    PRECISION: how to multiply float32, as `tl.dot` names it; no matter for bfloat16.
    """
    if _INTERPRETED:
        # The interpreter would multiply the bits of bfloat16 as integers, and knows fewer precisions.
        return tl.dot(x.to(tl.float32), y.to(tl.float32), total, input_precision="ieee")
    return tl.dot(x, y, total, input_precision=PRECISION)
