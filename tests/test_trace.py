"""Summaries of traces that are small enough to add up by hand."""

from typing import Any

import pytest

from sector.benchmarks.trace import Event, ProcessorTime, covered, read_events, self_seconds, summarize

MAIN, WORKER, STREAM = (1, 1), (1, 2), (0, 7)
# The clock of a trace starts anywhere.
START = 4_497_064_649_203.5


def entry(name: str, category: str, thread: tuple[int, int], start: float, end: float) -> dict[str, Any]:
    """Return one event of a trace; start and end are microseconds after the start of the trace."""
    process, number = thread
    times = {"ts": START + start, "dur": end - start}
    return {"ph": "X", "name": name, "cat": category, "pid": process, "tid": number, **times}


STEPS = [
    entry("ProfilerStep#1", "user_annotation", MAIN, 0, 50),
    entry("ProfilerStep#2", "user_annotation", MAIN, 50, 100),
]
HOST = [
    entry("vote", "user_annotation", MAIN, 5, 45),
    entry("answer", "user_annotation", WORKER, 10, 60),
    entry("answer", "user_annotation", WORKER, 60, 90),
    # 10 inside of 40, and 5 inside of the 10.
    entry("aten::linear", "cpu_op", MAIN, 5, 45),
    entry("aten::mm", "cpu_op", MAIN, 10, 20),
    entry("aten::empty", "cpu_op", MAIN, 15, 20),
    entry("aten::mm", "cpu_op", WORKER, 20, 40),
    # Before the first step and behind the last one.
    entry("aten::mm", "cpu_op", MAIN, -50, -10),
    entry("aten::mm", "cpu_op", WORKER, 100, 400),
    {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "ts": START, "args": {"name": "python"}},
]
DEVICE = [
    entry("cudaLaunchKernel", "cuda_runtime", MAIN, 50, 55),
    entry("void sum<float>(float*)", "kernel", STREAM, 42, 62),
    entry("decode", "kernel", STREAM, 52, 72),
    entry("decode", "kernel", STREAM, 72, 77),
    entry("Memcpy DtoH", "gpu_memcpy", STREAM, 80, 110),
    # What a range of the host launched, as the GPU saw it: not work of its own.
    entry("vote", "gpu_user_annotation", STREAM, 40, 99),
]


def summary(entries: list[dict[str, Any]], processor: ProcessorTime) -> dict[str, Any]:
    return summarize(read_events({"traceEvents": STEPS + entries}), processor)


def test_operations_by_self_time_within_the_steps() -> None:
    report = summary(HOST, ProcessorTime(2, 1e-4, 1e-4))
    rows = [(row["name"], row["on"], row["calls"]) for row in report["operations"]]
    assert rows == [("aten::linear", "cpu", 1), ("aten::mm", "cpu", 2), ("aten::empty", "cpu", 1)]
    own = [row["self_seconds"] for row in report["operations"]]
    assert own == pytest.approx([30e-6, 25e-6, 5e-6], abs=1e-8)
    assert [row["share"] for row in report["operations"]] == pytest.approx([30 / 60, 25 / 60, 5 / 60], abs=1e-4)
    assert report["kernel"] is None


def test_ranges_in_order_of_appearance() -> None:
    ranges = summary(HOST, ProcessorTime(2, 1e-4, 1e-4))["ranges"]
    assert [(row["name"], row["calls"]) for row in ranges] == [("vote", 1), ("answer", 2)]
    assert [row["seconds"] for row in ranges] == pytest.approx([40e-6, 80e-6], abs=1e-8)
    assert [row["threads"] for row in ranges] == pytest.approx([0.4, 0.8], abs=1e-4)


@pytest.mark.parametrize(
    ("processor", "operations", "host"),
    [
        pytest.param(ProcessorTime(2, all=100e-6, python=100e-6), 0.3, 0.2, id="python between operations"),
        pytest.param(ProcessorTime(2, all=180e-6, python=100e-6), 0.7, 0.2, id="helpers inside operations"),
        pytest.param(ProcessorTime(2, all=40e-6, python=40e-6), 0.3, 0.0, id="operations that wait for a core"),
        pytest.param(ProcessorTime(2, all=900e-6, python=200e-6), 1.0, 0.0, id="more than there is"),
    ],
)
def test_shares_on_a_cpu(processor: ProcessorTime, operations: float, host: float) -> None:
    report = summary(HOST, processor)
    expected = {"operations": operations, "host": host, "idle": 1 - operations - host}
    assert report["shares"] == pytest.approx(expected, abs=1e-4)
    assert report["cores_used"] == pytest.approx(processor.all / 100e-6, rel=1e-4)


def test_a_compiled_pass_is_an_operation() -> None:
    """Its library works in threads of Python, so all its time was taken for Python's own."""
    compiled = [entry("compiled", "user_annotation", thread, 40, 90) for thread in (MAIN, WORKER)]
    report = summary(HOST + compiled, ProcessorTime(2, all=180e-6, python=180e-6))
    expected = {"operations": (85 + 70) / 200, "host": 25 / 200, "idle": 20 / 200}
    assert report["shares"] == pytest.approx(expected, abs=1e-4)
    first = report["operations"][0]
    assert (first["name"], first["calls"], first["on"]) == ("compiled", 2, "cpu")
    assert [row["name"] for row in report["ranges"]] == ["vote", "answer", "compiled"]


def test_shares_on_a_gpu() -> None:
    report = summary(HOST + DEVICE, ProcessorTime(2, 1e-4, 1e-4))
    # Kernels and copies run from 42 to 77 and from 80 on; the host is in operations from 5 to 45.
    assert report["shares"] == pytest.approx({"kernels": 0.65, "host": 0.37, "idle": 0}, abs=0.03)
    assert sum(report["shares"].values()) == pytest.approx(1)


def test_the_kernel_at_fault_is_a_kernel_and_the_longest() -> None:
    report = summary(HOST + DEVICE, ProcessorTime(2, 1e-4, 1e-4))
    # The copy takes longer than any, and no look into a kernel would mend it.
    assert report["kernel"] == "decode"
    on_gpu = [(row["name"], row["calls"]) for row in report["operations"] if row["on"] == "gpu"]
    assert on_gpu == [("Memcpy DtoH", 1), ("decode", 2), ("void sum<float>(float*)", 1)]


def test_overlaps_count_once() -> None:
    events = [Event("x", "cpu_op", MAIN, start, end) for start, end in ((0, 4), (1, 2), (3, 6), (8, 9))]
    assert covered(events) == 7
    assert covered([]) == 0


def test_an_event_that_starts_with_its_parent_lies_inside_it() -> None:
    events = [Event("inner", "cpu_op", MAIN, 0, 1), Event("outer", "cpu_op", MAIN, 0, 4)]
    assert self_seconds(events) == [1, 3]
    assert self_seconds(events[::-1]) == [3, 1]
