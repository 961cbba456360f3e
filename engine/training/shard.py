"""A shard: examples of one length, laid out for a model; the unit of a training step."""

from typing import Any, Protocol

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
