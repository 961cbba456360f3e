"""Named spans of the loop, for profilers: `with span("vote"): ...`. Nearly free while no profiler records.

A range of torch costs many microseconds even if no profiler records; a span costs a tenth of a microsecond. So all
threads share one switch, which `benchmarks/profiling.py` turns on.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Recorder = Callable[[str], AbstractContextManager[object]]

_UNRECORDED = nullcontext()
_recorder: Recorder | None = None


def span(name: str) -> AbstractContextManager[object]:
    """Return a context manager that records its block under that name if a profiler is on."""
    return _UNRECORDED if _recorder is None else _recorder(name)


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Open spans with `recorder` while the block runs, in all threads."""
    global _recorder
    before, _recorder = _recorder, recorder
    try:
        yield
    finally:
        _recorder = before
