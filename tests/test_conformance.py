"""The protocol's test of engines: every engine of ours passes, and each broken rule is named."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sector.engine.language import tokens
from sector.engine.models.sector import SectorForCausalLM
from sector.engine.samplers import make_sampler
from sector.engine.samplers.hf import HuggingFaceSampler
from sector.engine.samplers.native import NativeSampler
from sector.engine.samplers.protocol import Beginning, Branch, Sampling, Savings
from sector.testing import check_engine


class Engine(NativeSampler):
    """The native engine, of which a test breaks one rule."""

    def __init__(self, model: SectorForCausalLM) -> None:
        super().__init__(model, num_threads=1, savings=Savings(compiled=False))


# `test_vllm.py` tests the engine vllm, where it is started.
@pytest.mark.parametrize("engine", ["native", "torch", "hf"])
def test_our_engines_keep_the_protocol(engine: str) -> None:
    check_engine(Engine if engine == "torch" else lambda model: make_sampler(engine, model))


class Nameless(Engine):
    name = ""


class Elsewhere(Engine):
    device = "cpu"


class Roomless(Engine):
    def room(self, prefix_length: int, lengths: Sequence[int]) -> int:
        return 0


class Changed(Engine):
    """An engine whose output a function changes."""

    def sample(
        self, prefix: Tensor, branches: Sequence[Branch], sampling: Sampling, beginning: Beginning | None = None
    ) -> list[Tensor]:
        outputs = super().sample(prefix, branches, sampling, beginning)
        return [self.change(output, branch, sampling) for output, branch in zip(outputs, branches, strict=True)]

    def change(self, output: Tensor, branch: Branch, sampling: Sampling) -> Tensor:
        raise NotImplementedError


class Short(Changed):
    def change(self, output: Tensor, branch: Branch, sampling: Sampling) -> Tensor:
        return output[:, :-1]


class Narrow(Changed):
    def change(self, output: Tensor, branch: Branch, sampling: Sampling) -> Tensor:
        return output.int()


class RunsOn(Changed):
    def change(self, output: Tensor, branch: Branch, sampling: Sampling) -> Tensor:
        return torch.where(output == tokens.PAD_ID, tokens.NUM_LOCAL + 4, output)


class OneTokenOff(Changed):
    def change(self, output: Tensor, branch: Branch, sampling: Sampling) -> Tensor:
        first = output[:, :1]
        other = torch.where(first % tokens.NUM_LOCAL == 4, first + 1, first - first % tokens.NUM_LOCAL + 4)
        return torch.cat([other, output[:, 1:]], dim=1)


class BelievesDrafts(Changed):
    def change(self, output: Tensor, branch: Branch, sampling: Sampling) -> Tensor:
        return output if branch.draft is None else branch.draft


class Forgetful(Engine):
    """An engine that reads later prefixes of a chain as the first one."""

    def sample(
        self, prefix: Tensor, branches: Sequence[Branch], sampling: Sampling, beginning: Beginning | None = None
    ) -> list[Tensor]:
        if beginning is not None:
            beginning.kept = prefix if beginning.kept is None else beginning.kept
            prefix = beginning.kept  # type: ignore[assignment]
        return super().sample(prefix, branches, sampling)


class SampledBy(Engine):
    """An engine that changes the random streams of a call."""

    def sample(
        self, prefix: Tensor, branches: Sequence[Branch], sampling: Sampling, beginning: Beginning | None = None
    ) -> list[Tensor]:
        return super().sample(prefix, branches, self.sampling(sampling), beginning)

    def sampling(self, sampling: Sampling) -> Sampling:
        raise NotImplementedError


class Unseeded(SampledBy):
    calls = 0

    def sampling(self, sampling: Sampling) -> Sampling:
        self.calls += sampling.temperature > 0
        # Drafts are tested before, with eight calls.
        return replace(sampling, stage=sampling.stage + max(0, self.calls - 5))


class CountsRows(SampledBy):
    def sampling(self, sampling: Sampling) -> Sampling:
        return replace(sampling, rows=torch.arange(len(sampling.rows)))


class OneSeed(SampledBy):
    def sampling(self, sampling: Sampling) -> Sampling:
        return replace(sampling, seed=5)


class NeedsRows(Engine):
    def sample(self, prefix: Tensor, branches: Sequence[Branch], sampling: Sampling, beginning: Any = None) -> Any:
        return super().sample(prefix, branches, sampling, beginning) if len(prefix) else []


class Stale(Engine):
    """An engine that never loads other weights."""

    def load(self, model: Any) -> None:
        if not hasattr(self, "weights_sha256"):
            super().load(model)


class Liar(Engine):
    """An engine that tells the digest of other weights than it has."""

    def load(self, model: Any) -> None:
        if not hasattr(self, "weights_sha256"):
            super().load(model)
        self.weights_sha256 = HuggingFaceSampler(model).weights_sha256


class Shares(HuggingFaceSampler):
    """An engine without a copy of the weights."""

    def load(self, model: Any) -> None:
        super().load(model)
        self._model = model


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (Nameless, "name is ''"),
        (Elsewhere, "device is 'cpu'"),
        (Roomless, "room returned 0"),
        (Short, "a completion has the shape"),
        (Narrow, r"of the type torch\.int32"),
        (RunsOn, "goes on after its end"),
        (OneTokenOff, "greedy tokens at 1 digits are not those of the engine native"),
        (BelievesDrafts, "wrong drafts change tokens at temperature 0"),
        (Forgetful, "a shared beginning changes tokens"),
        (Unseeded, "the same call samples other tokens"),
        (CountsRows, "a row depends on its batch"),
        (OneSeed, "seed of the sampling does not change the sample"),
        (NeedsRows, "an empty batch gives the shapes"),
        (Stale, "weights_sha256 is not the digest"),
        (Liar, "the tokens are not those of the weights"),
        (Shares, "has no copy of its own"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_broken_rule_is_named(broken: Callable[[Any], Any], rule: str) -> None:
    with pytest.raises(AssertionError, match=rule) as caught:
        check_engine(broken)
    assert "\n" not in str(caught.value)


def test_the_test_needs_no_test_framework() -> None:
    code = "import sys, sector.testing; print('pytest' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
        == "False\n"
    )
