"""Training steps on a GPU as CUDA graphs: a shard's forward and backward pass, and the update of all weights.

A step of a small model is thousands of kernels of a few microseconds, which Python launches more slowly than the GPU
runs them: 86 ms per step of the preset base on an H200. A graph launches them all at once. Shards of other sizes have
a graph of their own; there are about as many as lengths. The kernels of one shard leave most of the GPU idle, so shards
of a small model run beside each other, on lanes; those of equal sizes have a graph each.

A graph reads and writes the memory that it was captured with. So a shard is copied into the inputs of its graph, and
learning rates are tensors (`distill.start_training`).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from sector.engine.models.checkpoint import Model, trained_parameters
from sector.engine.samplers.cuda_graphs import Capture, CudaLanes, Lanes
from sector.engine.training.data_parallel import Gradient
from sector.engine.training.precision import accumulating
from sector.engine.training.shard import Fixed

# Twice the shards of a step by default, so that two of them rarely meet on one lane.
_LANES = 8
# A larger model fills the GPU with one shard, and each lane costs the memory of a gradient and of a shard.
_MOST_PARAMETERS = 1 << 25


@dataclass(frozen=True, slots=True)
class _Graph:
    """The graph of shards of equal sizes.

    lane: the lane on which it runs.
    shard: the shard that the graph reads.
    replay: computes the result.
    """

    lane: int
    shard: Fixed
    replay: Callable[[], object]


class GraphedGradients:
    """Loss and gradient of shards of one model, which may change in place."""

    def __init__(self, model: Model, fast_weight: float, lanes: Lanes) -> None:
        self._parameters = trained_parameters(model)
        self._fast_weight, self._lanes = fast_weight, lanes
        # By the sizes of a shard, and the number of shards of these sizes before it in a step.
        self._graphs: dict[tuple[tuple[int, ...], int], _Graph] = {}
        # The loss, then the gradients of all parameters: `[1 + P]`. All graphs of a lane write here, one after another.
        size, dtype = sum(parameter.numel() for parameter in self._parameters), accumulating(model.dtype)
        self._results = [torch.empty(1 + size, dtype=dtype, device=model.device) for _ in range(len(lanes))]

    def gradients(self, model: Model, shards: Sequence[Fixed]) -> list[Gradient]:
        """Return the losses and the gradients of shards that are on the CPU."""
        counts: Counter[tuple[int, ...]] = Counter()
        found = []
        for shard in shards:
            found.append(self._gradient_of(model, shard, counts[shard.sizes]))
            counts[shard.sizes] += 1
        self._lanes.join()
        return found

    def _gradient_of(self, model: Model, shard: Fixed, place: int) -> Gradient:
        """Return the loss and the gradient of a shard, which its lane computes.

        place: number of shards of the same sizes before it in the step, whose graphs are busy.
        """
        key = (shard.sizes, place)
        if key not in self._graphs:
            self._graphs[key] = self._new(model, shard)
        graph = self._graphs[key]
        with self._lanes.on(graph.lane):
            for old, new in zip(graph.shard.inputs, shard.inputs, strict=True):
                # From pinned memory, so that the host does not wait for the graphs before.
                old.copy_(new.pin_memory() if old.is_cuda else new, non_blocking=True)
            graph.replay()
            loss, flat = self._results[graph.lane].clone().tensor_split([1])
        return Gradient(loss[0], flat)

    def _new(self, model: Model, shard: Fixed) -> _Graph:
        """Return the graph of the sizes of a shard. The lanes take turns."""
        static, lane = shard.copied_for(model), len(self._graphs) % len(self._lanes)
        result = self._results[lane]

        def run() -> None:
            loss = static.loss(model, self._fast_weight)
            parts = torch.autograd.grad(loss, self._parameters)
            torch.cat([loss.detach().view(1), *(part.flatten() for part in parts)], out=result)

        return _Graph(lane, static, self._lanes.capture(lane, run))


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
        is_small = sum(parameter.numel() for parameter in trained_parameters(model)) <= _MOST_PARAMETERS
        lanes = CudaLanes(model.device, _LANES if is_small else 1)
        by_weight[fast_weight] = GraphedGradients(model, fast_weight, lanes)
    return by_weight[fast_weight]
