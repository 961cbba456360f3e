"""A shard: examples of one length, laid out for a model; the unit of a training step."""

from typing import Any, Protocol, Self

from torch import Tensor


class Shard(Protocol):
    """Laid out examples: `place_rows.Rows` for our own models, `text_rows.TextRows` for a model of text."""

    @property
    def num_tokens(self) -> int:
        """Tokens that a forward pass reads."""
        ...

    def loss(self, model: Any, fast_weight: float) -> Tensor:
        """Return the mean loss in nats per token; the fast loss has the weight `fast_weight`, the slow one the rest."""
        ...


class Fixed(Shard, Protocol):
    """A shard that a CUDA graph computes: `place_rows.Rows`, or `joined_rows.JoinedRows` for a model of text."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """All that a graph depends on: shards of other sizes have another graph."""
        ...

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Tensors in which shards of equal sizes differ."""
        ...

    def copied_for(self, model: Any) -> Self:
        """Return a copy on the device of a model, which a graph reads; later shards are copied into its inputs."""
        ...
