"""Named ranges of the loop, for profilers: `with named("vote"): ...`. Nearly free while none of them listens.

A range of torch costs many microseconds even where nothing records it; this costs a tenth of one. So there is a switch,
one for all threads, and `profiling.py` has it.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Recorder = Callable[[str], AbstractContextManager[object]]

_NOTHING = nullcontext()
_recorder: Recorder | None = None


def span(name: str) -> AbstractContextManager[object]:
    """A range of that name, from now to the end of the block, for whoever records."""
    return _NOTHING if _recorder is None else _recorder(name)


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Open ranges with `recorder` while the block runs, in all threads."""
    global _recorder
    before, _recorder = _recorder, recorder
    try:
        yield
    finally:
        _recorder = before
