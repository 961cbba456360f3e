"""Training steps on a GPU as CUDA graphs: a shard's forward and backward pass, and the update of all weights.

A step of a small model is thousands of kernels of a few microseconds, which Python launches more slowly than the GPU
runs them: 86 ms per step of the preset base on an H200. A graph launches them all at once. Each shape of shard has a
graph of its own; there are about as many as lengths. The kernels of one shard leave most of the GPU idle, so shards run
beside each other, on lanes.

A graph reads and writes the memory that it was captured with. So a shard is copied into the inputs of its graph, and
learning rates are tensors (`distill.start_training`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sector.engine.models.sector import SectorForCausalLM
from sector.engine.samplers.cuda_graphs import Capture, CudaLanes, Lanes
from sector.engine.training.data_parallel import Gradient
from sector.engine.training.place_rows import Rows

# Twice the shards of a step by default, so that two of them rarely meet on one lane.
_LANES = 8


@dataclass(frozen=True, slots=True)
class _Graph:
    """The graph of one shape of shard.

    lane: the lane on which it runs.
    inputs: tensors of the shard that the graph reads.
    result: `[1 + P]` the loss, then the gradients of all parameters.
    replay: computes the result.
    """

    lane: int
    inputs: tuple[Tensor, ...]
    result: Tensor
    replay: Callable[[], object]


class GraphedGradients:
    """Loss and gradient of shards of one model, which may change in place."""

    def __init__(self, model: SectorForCausalLM, fast_weight: float, lanes: Lanes) -> None:
        self._parameters = list(model.parameters())
        self._fast_weight, self._lanes = fast_weight, lanes
        self._graphs: dict[tuple[int, ...], _Graph] = {}

    def gradients(self, model: SectorForCausalLM, shards: Sequence[Rows]) -> list[Gradient]:
        """Return the losses and the gradients of shards that are on the CPU."""
        found = [self._gradient_of(model, shard) for shard in shards]
        self._lanes.join()
        return found

    def _gradient_of(self, model: SectorForCausalLM, shard: Rows) -> Gradient:
        """Return the loss and the gradient of a shard, which its lane computes."""
        key = (*shard.ids.shape, *shard.lengths)
        if key not in self._graphs:
            self._graphs[key] = self._new(model, shard)
        graph = self._graphs[key]
        with self._lanes.on(graph.lane):
            for old, new in zip(graph.inputs, (shard.ids, shard.places, shard.targets), strict=True):
                # From pinned memory, so that the host does not wait for the graphs before.
                old.copy_(new.pin_memory() if old.is_cuda else new, non_blocking=True)
            graph.replay()
            loss, flat = graph.result.clone().tensor_split([1])
        return Gradient(loss[0], flat)

    def _new(self, model: SectorForCausalLM, shard: Rows) -> _Graph:
        """Return the graph of a shape, from one shard of it. The lanes take turns."""
        parameters = self._parameters
        ids, places, targets = (
            tensor.to(model.device, copy=True) for tensor in (shard.ids, shard.places, shard.targets)
        )
        static = Rows(ids, places, targets, shard.answer_length)
        result = torch.empty(1 + sum(parameter.numel() for parameter in parameters), device=model.device)

        def run() -> None:
            loss = static.loss(model, self._fast_weight)
            parts = torch.autograd.grad(loss, parameters)
            torch.cat([loss.detach().view(1), *(part.flatten() for part in parts)], out=result)

        lane = len(self._graphs) % len(self._lanes)
        return _Graph(lane, (ids, places, targets), result, self._lanes.capture(lane, run))


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
_GRADIENTS: WeakKeyDictionary[SectorForCausalLM, dict[float, GraphedGradients]] = WeakKeyDictionary()


def graphed_gradients(model: SectorForCausalLM, fast_weight: float) -> GraphedGradients:
    """Return the graphs of a model on a GPU."""
    by_weight = _GRADIENTS.setdefault(model, {})
    if fast_weight not in by_weight:
        by_weight[fast_weight] = GraphedGradients(model, fast_weight, CudaLanes(model.device, _LANES))
    return by_weight[fast_weight]
