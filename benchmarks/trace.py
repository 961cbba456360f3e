"""What a recorded trace says: top operations, ranges, and where the time went. Reads the JSON, needs no profiler.

A trace is the JSON of torch.profiler in Chrome's form, times in microseconds. A step is one `ProfilerStep#n` of it;
only what begins between the first and the last is counted.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_MICRO = 1e-6
_STEP = "ProfilerStep#"
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
_ON_HOST = ("cpu_op", "cuda_runtime", "cuda_driver")
_RANGE = "user_annotation"


@dataclass(frozen=True, slots=True)
class Event:
    """One interval of one thread, or of one stream of a GPU; seconds."""

    name: str
    category: str
    thread: tuple[Any, Any]
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class ProcessorTime:
    """Seconds of processor time that the steps took on a machine of so many cores.

    all: of the process. python: of its Python threads alone; the others help inside operations.
    """

    cores: int
    all: float
    python: float


def read_events(trace: dict[str, Any]) -> list[Event]:
    """The intervals that begin within the steps of a trace, in order; the steps themselves come too."""
    events = [
        Event(
            entry["name"],
            entry.get("cat", ""),
            (entry["pid"], entry["tid"]),
            entry["ts"] * _MICRO,
            (entry["ts"] + entry["dur"]) * _MICRO,
        )
        for entry in trace["traceEvents"]
        if entry["ph"] == "X"
    ]
    steps = steps_of(events)
    first, last = min(step.start for step in steps), max(step.end for step in steps)
    return sorted((event for event in events if first <= event.start < last), key=lambda event: event.start)


def steps_of(events: Iterable[Event]) -> list[Event]:
    """The steps among the events."""
    return [event for event in events if event.category == _RANGE and event.name.startswith(_STEP)]


def summarize(events: Sequence[Event], processor: ProcessorTime) -> dict[str, Any]:
    """Figures of a trace.

    operations: longest first, `name`, `on` (cpu or gpu), `calls`, `self_seconds` (without the operations inside) and
        `share` of all self time on that device.
    ranges: in order of appearance, `name`, `calls`, `seconds` (threads side by side add up), `threads`: how many are
        inside at a time, on average over the steps.
    shares: of time, see `gpu_shares` and `cpu_shares`; the first where a kernel ran.
    cores_used: processor seconds a second. An operation that waits for a core counts as under way: on a machine with
        other work, operations take longer than the cores that we got.
    kernel: the name of the one with most time on the GPU, or null.
    """
    seconds = sum(step.seconds for step in steps_of(events))
    kernels = _operations([event for event in events if event.category == "kernel"], "gpu")
    return {
        "operations": sorted(
            _operations([event for event in events if event.category == "cpu_op"], "cpu")
            + _operations([event for event in events if event.category in _ON_GPU], "gpu"),
            key=lambda operation: -operation["self_seconds"],
        ),
        "ranges": _ranges(events, seconds),
        "shares": gpu_shares(events, seconds) if kernels else cpu_shares(events, seconds, processor),
        "cores_used": processor.all / seconds,
        "kernel": kernels[0]["name"] if kernels else None,
    }


def gpu_shares(events: Sequence[Event], seconds: float) -> dict[str, float]:
    """Shares of the steps' time, which add up to 1.

    kernels: the GPU runs a kernel or a copy. host: it runs none while the processor is inside an operation or a call to
    CUDA. idle: neither; Python between operations, or waiting.
    """
    on_gpu = covered(event for event in events if event.category in _ON_GPU)
    either = covered(event for event in events if event.category in _ON_GPU + _ON_HOST)
    kernels, busy = min(1.0, on_gpu / seconds), min(1.0, either / seconds)
    return {"kernels": kernels, "host": busy - kernels, "idle": 1 - busy}


def cpu_shares(events: Sequence[Event], seconds: float, processor: ProcessorTime) -> dict[str, float]:
    """Shares of all cores' time, which add up to 1.

    operations: a core is inside an operation of torch. host: it works for us outside of them; Python, and the recording
    itself. idle: it does not work for us.
    """
    by_thread: dict[Any, list[Event]] = defaultdict(list)
    for event in events:
        if event.category == "cpu_op":
            by_thread[event.thread].append(event)
    inside = sum(covered(own) for own in by_thread.values())
    # Threads that help inside an operation leave no events.
    helpers = max(0.0, processor.all - processor.python)
    total = seconds * processor.cores
    operations = min(1.0, (inside + helpers) / total)
    host = min(1 - operations, max(0.0, processor.python - inside) / total)
    return {"operations": operations, "host": host, "idle": 1 - operations - host}


def covered(events: Iterable[Event]) -> float:
    """Seconds during which at least one of the events is under way."""
    total, until = 0.0, float("-inf")
    for event in sorted(events, key=lambda event: event.start):
        total += max(0.0, event.end - max(until, event.start))
        until = max(until, event.end)
    return total


def self_seconds(events: Sequence[Event]) -> list[float]:
    """Seconds of each event that no event inside it accounts for; the events of all threads, by start."""
    own = [event.seconds for event in events]
    open_at: dict[Any, list[int]] = defaultdict(list)
    # Of two that start together the longer one holds the other.
    for index in sorted(range(len(events)), key=lambda index: (events[index].start, -events[index].end)):
        event, stack = events[index], open_at[events[index].thread]
        while stack and events[stack[-1]].end <= event.start:
            stack.pop()
        if stack:
            own[stack[-1]] -= event.seconds
        stack.append(index)
    return [max(0.0, seconds) for seconds in own]


def _operations(events: Sequence[Event], device: str) -> list[dict[str, Any]]:
    """Operations of one device, longest first. What runs on a GPU holds nothing inside."""
    calls: dict[str, int] = defaultdict(int)
    seconds: dict[str, float] = defaultdict(float)
    own = self_seconds(events) if device == "cpu" else [event.seconds for event in events]
    for event, spent in zip(events, own, strict=True):
        calls[event.name] += 1
        seconds[event.name] += spent
    total = sum(seconds.values()) or 1.0
    rows = [
        {"name": name, "on": device, "calls": calls[name], "self_seconds": spent, "share": spent / total}
        for name, spent in seconds.items()
    ]
    return sorted(rows, key=lambda row: -row["self_seconds"])


def _ranges(events: Iterable[Event], seconds: float) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        if event.category == _RANGE and not event.name.startswith(_STEP):
            row = found.setdefault(event.name, {"name": event.name, "calls": 0, "seconds": 0.0})
            row["calls"] += 1
            row["seconds"] += event.seconds
    return [{**row, "threads": row["seconds"] / seconds} for row in found.values()]
