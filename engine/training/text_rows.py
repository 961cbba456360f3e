"""Shards for text models: a prompt and its completion per row, with loss on the completion alone.

In the shape descriptions B is the rows of a shard, T the tokens of a row and C the tokens that may be supervised.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from sector.engine.language.examples import Examples
from sector.engine.language.layout import Layout, Mode
from sector.engine.models.loss import IGNORED, token_loss
from sector.engine.models.text import TextModel
from sector.engine.tasks import task_of


@dataclass(frozen=True, slots=True)
class Completed:
    """Prompts of one mode with their completions.

    ids: `[B, T]` tokens that the model reads. Pads stand behind all others, where causal attention does not see them.
    targets: `[B, C]` ids to predict from the last C tokens, -100 where no loss is taken.
    """

    ids: Tensor
    targets: Tensor

    def __getitem__(self, rows: slice) -> Self:
        return type(self)(self.ids[rows], self.targets[rows])

    @property
    def num_supervised(self) -> int:
        """Tokens that take loss."""
        return int((self.targets != IGNORED).sum())

    def loss(self, model: TextModel) -> Tensor:
        """Return the mean loss over the supervised tokens, in nats."""
        count = self.targets.shape[1]
        logits = model(self.ids, logits_to_keep=count, use_cache=False).logits[:, -count:]
        return token_loss(logits.flatten(0, 1), self.targets.flatten())


@dataclass(frozen=True, slots=True)
class TextRows:
    """A shard for a text model.

    fast: prompts completed by answers; None if no direct answer is taught.
    slow: prompts completed by simplifications; None if the examples have none.
    """

    fast: Completed | None
    slow: Completed | None

    @property
    def num_tokens(self) -> int:
        """Tokens that a forward pass reads, pads included."""
        return sum(part.ids.numel() for part in (self.fast, self.slow) if part)

    def loss(self, model: TextModel, fast_weight: float) -> Tensor:
        """Return the mean loss of the shard; see `shard.Shard`. A branch that has no rows takes no part."""
        losses = [part.loss(model) for part in (self.fast, self.slow) if part]
        return losses[0] if len(losses) == 1 else fast_weight * losses[0] + (1 - fast_weight) * losses[1]

    def pieces(self, num_rows: int, fast_weight: float) -> Iterator[tuple[Self, float, float]]:
        """Yield pieces of at most `num_rows` problems, each with its share of the loss and its weight of fast answers.

        The mean losses of the pieces times their shares add up to the mean loss of the shard.
        """
        weights = (fast_weight, 1 - fast_weight) if self.fast and self.slow else (1.0, 1.0)
        parts = [(part, weight) for part, weight in zip((self.fast, self.slow), weights, strict=True) if part]
        for start in range(0, len(parts[0][0].ids), num_rows):
            rows = slice(start, start + num_rows)
            shares = [weight * part[rows].num_supervised / part.num_supervised for part, weight in parts]
            share = sum(shares)
            piece = type(self)(self.fast[rows] if self.fast else None, self.slow[rows] if self.slow else None)
            yield piece, share, shares[0] / share


def lay_out(examples: Examples, layout: Layout, draws: torch.Generator) -> TextRows:
    """Return examples of one length as a shard, each row in a random variant of the layout."""
    if layout.num_variants > 1:
        layout = layout.shifted(torch.randint(0, layout.num_variants, (len(examples),), generator=draws))
    prefix = layout.prefix_ids(examples.problems)

    def completed(mode: Mode, completion: Tensor) -> Completed:
        mark = layout.mark_ids(mode, len(examples))
        return _completed(torch.cat([prefix, mark], dim=1), completion, layout.pad_id)

    fast = slow = None
    if task_of(examples.problems).answers_at_once(examples.problems):
        fast = completed(Mode.ANSWER, layout.answer_ids(examples.answers))
    if not examples.rest.is_nothing:
        slow = completed(Mode.THINK, layout.simplification_ids(examples.rest, examples.digit))
    return TextRows(fast, slow)


def _completed(prompt: Tensor, completion: Tensor, pad: int) -> Completed:
    """Join prompts `[B, P]` and completions `[B, C]`, and move the pads in front of prompts behind the completions."""
    ids = torch.cat([prompt, completion], dim=1)
    targets = torch.cat([torch.full_like(prompt, IGNORED), completion.masked_fill(completion == pad, IGNORED)], dim=1)
    pads = (prompt == pad).sum(dim=1, keepdim=True)
    most = int(pads.max()) if len(prompt) else 0
    if most:
        order = (torch.arange(ids.shape[1]) + pads) % ids.shape[1]
        ids, targets = ids.gather(1, order), targets.gather(1, order)
    first = prompt.shape[1] - most if len(prompt) else 1
    return Completed(ids[:, :-1], targets[:, first:])
