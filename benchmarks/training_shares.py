"""Where the time of a training step goes: shares of wall time by named range (`engine/spans.py`).

Threads overlap: cores work on shards side by side, and the next step may be laid out meanwhile. There the slowest
thread counts, the one that the others are waited with: what it did while they overlapped is what the time went to. What
only another thread did, before or after, counts for that one.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

# Ranges of `distill.train_cycle` by the names they have in a record.
PHASES = {
    "lay out": "lay_out",
    "forward": "forward",
    "backward": "backward",
    "exchange": "exchange",
    "optimizer": "optimizer",
}


@dataclass(frozen=True, slots=True)
class Span:
    """One range of one thread, in seconds of one clock."""

    name: str
    thread: int
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Watch:
    """Notes the spans of all threads, of the names in `PHASES`; `record` is a `ranges.Recorder`."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    @contextmanager
    def record(self, name: str) -> Iterator[None]:
        """Note one range."""
        start = time.perf_counter()
        yield
        if name in PHASES:
            self.spans.append(Span(PHASES[name], threading.get_ident(), start, time.perf_counter()))


def wall_seconds(spans: Iterable[Span]) -> dict[str, float]:
    """Wall time by name: of spans that overlap those of the slowest thread, and of the others what is left over."""
    seconds = dict.fromkeys(PHASES.values(), 0.0)
    for together in _overlapping(spans):
        slowest = max(together, key=lambda span: span.end).thread
        own = [span for span in together if span.thread == slowest]
        for span in own:
            seconds[span.name] += span.seconds
        others = (piece for span in together if span.thread != slowest for piece in _outside(span, own))
        for name, left in wall_seconds(others).items() if len(own) < len(together) else ():
            seconds[name] += left
    return seconds


def shares(seconds: dict[str, float]) -> dict[str, float]:
    """Of their sum."""
    total = sum(seconds.values())
    return {name: own / total for name, own in seconds.items()}


def _overlapping(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """Groups of spans: in each there is always one open, and between them none."""
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
    """The pieces of a span in which none of the others is open."""
    start = span.start
    for other in sorted(others, key=lambda other: other.start):
        if start < min(other.start, span.end):
            yield replace(span, start=start, end=min(other.start, span.end))
        start = max(start, other.end)
    if start < span.end:
        yield replace(span, start=start)
