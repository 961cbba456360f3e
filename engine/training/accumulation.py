"""The mean gradient of a step from the gradients of its shards: all at once, or added up a few at a time.

All at once is the default, whose bits stand since the first release. It holds a gradient a shard: for eight shards of a
model of 135 million parameters 8.6 GB. Added up, at most a wave of them is held: a shard a core, or a shard a process.
The sum is taken in the order of the shards, so it does not depend on cores or processes either.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from sector.engine.spans import span
from sector.engine.training.data_parallel import Gradient, Ranks
from sector.engine.training.precision import accumulating
from sector.engine.training.shard import Shard

Compute = Callable[[Sequence[Shard]], Iterable[Gradient]]


class MeanGradient:
    """The mean gradient of the shards of a step, written to one vector.

    target: `[P]` the mean gradient of the last step.
    """

    def __init__(self, target: Tensor, num_shards: int, wave: int | None, ranks: Ranks | None) -> None:
        """Prepare a training cycle.

        wave: shards whose gradients are held at the same time; None for all. With ranks it is one per rank.
        """
        self.target = target
        self._adds_up = wave is not None
        self._wave = num_shards if wave is None else ranks.size if ranks else wave
        self._exchange = ranks.exchange(target, self._wave) if ranks else None

    def take(self, shards: Sequence[Shard], compute: Compute, meanwhile: Callable[[], None]) -> float:
        """Compute the mean gradient of shards, and return their mean loss.

        meanwhile: called once, while the first gradients are computed.
        """
        losses: list[float] = []
        for start in range(0, len(shards), self._wave):
            wave = shards[start : start + self._wave]
            found = compute(self._exchange.share(wave) if self._exchange else wave)
            if start == 0:
                meanwhile()
            gradients = list(found)
            with span("exchange"):
                if self._exchange:
                    gradients = self._exchange.gather(gradients)[: len(wave)]
                losses += torch.stack([gradient.loss for gradient in gradients]).tolist()
                self._put(gradients, start == 0)
        if self._adds_up:
            self.target.div_(len(shards))
        return sum(losses) / len(losses)

    def _put(self, gradients: Sequence[Gradient], is_first: bool) -> None:
        """Set the target to the mean of all gradients of a step, or add those of a wave to it."""
        if not self._adds_up:
            torch.mean(torch.stack([gradient.flat for gradient in gradients]), dim=0, out=self.target)
            return
        if is_first:
            self.target.zero_()
        for gradient in gradients:
            self.target.add_(gradient.flat)

    def close(self, digest: str) -> None:
        """End the cycle in all processes. Raise RuntimeError unless the weights of all have this digest."""
        if self._exchange:
            self._exchange.close(digest)


def added_up(
    pieces: Iterator[tuple[Shard, float, float]],
    parameters: Sequence[Tensor],
    parts_of: Callable[[Shard, float], tuple[Tensor, Sequence[Tensor]]],
) -> Gradient:
    """Return the loss and gradient of a shard from those of its pieces.

    pieces: pieces of the shard, each with its share of the shard's loss and the weight of its fast answers.
    parts_of: function from a piece and that weight to its mean loss, and the gradient of each parameter.
    """
    size, first = sum(parameter.numel() for parameter in parameters), parameters[0]
    loss, flat = first.new_zeros((), dtype=torch.float32), first.new_zeros(size, dtype=accumulating(first.dtype))
    views = [
        part.view_as(parameter)
        for part, parameter in zip(flat.split([each.numel() for each in parameters]), parameters, strict=True)
    ]
    for piece, share, fast_weight in pieces:
        own, parts = parts_of(piece, fast_weight)
        loss += own * share
        for view, part in zip(views, parts, strict=True):
            view.add_(part, alpha=share)
    return Gradient(loss, flat)
