"""What an engine must do to serve the policies: one call that completes prompts.

In the shape descriptions B is the batch and P the tokens of a prefix. An engine knows ids only, never problems.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sector.kernels.philox import uniforms


@dataclass(frozen=True, slots=True)
class Branch:
    """One completion asked of every prefix: a prompt is a prefix and a mark.

    mark: `[B, 1]` ids, the last token of the prompt.
    length: the most new tokens, end included.
    draft: `[B, <= length]` ids that the completion is likely to begin with. A hint: it changes the time, never the
        tokens. Engines may ignore it.
    """

    mark: Tensor
    length: int
    draft: Tensor | None = None

    @property
    def drafted(self) -> int:
        """Drafted tokens that are worth reading: nothing is chosen behind the last of a completion."""
        return 0 if self.draft is None else min(self.draft.shape[1], self.length - 1)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    temperature: 0 is greedy.
    seed: key of the counter-based random stream (`kernels/philox.py`).
    rows: `[B]` int64 counters, one a row: the index of the problem in its run.
    stage: which generation of that problem; branches take stage, stage + 1, ...
    """

    temperature: float
    seed: int
    rows: Tensor
    stage: int

    def __getitem__(self, rows: Tensor | slice) -> "Sampling":
        return Sampling(self.temperature, self.seed, self.rows[rows], self.stage)

    def gumbel(self, branch: int, rows: Tensor, steps: Tensor, lanes: int) -> Tensor:
        """Gumbel noise `[..., lanes]`; the argmax of logits / temperature + noise is a sample (Gumbel-max)."""
        return -(-uniforms(self.seed, rows, self.stage + branch, steps, lanes).log()).log()


@dataclass(slots=True)
class Beginning:
    """What the prefixes of several calls begin with, row by row, the later ones as far as they go: a chain of thought
    only ever shortens its problem at the end.

    A hint, like a draft: an engine may read it once, or not care. Prefixes that begin otherwise are read in full.

    length: tokens of the first call's prefixes.
    kept: what the engine remembers after the first call, its own affair. None before.
    """

    length: int
    kept: object = None


@dataclass(frozen=True, slots=True)
class Savings:
    """How the native engine saves time; each can be switched off, and what comes out stays the same.

    shared_prefix: the branches of a prompt read its prefix together, not each for itself.
    shared_beginning: what the prefixes of a chain of calls begin with is read in the first of them only.
    drafts: a draft is checked in the pass that reads the prompt, not written again token by token (in the manner of
        speculative decoding; the choice at every token is the model's own, also at temperature > 0).
    drop_finished: a row that has ended leaves the batch, instead of waiting for the others.
    compiled: passes run in a library made from `native.c`, where a C compiler is; in plain torch otherwise.
    """

    shared_prefix: bool = True
    shared_beginning: bool = True
    drafts: bool = True
    drop_finished: bool = True
    compiled: bool = True


class Sampler(Protocol):
    """An engine. Interchangeable: greedy in float32, every engine returns the same tokens.

    device: where it likes its prompts best; completions come back to where prompts were.
    """

    name: str
    weights_sha256: str

    @property
    def device(self) -> torch.device: ...

    def load(self, model: Any) -> None:
        """Take new weights, of a model of the kind that it was made for."""
        ...

    def sample(
        self, prefix: Tensor, branches: Sequence[Branch], sampling: Sampling, beginning: Beginning | None = None
    ) -> list[Tensor]:
        """Complete every prefix `[B, P]` once a branch; `[B, length]` ids each, padding behind the end.

        Padding in front of a prefix is no part of it.

        beginning: shared with other calls on the same rows in the same order, and with no other.
        """
        ...
