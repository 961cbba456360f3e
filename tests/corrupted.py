"""Reloads whose weights are corrupted on their way into vLLM, which the check of weights must detect."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from sector.engine.errors import EngineFailed
from sector.engine.models.checkpoint import Model
from sector.engine.samplers.vllm.sampler import VllmSampler

# Weights on their way in -> what arrives.
Corruption = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def assert_caught(sampler: VllmSampler, model: Model, corrupt: Corruption, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the sampler other weights, of which only corrupted ones arrive: it must say how far off it is."""
    reload = sampler._llm.collective_rpc

    def corrupted(method: str, kwargs: dict[str, Any]) -> None:
        state = corrupt(dict(kwargs["weights_iterator"]))
        if state:
            reload(method, kwargs={"weights_iterator": iter(state.items())})

    with monkeypatch.context() as patched:
        patched.setattr(sampler._llm, "collective_rpc", corrupted)
        with pytest.raises(EngineFailed, match=r"log-probabilities are up to [\d.]+ off .* rounding explains 0.001"):
            sampler.load(model)
