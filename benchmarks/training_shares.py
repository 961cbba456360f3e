"""Divide the wall time of a training step among its named ranges (`engine/spans.py`).

Threads overlap: cores work on shards at the same time, and the next step may be laid out meanwhile. While threads
overlap, the time counts for the ranges of the slowest thread, since the step waits for it. Time in which the slowest
thread has no range open counts for the other threads.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

# Ranges of `distill.train_cycle`, and their names in a record.
PHASES = {
    "lay out": "lay_out",
    "forward": "forward",
    "backward": "backward",
    "exchange": "exchange",
    "optimizer": "optimizer",
}


@dataclass(frozen=True, slots=True)
class Span:
    """One range of one thread.

    name: name of the phase in a record.
    thread: identifier of the thread.
    start: begin in seconds.
    end: end in seconds.
    """

    name: str
    thread: int
    start: float
    end: float

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.end - self.start


class Watch:
    """Collects the spans of all threads whose names are in `PHASES`; `record` is a `spans.Recorder`."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    @contextmanager
    def record(self, name: str) -> Iterator[None]:
        """Record one range."""
        start = time.perf_counter()
        yield
        if name in PHASES:
            self.spans.append(Span(PHASES[name], threading.get_ident(), start, time.perf_counter()))


def wall_seconds(spans: Iterable[Span]) -> dict[str, float]:
    """Return the wall time by name.

    In each group of overlapping spans, the spans of the slowest thread count in full. The spans of other threads count
    where the slowest thread has none.
    """
    seconds = dict.fromkeys(PHASES.values(), 0.0)
    for group in _overlapping(spans):
        slowest = max(group, key=lambda span: span.end).thread
        counted = [span for span in group if span.thread == slowest]
        others = [span for span in group if span.thread != slowest]
        for span in counted:
            seconds[span.name] += span.seconds
        if others:
            pieces = (piece for span in others for piece in _outside(span, counted))
            for name, remaining in wall_seconds(pieces).items():
                seconds[name] += remaining
    return seconds


def shares(seconds: dict[str, float]) -> dict[str, float]:
    """Return the shares of the sum."""
    total = sum(seconds.values())
    return {name: phase / total for name, phase in seconds.items()}


def _overlapping(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """Yield groups of spans: within a group some span is always open, between groups none is."""
    group: list[Span] = []
    end = float("-inf")
    for span in sorted(spans, key=lambda span: span.start):
        if span.start >= end and group:
            yield group
            group = []
        group.append(span)
        end = max(end, span.end)
    if group:
        yield group


def _outside(span: Span, others: Iterable[Span]) -> Iterator[Span]:
    """Yield the pieces of a span in which none of the others is open."""
    start = span.start
    for other in sorted(others, key=lambda other: other.start):
        if start < min(other.start, span.end):
            yield replace(span, start=start, end=min(other.start, span.end))
        start = max(start, other.end)
    if start < span.end:
        yield replace(span, start=start)
