"""Named spans: recorded in all threads if a profiler is on, and nearly free otherwise."""

import timeit
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from sector.engine.spans import recording, span


def test_ranges_open_and_close_only_while_someone_records() -> None:
    log: list[str] = []

    @contextmanager
    def note(name: str) -> Iterator[None]:
        log.append(f"<{name}>")
        yield
        log.append(f"</{name}>")

    with span("before"):
        pass
    with recording(note), span("vote"), ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: span("answer").__enter__()).result()
    with span("after"):
        pass
    assert log == ["<vote>", "<answer>", "</vote>"]


def test_an_error_ends_the_recording() -> None:
    log: list[str] = []

    @contextmanager
    def note(name: str) -> Iterator[None]:
        log.append(name)
        yield

    with pytest.raises(ValueError, match="stop"), recording(note):
        raise ValueError("stop")
    with span("after"):
        pass
    assert log == []


def test_a_range_that_nobody_records_takes_less_than_a_microsecond() -> None:
    def ranged() -> None:
        with span("prefix"):
            pass

    count = 10_000
    # The shortest of many: what other work on the machine adds is not the range's.
    assert min(timeit.repeat(ranged, number=count, repeat=20)) / count < 1e-6
