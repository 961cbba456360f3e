"""Shards for sector's own models: the direct answer and the simplification of a problem as two branches of one row.

In the shape descriptions B is the rows of a shard, T the tokens of a row and C the supervised tokens.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from sector.engine.config import TrainerConfig
from sector.engine.language import tokens
from sector.engine.language.examples import Examples
from sector.engine.language.layout import Mode
from sector.engine.models.loss import IGNORED, token_loss
from sector.engine.models.sector import SectorForCausalLM
from sector.engine.tasks import task_of
from sector.engine.training.fused_model import branch_states


@dataclass(frozen=True, slots=True)
class Rows:
    """A shard for our own model.

    ids: `[B, T]` prefix, then `=` and the answer, then `>` and the simplification (ends are predicted, not read).
    places: `[B, T]` rotary positions, augmented.
    targets: `[B, C]` classes to predict from the last C tokens, -100 where no loss is taken.
    answer_length: how many of the C tokens belong to the fast answer, which comes first. The others belong to the
        simplification. It is 0 if no direct answer is taught.
    """

    ids: Tensor
    places: Tensor
    targets: Tensor
    answer_length: int

    @property
    def num_tokens(self) -> int:
        """Tokens that a forward pass reads."""
        return self.ids.numel()

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Tokens of the prefix, the fast answer and the simplification."""
        supervised = self.targets.shape[1]
        return self.ids.shape[1] - supervised, self.answer_length, supervised - self.answer_length

    @property
    def sizes(self) -> tuple[int, ...]:
        """All that a graph depends on; see `shard.Fixed`."""
        return *self.ids.shape, *self.lengths

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tensors in which shards of these sizes differ."""
        return self.ids, self.places, self.targets

    def copied_for(self, model: SectorForCausalLM) -> Self:
        """Return a copy on the device of a model."""
        ids, places, targets = (tensor.to(model.device, copy=True) for tensor in self.inputs)
        return replace(self, ids=ids, places=places, targets=targets)

    def loss(self, model: SectorForCausalLM, fast_weight: float) -> Tensor:
        """Return the mean loss; see `Shard`. A branch that has no tokens takes no part."""
        prefix_length, *branch_lengths = self.lengths
        hidden = branch_states(model, self.ids, self.places, self.lengths)
        logits = model.class_logits(hidden, self.ids[:, prefix_length:])
        branches = zip(logits.split(branch_lengths, dim=1), self.targets.split(branch_lengths, dim=1), strict=True)
        losses = [
            token_loss(branch_logits.flatten(0, 1), branch_targets.flatten())
            for branch_logits, branch_targets in branches
            if branch_targets.shape[1]
        ]
        return losses[0] if len(losses) == 1 else fast_weight * losses[0] + (1 - fast_weight) * losses[1]


def lay_out(examples: Examples, order: str, config: TrainerConfig, draws: torch.Generator) -> Rows:
    """Return examples of one length as a shard; each row has a random variant of marks and a random gap."""
    count = len(examples)
    variant = torch.randint(0, tokens.NUM_SHIFTS, (count,), generator=draws)
    task = task_of(examples.problems)
    layout = task.layout(order).shifted(variant)
    prefix = layout.prefix_ids(examples.problems)
    segments, targets = [prefix], [prefix[:, :0]]
    if task.answers_at_once(examples.problems):
        answer = layout.answer_ids(examples.answers)
        segments += [layout.mark_ids(Mode.ANSWER, count), answer[:, :-1]]
        targets = [answer]
    if not examples.rest.is_nothing:
        simplification = layout.simplification_ids(examples.rest, examples.digit)
        segments += [layout.mark_ids(Mode.THINK, count), simplification[:, :-1]]
        targets.append(simplification)
    ids, target_ids = torch.cat(segments, dim=1), torch.cat(targets, dim=1)
    shift = torch.tensor(tokens.SHIFTS)[variant].unsqueeze(1)
    column, gap = _draw_gaps(count, max(1, examples.problems.answer_width - 1), config, draws)
    places = _with_gap(ids, column + shift, gap)
    target_places = _with_gap(target_ids, column + shift, gap)
    # A token that follows its predecessor across the gap has no neighbour to copy from, so it takes no loss.
    source_places = places[:, prefix.shape[1] :]
    is_across = (source_places > 0) & (target_places > source_places + 1)
    target_classes = tokens.class_of(target_ids).masked_fill(is_across, IGNORED)
    return Rows(ids, places, target_classes, answer_length=targets[0].shape[1])


def _draw_gaps(count: int, columns: int, config: TrainerConfig, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw for each row a column `[B, 1]` and the number of places `[B, 1]` by which all later columns move away.

    The distance of digits that are not neighbours then carries no information. So the model learns no rule such as
    "six digits from the end", which fails at seven. Column 0 moves the digits away from the marks.
    """
    column = torch.randint(0, columns, (count, 1), generator=draws)
    gap = torch.randint(0, config.max_gap + 1, (count, 1), generator=draws)
    return column, gap * (torch.rand(count, 1, generator=draws) < config.gap_share)


def _with_gap(ids: Tensor, column: Tensor, gap: Tensor) -> Tensor:
    """Return the places of ids `[B, T]`, with all places behind the column moved by the gap; marks stay at 0."""
    places = tokens.place_of(ids)
    return places + gap * ((places > column) & (places > 0))
