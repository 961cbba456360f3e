"""The interface between engines and policies: one call that completes prompts.

An engine works on ids only, not on problems.

Legend: B rows of a batch, P tokens of a prefix, U choices after a mark and its draft.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sector.kernels.philox import uniforms


@dataclass(frozen=True, slots=True)
class Branch:
    """One completion of every prefix. A prompt is a prefix and a mark.

    mark: `[B, 1]` ids, the last token of the prompt.
    length: the largest count of new tokens, end included.
    draft: `[B, <= length]` ids that the completion is likely to begin with. A hint that changes the time, but not the
        tokens; engines may ignore it.
    """

    mark: Tensor
    length: int
    draft: Tensor | None = None

    @property
    def drafted(self) -> int:
        """Number of drafted tokens to read: the last token of a completion need not be read."""
        return 0 if self.draft is None else min(self.draft.shape[1], self.length - 1)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Temperature and random stream of a call.

    temperature: 0 is greedy.
    seed: key of the counter-based random stream (`kernels/philox.py`).
    rows: `[B]` int64 counters, one per row: the index of the problem in its run.
    stage: the index of the completion among those of the same problem; branches take stage, stage + 1, ...
    """

    temperature: float
    seed: int
    rows: Tensor
    stage: int

    def __getitem__(self, rows: Tensor | slice) -> "Sampling":
        return Sampling(self.temperature, self.seed, self.rows[rows], self.stage)

    def gumbel(self, branch: int, rows: Tensor, steps: Tensor, lanes: int) -> Tensor:
        """Return Gumbel noise `[..., lanes]`; the argmax of logits / temperature + noise is a sample (Gumbel-max)."""
        return -(-uniforms(self.seed, rows, self.stage + branch, steps, lanes).log()).log()


@dataclass(slots=True)
class Beginning:
    """Prefix cache shared by the calls of one chain.

    Each step of a chain shortens its problem at the end, so in every row later prefixes begin with the same tokens as
    the first one. A hint, like a draft: engines may ignore it. A prefix is read anew from the first different token on.

    length: tokens to keep of the prefixes of the first call.
    kept: state of the engine after the first call, in a form of its choice; None before.
    """

    length: int
    kept: object = None


@dataclass(frozen=True, slots=True)
class Savings:
    """Optimisations of the native engine. Each can be switched off without a change of the output.

    shared_prefix: the prefix of a prompt is read once for all its branches.
    shared_beginning: the common beginning of the prefixes of a chain is read in the first call only.
    drafts: a draft is checked in the pass that reads the prompt, in the manner of speculative decoding, not generated
        again token by token. Every token is the model's own choice, also at temperature > 0.
    drop_finished: a row that has ended leaves the batch and does not wait for the others.
    compiled: passes run in a library built from `native.c` if there is a C compiler, otherwise in plain torch.
    """

    shared_prefix: bool = True
    shared_beginning: bool = True
    drafts: bool = True
    drop_finished: bool = True
    compiled: bool = True


class Sampler(Protocol):
    """An engine. Engines are interchangeable: greedy in float32, all return the same tokens.

    name: the name of the engine in configs.
    weights_sha256: the digest of the weights that it has loaded.
    device: the device on which prompts need no copy. Completions are returned on the device of the prompts.
    uses_all_cores: whether it keeps a thread on each core, so that other operations should run on one thread.
    """

    name: str
    weights_sha256: str

    @property
    def device(self) -> torch.device: ...

    @property
    def uses_all_cores(self) -> bool: ...

    def load(self, model: Any) -> None:
        """Load the weights of a model of the same kind as the first one."""
        ...

    def sample(
        self, prefix: Tensor, branches: Sequence[Branch], sampling: Sampling, beginning: Beginning | None = None
    ) -> list[Tensor]:
        """Complete every prefix `[B, P]` once per branch; return ids `[B, length]` each, with padding after the end.

        Padding before a prefix is not part of it.

        beginning: the same object in all calls of a chain, which have the same rows in the same order.
        """
        ...


@runtime_checkable
class Room(Protocol):
    """An engine that wants many rows in a call, up to a limit."""

    def room(self, prefix_length: int, lengths: Sequence[int]) -> int:
        """Return the count of rows of a request of this shape that the engine completes at once.

        lengths: the largest count of new tokens of each branch.
        """
        ...
