"""What every test shares: one thread, no network, poisoned uninitialised memory, and where kernels run."""

import os

# Before transformers is imported, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable
from typing import Any

import pytest
import torch

# Before kernels are imported, which are compiled or interpreted from then on: compiled where there is a GPU.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

torch.set_num_threads(1)

# Kernel tests take the fixture `kernel_device`. On a GPU they are what `-m gpu` selects.
_KERNEL_DEVICE = pytest.param("cuda", marks=pytest.mark.gpu) if torch.cuda.is_available() else pytest.param("cpu")


def _poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def wrapped(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = allocate(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() and not tensor.is_meta else tensor

    return wrapped


@pytest.fixture(autouse=True)
def _nan_in_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialised floats are NaN, so that a test fails if anything reads them."""
    monkeypatch.setattr(torch, "empty", _poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", _poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", _poisoned(torch.Tensor.new_empty))


@pytest.fixture
def draws() -> torch.Generator:
    return torch.Generator().manual_seed(20230917)


@pytest.fixture(params=[_KERNEL_DEVICE])
def kernel_device(request: pytest.FixtureRequest) -> torch.device:
    """Where Triton kernels run in this session: compiled on the GPU, or interpreted on the CPU."""
    return torch.device(request.param, 0) if request.param == "cuda" else torch.device("cpu")
