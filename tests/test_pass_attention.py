"""Attention of a first pass: the kernel beside plain torch, the slots that are masked, and what is refused."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from sector.engine.samplers.gpu_first_pass import _new_layout
from sector.kernels import pass_attention as module
from sector.kernels.pass_attention import (
    Spans,
    pass_attention,
    pass_attention_kernel,
    pass_attention_reference,
)


def _spans(sizes: list[int], lengths: list[int], device: torch.device) -> Spans:
    """The spans of a first pass: the tokens read of the prefix and of each branch, and the slots of each branch."""
    return _new_layout(0, sizes, lengths, device).spans


def _inputs(
    batch: int, heads: int, size: int, spans: Spans, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Spans]:
    """Queries, and a cache of more rows and slots than are read."""
    draws = torch.Generator().manual_seed(batch + heads * size)
    length, slots = len(spans.slots), int(spans.slots.max()) + 6
    queries = torch.randn(batch, length, heads, size, generator=draws).to(device, dtype)
    keys, values = (2 * torch.randn(2, batch + 2, heads, slots, size, generator=draws)).to(device, dtype).unbind(0)
    return queries, keys, values, spans


CASES = [
    # One block of tokens and of slots, and several of both, with branches that are read in part.
    (3, 4, 16, [5, 4, 7], [6, 9]),
    (2, 2, 16, [70, 40, 64], [60, 80]),
    (1, 3, 22, [1, 1], [4]),
    (2, 1, 32, [64, 65], [65]),
    (1, 1, 8, [130, 1, 1], [3, 3]),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("batch", "heads", "size", "sizes", "lengths"), CASES)
def test_the_kernel_computes_the_reference(
    batch: int,
    heads: int,
    size: int,
    sizes: list[int],
    lengths: list[int],
    dtype: torch.dtype,
    kernel_device: torch.device,
) -> None:
    inputs = _inputs(batch, heads, size, _spans(sizes, lengths, kernel_device), dtype, kernel_device)
    found = pass_attention_kernel(*inputs)
    # The reference in float64 on the same numbers: what is left is the rounding of the kernel.
    expected = pass_attention_reference(*(tensor.double() for tensor in inputs[:3]), inputs[3])
    assert found.shape == expected.shape and found.dtype == dtype
    bound = 2e-2 if dtype == torch.bfloat16 else 2e-5
    assert (found.double() - expected).abs().max() <= bound


def test_tokens_see_the_prefix_and_their_own_branch() -> None:
    spans = _spans([3, 2, 1], [4, 2], torch.device("cpu"))
    rows = ["".join("x" if sees else "." for sees in row) for row in spans.visible(9).tolist()]
    assert rows == ["x........", "xx.......", "xxx......", "xxxx.....", "xxxxx....", "xxx....x."]
    assert torch.equal(spans.since(3).visible(9), spans.visible(9)[3:])


@pytest.mark.parametrize("run", [pass_attention_kernel, pass_attention_reference], ids=["kernel", "reference"])
def test_masked_slots_do_not_count(run: Callable[..., Tensor], kernel_device: torch.device) -> None:
    spans = _spans([9, 5, 5], [8, 8], kernel_device)
    queries, keys, values, _ = _inputs(2, 2, 16, spans, torch.float32, kernel_device)
    before = run(queries, keys, values, spans)
    unseen = ~spans.visible(keys.shape[2]).any(dim=0)
    assert unseen.sum() == keys.shape[2] - 19
    keys[:, :, unseen] = 1e4
    values[:, :, unseen] = -1e4
    assert torch.equal(run(queries, keys, values, spans), before)


@pytest.mark.parametrize("run", [pass_attention_kernel, pass_attention_reference], ids=["kernel", "reference"])
def test_the_last_tokens_alone(run: Callable[..., Tensor], kernel_device: torch.device) -> None:
    """The last layer has no queries of the prefix, and does not copy the others: they are read where they are."""
    spans = _spans([67, 5, 5], [8, 8], kernel_device)
    queries, keys, values, _ = _inputs(2, 2, 16, spans, torch.float32, kernel_device)
    expected = run(queries, keys, values, spans)[:, 67:]
    found = run(queries[:, 67:], keys, values, spans.since(67))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found, run(queries[:, 67:].contiguous(), keys, values, spans.since(67)))


def test_no_rows(kernel_device: torch.device) -> None:
    spans = _spans([2, 2], [3], kernel_device)
    _, keys, values, _ = _inputs(1, 2, 16, spans, torch.float32, kernel_device)
    assert pass_attention_kernel(keys.new_empty(0, 4, 2, 16), keys, values, spans).shape == (0, 4, 32)


def test_what_is_refused() -> None:
    cpu = torch.device("cpu")
    queries, keys, values, spans = _inputs(2, 2, 16, _spans([3, 2], [4], cpu), torch.float32, cpu)
    with pytest.raises(ValueError, match="a row for each of the batch"):
        pass_attention(queries, keys[:1], values[:1], spans)
    with pytest.raises(ValueError, match="same strides"):
        pass_attention(queries, keys, values.transpose(2, 3).contiguous().transpose(2, 3), spans)
    with pytest.raises(ValueError, match="queries must have rows"):
        pass_attention(queries.transpose(1, 2).contiguous().transpose(1, 2), keys, values, spans)
    apart = torch.nn.functional.pad(queries.flatten(1), (0, 1))[:, :-1].view(queries.shape)
    with pytest.raises(ValueError, match="queries must have rows"):
        pass_attention(apart, keys, values, spans)
    with pytest.raises(ValueError, match="slots must be"):
        pass_attention(queries, keys, values, spans.since(1))
    with pytest.raises(ValueError, match="keys must be"):
        pass_attention(queries, keys.bfloat16(), values, spans)


@pytest.mark.parametrize("kernel_runs", [True, False], ids=["kernel", "reference"])
def test_which_one_runs(kernel_runs: bool, kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel on a GPU, the reference elsewhere."""
    ran = []
    for name in ("kernel", "reference"):
        run = getattr(module, f"pass_attention_{name}")
        replaced = partial(lambda name, run, *inputs: ran.append(name) or run(*inputs), name, run)
        monkeypatch.setattr(module, f"pass_attention_{name}", replaced)
    monkeypatch.setattr(module, "runs_kernel", lambda _: kernel_runs)
    pass_attention(*_inputs(1, 2, 16, _spans([3, 2], [4], kernel_device), torch.float32, kernel_device))
    assert ran == ["kernel" if kernel_runs else "reference"]
