"""Shards of text for CUDA graphs: prompts with answers and prompts with simplifications as one batch.

One batch takes half the kernels of two. Its lengths are multiples of eight, so that few graphs serve all shards.

In the shape descriptions R is the rows of both modes, T the tokens of a row and C the tokens that may be supervised.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sector.engine.models.loss import IGNORED, token_loss
from sector.engine.models.text import TextModel
from sector.engine.training.few_kernels import few_kernels, masks
from sector.engine.training.text_rows import TextRows

_STEP = 8


@dataclass(frozen=True, slots=True)
class JoinedRows:
    """A shard for a text model as one batch.

    ids: `[R, T]` tokens that the model reads. Pads stand behind all others, where causal attention does not see them.
    targets: `[R, C]` ids to predict from the last C tokens, -100 where no loss is taken.
    num_fast: rows with answers, which come first; the others have simplifications.
    masks: masks of attention; None before the shard is on the device of a model.
    """

    ids: Tensor
    targets: Tensor
    num_fast: int
    masks: Tensor | Mapping[str, Tensor] | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that a forward pass reads."""
        return self.ids.numel()

    @property
    def sizes(self) -> tuple[int, ...]:
        """All that a graph depends on; see `shard.Fixed`."""
        return *self.ids.shape, self.targets.shape[1], self.num_fast

    @property
    def inputs(self) -> tuple[Tensor, Tensor]:
        """Tensors in which shards of these sizes differ."""
        return self.ids, self.targets

    def copied_for(self, model: TextModel) -> Self:
        """Return a copy on the device of a model, with masks."""
        ids, targets = (tensor.to(model.device, copy=True) for tensor in self.inputs)
        return replace(self, ids=ids, targets=targets, masks=masks(model, ids.shape[1]))

    def loss(self, model: TextModel, fast_weight: float) -> Tensor:
        """Return the mean loss, as `TextRows.loss` does but for rounding."""
        assert self.masks is not None, "a shard is copied to the device of its model first"
        count = self.targets.shape[1]
        with few_kernels(model.network):
            output = model(self.ids, attention_mask=self.masks, logits_to_keep=count, use_cache=False)
        sizes = [size for size in (self.num_fast, len(self.ids) - self.num_fast) if size]
        logits, targets = output.logits[:, -count:].split(sizes), self.targets.split(sizes)
        losses = [
            token_loss(some_logits.flatten(0, 1), some_targets.flatten())
            for some_logits, some_targets in zip(logits, targets, strict=True)
        ]
        return losses[0] if len(losses) == 1 else fast_weight * losses[0] + (1 - fast_weight) * losses[1]


def join(shard: TextRows) -> JoinedRows:
    """Return a shard as one batch."""
    parts = [part for part in (shard.fast, shard.slow) if part]
    length = -(-max(part.ids.shape[1] for part in parts) // _STEP) * _STEP
    # Tokens in front of all that may be supervised.
    unsupervised = min(part.ids.shape[1] - part.targets.shape[1] for part in parts) // _STEP * _STEP
    ids, targets = [], []
    for part in parts:
        behind = length - part.ids.shape[1]
        ids.append(F.pad(part.ids, (0, behind)))
        front = part.ids.shape[1] - part.targets.shape[1] - unsupervised
        targets.append(F.pad(part.targets, (front, behind), value=IGNORED))
    return JoinedRows(torch.cat(ids), torch.cat(targets), len(shard.fast.ids) if shard.fast else 0)
