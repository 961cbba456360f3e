"""Capture work on a GPU as CUDA graphs, which launch all its kernels at once."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

# Function from some work to its replay, which does the work again on the same memory.
Capture = Callable[[Callable[[], None]], Callable[[], object]]

# The first launch of a kernel compiles, loads and allocates workspace, which must not happen during capture.
_WARM_UPS = 2


class CudaCapture:
    """Recorder of work as CUDA graphs. All share one memory, so a replay may overwrite the temporaries of another.

    device: the GPU.
    warm_ups: how often to do the work before its capture, which records the work without doing it.
    """

    def __init__(self, device: torch.device, warm_ups: int = _WARM_UPS) -> None:
        self._warm_ups = warm_ups
        # One stream for all captures: libraries keep a workspace for each stream that they have seen.
        self._stream, self._memory = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
        # The first graph, since a memory that no graph uses any more cannot be captured into.
        self._first: torch.cuda.CUDAGraph | None = None

    def __call__(self, run: Callable[[], None]) -> Callable[[], object]:
        """Return the replay of some work."""
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(self._warm_ups):
                run()
            with _no_garbage_collection():
                graph.capture_begin(pool=self._memory)
                try:
                    run()
                finally:
                    graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        self._first = self._first or graph
        return graph.replay


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep Python from destroying other graphs during a capture, which would break it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
