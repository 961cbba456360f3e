"""Capture work on a GPU as CUDA graphs, which launch all its kernels at once."""

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

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
        return graph.replay

    @property
    def stream(self) -> torch.cuda.Stream:
        """The stream of the captures."""
        return self._stream


class Lanes(Protocol):
    """Lanes of a GPU: graphs of different lanes run beside each other, those of one lane one after another."""

    def __len__(self) -> int: ...

    def capture(self, lane: int, run: Callable[[], None]) -> Callable[[], object]:
        """Return the replay of some work, which belongs on this lane."""
        ...

    def on(self, lane: int) -> AbstractContextManager[None]:
        """Put work on a lane, behind all work that is not on another lane."""
        ...

    def join(self) -> None:
        """Let work that follows wait for all lanes."""
        ...


class CudaLanes:
    """Lanes of a GPU, each a stream with a memory for its graphs.

    A tensor that was made on a lane may be used after `join`, and its memory is not used again before the work on it is
    done: each use of a lane waits for the stream that reads such tensors.
    """

    def __init__(self, device: torch.device, count: int) -> None:
        self._captures = [CudaCapture(device) for _ in range(count)]

    def __len__(self) -> int:
        return len(self._captures)

    def capture(self, lane: int, run: Callable[[], None]) -> Callable[[], object]:
        """Return the replay of some work, which belongs on this lane."""
        return self._captures[lane](run)

    @contextmanager
    def on(self, lane: int) -> Iterator[None]:
        """Put work on a lane, behind all work that is not on another lane."""
        stream = self._captures[lane].stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield

    def join(self) -> None:
        """Let work that follows wait for all lanes."""
        for capture in self._captures:
            torch.cuda.current_stream().wait_stream(capture.stream)


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
