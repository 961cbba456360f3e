"""Summarize a trace: the longest operations, the ranges, and the shares of the time.

A trace is the JSON that torch.profiler writes in Chrome's format, with times in microseconds; the profiler itself is
not needed. A step is an event `ProfilerStep#n`. Only events that begin between the first step and the last are counted.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_MICRO = 1e-6
_STEP = "ProfilerStep#"
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
_ON_HOST = ("cuda_runtime", "cuda_driver")
_RANGE = "user_annotation"
# Span of the compiled passes of the native engine, which torch does not see (`native.py`).
_COMPILED = "compiled"


@dataclass(frozen=True, slots=True)
class Event:
    """One interval of a thread or of a stream of a GPU.

    name: name of the operation, call or range.
    category: category in the trace, as `cpu_op` or `kernel`.
    thread: process and thread, or device and stream.
    start: begin in seconds.
    end: end in seconds.
    """

    name: str
    category: str
    thread: tuple[object, object]
    start: float
    end: float

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.end - self.start

    @property
    def is_operation(self) -> bool:
        """Whether it is an operation of torch on the CPU, or a compiled pass."""
        return self.category == "cpu_op" or (self.category == _RANGE and self.name == _COMPILED)


@dataclass(frozen=True, slots=True)
class ProcessorTime:
    """Processor time of the steps.

    cores: cores of the machine.
    all: processor seconds of the process.
    python: processor seconds of its Python threads; the other threads help inside operations.
    """

    cores: int
    all: float
    python: float


def read_events(trace: dict[str, Any]) -> list[Event]:
    """Return the events that begin within the steps of a trace, in order, including the steps themselves."""
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
    """Return the steps among the events."""
    return [event for event in events if event.category == _RANGE and event.name.startswith(_STEP)]


def summarize(events: Sequence[Event], processor: ProcessorTime) -> dict[str, Any]:
    """Return the figures of a trace.

    operations: longest first; `name`, `on` (cpu or gpu), `calls`, `self_seconds` (without the operations inside) and
        `share` of all self time on that device.
    ranges: in order of appearance; `name`, `calls`, `seconds` (summed over threads) and `threads`, the mean number of
        threads inside over the steps.
    shares: see `gpu_shares` if a kernel ran, else `cpu_shares`.
    cores_used: processor seconds per second. The time of an operation includes waiting for a core, so other work on the
        machine makes operations longer than the processor time that they use.
    kernel: name of the kernel with most time on the GPU; null if no kernel ran.
    """
    seconds = sum(step.seconds for step in steps_of(events))
    kernels = _operations([event for event in events if event.category == "kernel"], "gpu")
    return {
        "operations": sorted(
            _operations([event for event in events if event.is_operation], "cpu")
            + _operations([event for event in events if event.category in _ON_GPU], "gpu"),
            key=lambda operation: -operation["self_seconds"],
        ),
        "ranges": _ranges(events, seconds),
        "shares": gpu_shares(events, seconds) if kernels else cpu_shares(events, seconds, processor),
        "cores_used": processor.all / seconds,
        "kernel": kernels[0]["name"] if kernels else None,
    }


def gpu_shares(events: Sequence[Event], seconds: float) -> dict[str, float]:
    """Return shares of the steps' time that add up to 1.

    kernels: the GPU runs a kernel or a copy.
    host: the GPU runs nothing, and the processor is inside an operation or a call to CUDA.
    idle: neither; Python between operations, or waiting.
    """
    on_gpu = covered(event for event in events if event.category in _ON_GPU)
    either = covered(event for event in events if event.category in _ON_GPU + _ON_HOST or event.is_operation)
    kernels, busy = min(1.0, on_gpu / seconds), min(1.0, either / seconds)
    return {"kernels": kernels, "host": busy - kernels, "idle": 1 - busy}


def cpu_shares(events: Sequence[Event], seconds: float, processor: ProcessorTime) -> dict[str, float]:
    """Return shares of all cores' time that add up to 1.

    operations: a core is inside an operation of torch, or a compiled pass.
    host: a core works for this process outside of operations: Python, and the recording itself.
    idle: a core does not work for this process.
    """
    by_thread: dict[object, list[Event]] = defaultdict(list)
    for event in events:
        if event.is_operation:
            by_thread[event.thread].append(event)
    inside = sum(covered(operations) for operations in by_thread.values())
    # Threads that help inside an operation leave no events.
    helpers = max(0.0, processor.all - processor.python)
    total = seconds * processor.cores
    operations = min(1.0, (inside + helpers) / total)
    host = min(1 - operations, max(0.0, processor.python - inside) / total)
    return {"operations": operations, "host": host, "idle": 1 - operations - host}


def covered(events: Iterable[Event]) -> float:
    """Return the seconds during which at least one event is in progress."""
    total, until = 0.0, float("-inf")
    for event in sorted(events, key=lambda event: event.start):
        total += max(0.0, event.end - max(until, event.start))
        until = max(until, event.end)
    return total


def self_seconds(events: Sequence[Event]) -> list[float]:
    """Return the seconds of each event without the events inside it; events of all threads, by start."""
    self_times = [event.seconds for event in events]
    open_by_thread: dict[object, list[int]] = defaultdict(list)
    # Of two events that start together, the longer one contains the other.
    for index in sorted(range(len(events)), key=lambda index: (events[index].start, -events[index].end)):
        event, stack = events[index], open_by_thread[events[index].thread]
        while stack and events[stack[-1]].end <= event.start:
            stack.pop()
        if stack:
            self_times[stack[-1]] -= event.seconds
        stack.append(index)
    return [max(0.0, seconds) for seconds in self_times]


def _operations(events: Sequence[Event], device: str) -> list[dict[str, Any]]:
    """Return the operations of one device, longest first. Events on a GPU do not contain other events."""
    calls: dict[str, int] = defaultdict(int)
    seconds: dict[str, float] = defaultdict(float)
    self_times = self_seconds(events) if device == "cpu" else [event.seconds for event in events]
    for event, self_time in zip(events, self_times, strict=True):
        calls[event.name] += 1
        seconds[event.name] += self_time
    total = sum(seconds.values()) or 1.0
    rows = [
        {"name": name, "on": device, "calls": calls[name], "self_seconds": self_time, "share": self_time / total}
        for name, self_time in seconds.items()
    ]
    return sorted(rows, key=lambda row: -row["self_seconds"])


def _ranges(events: Iterable[Event], seconds: float) -> list[dict[str, Any]]:
    """Return name, calls, seconds and threads of each range (see `summarize`), in order of appearance.

    seconds: duration of all steps.
    """
    rows: dict[str, dict[str, Any]] = {}
    for event in events:
        if event.category == _RANGE and not event.name.startswith(_STEP):
            row = rows.setdefault(event.name, {"name": event.name, "calls": 0, "seconds": 0.0})
            row["calls"] += 1
            row["seconds"] += event.seconds
    return [{**row, "threads": row["seconds"] / seconds} for row in rows.values()]
