"""Training steps on a GPU as CUDA graphs: a shard's forward and backward pass, and the update of all weights.

A step of a small model is thousands of kernels of a few microseconds, which Python launches more slowly than the GPU
runs them: 86 ms per step of the preset base on an H200. A graph launches them all at once. Shards of other sizes have
a graph of their own; there are about as many as lengths.

A graph reads and writes the memory that it was captured with. So a shard is copied into the inputs of its graph, and
learning rates are tensors (`distill.start_training`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from sector.engine.models.checkpoint import Model, trained_parameters
from sector.engine.samplers.cuda_graphs import Capture, CudaCapture
from sector.engine.training.data_parallel import Gradient
from sector.engine.training.precision import accumulating
from sector.engine.training.shard import Fixed


@dataclass(frozen=True, slots=True)
class _Graph:
    """The graph of shards of equal sizes.

    shard: the shard that the graph reads.
    replay: computes the result.
    """

    shard: Fixed
    replay: Callable[[], object]


class GraphedGradients:
    """Loss and gradient of shards of one model, which may change in place."""

    def __init__(self, model: Model, fast_weight: float, capture: Capture) -> None:
        self._parameters = trained_parameters(model)
        self._fast_weight, self._capture = fast_weight, capture
        self._graphs: dict[tuple[int, ...], _Graph] = {}
        # The loss, then the gradients of all parameters: `[1 + P]`. All graphs write here, one after another.
        size = sum(parameter.numel() for parameter in self._parameters)
        self._result = torch.empty(1 + size, dtype=accumulating(model.dtype), device=model.device)

    def gradient_of(self, model: Model, shard: Fixed) -> Gradient:
        """Return the loss and the gradient of a shard that is on the CPU."""
        if shard.sizes not in self._graphs:
            self._graphs[shard.sizes] = self._new(model, shard)
        graph = self._graphs[shard.sizes]
        for old, new in zip(graph.shard.inputs, shard.inputs, strict=True):
            # From pinned memory, so that the host does not wait for the graphs before.
            old.copy_(new.pin_memory() if old.is_cuda else new, non_blocking=True)
        graph.replay()
        loss, flat = self._result.clone().tensor_split([1])
        return Gradient(loss[0], flat)

    def _new(self, model: Model, shard: Fixed) -> _Graph:
        """Return the graph of the sizes of a shard."""
        static = shard.copied_for(model)

        def run() -> None:
            loss = static.loss(model, self._fast_weight)
            parts = torch.autograd.grad(loss, self._parameters)
            torch.cat([loss.detach().view(1), *(part.flatten() for part in parts)], out=self._result)

        return _Graph(static, self._capture(run))


class GraphedUpdate:
    """One step of optimizers over gradients and learning rates that stay where they are.

    The first step is not captured: in it optimizers allocate their moments.
    """

    def __init__(
        self, optimizers: Sequence[torch.optim.Optimizer], capture: Capture, then: Callable[[], None] | None = None
    ) -> None:
        """Step optimizers, and call `then` after each step, inside of the graph."""
        self._optimizers, self._capture, self._then = optimizers, capture, then
        self._replay: Callable[[], object] | None = None
        self._started = all(optimizer.state for optimizer in optimizers)

    def step(self) -> None:
        """Update all weights."""
        if not self._started:
            self._run()
            self._started = True
            return
        if self._replay is None:
            self._replay = self._capture(self._run)
        self._replay()

    def _run(self) -> None:
        for optimizer in self._optimizers:
            optimizer.step()
        if self._then:
            self._then()


# Graphs outlive a training cycle: the next one trains the same model.
_GRADIENTS: WeakKeyDictionary[Model, dict[float, GraphedGradients]] = WeakKeyDictionary()


def graphed_gradients(model: Model, fast_weight: float) -> GraphedGradients:
    """Return the graphs of a model on a GPU."""
    by_weight = _GRADIENTS.setdefault(model, {})
    if fast_weight not in by_weight:
        by_weight[fast_weight] = GraphedGradients(model, fast_weight, CudaCapture(model.device))
    return by_weight[fast_weight]
