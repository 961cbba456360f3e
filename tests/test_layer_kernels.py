"""The kernels between a layer's products against plain torch; interpreted where there is no GPU."""

import pytest
import torch
from torch import Tensor

from sector.kernels import layer

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
TOLERANCES = {torch.float32: (2e-6, 1e-6), torch.bfloat16: (2.0**-7, 1e-6)}


def _close(actual: Tensor, expected: Tensor) -> None:
    relative, absolute = TOLERANCES[actual.dtype]
    torch.testing.assert_close(actual, expected, rtol=relative, atol=absolute)


@DTYPES
@pytest.mark.parametrize("adds", [False, True], ids=["norm", "add_norm"])
@pytest.mark.parametrize(("count", "hidden"), [(1, 64), (33, 64), (300, 384), (7, 40), (0, 64)])
def test_the_norm_is_the_reference(
    count: int, hidden: int, adds: bool, dtype: torch.dtype, draws: torch.Generator, kernel_device: torch.device
) -> None:
    x = torch.randn(count, hidden, generator=draws).to(kernel_device)
    update = torch.randn(count, hidden, generator=draws).to(kernel_device, dtype) if adds else None
    weight = torch.randn(hidden, generator=draws).to(kernel_device, dtype)
    by_kernel, by_reference = x.clone(), x.clone()
    normed = layer.add_norm_kernel(by_kernel, update, weight, 1e-5)
    assert normed.dtype is dtype
    _close(normed, layer.add_norm_reference(by_reference, update, weight, 1e-5))
    assert torch.equal(by_kernel, by_reference)
    assert adds or torch.equal(by_kernel, x)


@DTYPES
@pytest.mark.parametrize(
    ("batch", "length", "heads", "size"), [(1, 1, 4, 16), (3, 11, 4, 16), (40, 9, 12, 32), (5, 7, 3, 6), (0, 3, 4, 16)]
)
def test_rotation_is_the_reference_and_leaves_other_slots_alone(
    batch: int,
    length: int,
    heads: int,
    size: int,
    dtype: torch.dtype,
    draws: torch.Generator,
    kernel_device: torch.device,
) -> None:
    slots = torch.randperm(length + 5, generator=draws)[:length].to(kernel_device)
    places = torch.randint(0, 20, (batch, length), generator=draws).to(kernel_device)
    angles = torch.rand(20, size // 2, generator=draws) * 7
    rope = torch.stack([angles.cos(), angles.sin()], dim=1).to(kernel_device)
    qkv = torch.randn(batch, length, 3 * heads * size, generator=draws).to(kernel_device, dtype)
    empty = torch.full((2, batch + 2, heads, length + 5, size), 7.0, dtype=dtype, device=kernel_device)
    by_kernel, by_reference = empty.clone(), empty.clone()
    queries = layer.rotate_to_cache_kernel(qkv, places, slots, rope, *by_kernel)
    expected = layer.rotate_to_cache_reference(qkv, places, slots, rope, *by_reference)
    # A rotation adds two products, each rounded or not: the error is a share of the terms, not of their sum.
    absolute = 8 * (2.0**-24 if dtype is torch.float32 else 2.0**-9)
    torch.testing.assert_close(queries, expected, rtol=2 * absolute, atol=absolute)
    torch.testing.assert_close(by_kernel, by_reference, rtol=2 * absolute, atol=absolute)
    untouched = torch.ones(length + 5, dtype=torch.bool)
    untouched[slots.cpu()] = False
    assert (by_kernel[:, :, :, untouched.to(kernel_device)] == 7).all() and (by_kernel[:, batch:] == 7).all()


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1), (33, 256), (9, 1536), (0, 256)], ids=str)
def test_the_square_is_the_reference(
    shape: tuple[int, int], dtype: torch.dtype, draws: torch.Generator, kernel_device: torch.device
) -> None:
    x = torch.randn(shape, generator=draws).to(kernel_device, dtype)
    by_kernel, by_reference = x.clone(), x.clone()
    assert layer.square_of_relu_kernel(by_kernel) is by_kernel
    _close(by_kernel, layer.square_of_relu_reference(by_reference))


def test_arguments_are_checked() -> None:
    x, weight, cache = torch.zeros(3, 8), torch.zeros(8), torch.zeros(2, 2, 5, 4)
    with pytest.raises(ValueError, match="weight must be"):
        layer.add_norm(x, None, weight[:4], 1e-5)
    with pytest.raises(ValueError, match="update must be"):
        layer.add_norm(x, x[:2], weight, 1e-5)
    qkv, places, slots, rope = (
        torch.zeros(3, 1, 24),
        torch.zeros(3, 1).long(),
        torch.zeros(1).long(),
        torch.zeros(9, 2, 2),
    )
    with pytest.raises(ValueError, match="a row for each of the batch"):
        layer.rotate_to_cache(qkv, places, slots, rope, cache, cache)
