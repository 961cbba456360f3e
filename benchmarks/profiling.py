"""Profile generation and distillation step by step: operations, their time, and idle time.

A step of `generate` is one batch of candidates through the improved policy; a step of `distill` is a training step.
After a warm-up, torch.profiler records the steps, and `trace.py` reads the trace. Nsight cannot share the GPU's
counters with torch.profiler, so for Nsight the steps are only marked.
"""

import json
import os
import re
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from os import cpu_count
from pathlib import Path

import psutil
import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from sector.benchmarks.machine import describe
from sector.benchmarks.trace import ProcessorTime, read_events, summarize
from sector.engine import spans
from sector.engine.config import Filter, RunConfig, Values
from sector.engine.errors import InputError
from sector.engine.files import check_writable, write_text
from sector.engine.policy.generate import Assignment, generate
from sector.engine.run.steps import OnProgress, check_digits, open_engine, open_training
from sector.engine.samplers.protocol import Sampler
from sector.engine.seeding import stream_seed
from sector.engine.spans import span
from sector.engine.training.distill import start_training, train_cycle
from sector.engine.training.locations import LocationLike


@dataclass(frozen=True, slots=True)
class Recording:
    """How to profile the steps of some work.

    out: folder for the trace.
    skip: steps of warm-up.
    steps: steps to record.
    nsight: only mark the steps, for Nsight.
    on_progress: called after each step.
    """

    out: Path
    skip: int
    steps: int
    nsight: bool
    on_progress: OnProgress


def profile_generate(
    model: Path,
    digits: int,
    count: int,
    recording: Recording,
    *,
    engine: str,
    settings: Filter,
    seed: int,
    engine_settings: Values | None = None,
) -> dict[str, object]:
    """Profile steps of `count` candidates each, as `generate_file` takes them; return the figures."""
    check_digits(digits)
    sampler, task, layout = open_engine(model, engine, engine_settings)
    assignment = Assignment(task, layout, digits, count, settings, seed, RunConfig().hard_share)
    return _profile(_generate_steps(sampler, assignment), "generate", recording)


def profile_distill(
    model: Path, data: Sequence[LocationLike], replay: Sequence[LocationLike], seed: int, recording: Recording
) -> dict[str, object]:
    """Profile training steps on files as `distill_files` takes them; return the figures. No weights are written."""
    training = open_training(model, data, replay, seed)
    state = start_training(training.weights, training.trainer)
    num_steps = recording.skip + recording.steps
    work = train_cycle(state, training.batches, training.trainer, num_steps, training.seed)
    return _profile(work, "distill", recording)


def nsight_commands(kernel: str, command: Sequence[str], out: Path) -> dict[str, str]:
    """Return shell lines for a closer profile: `nsys` for all steps, `ncu` for one kernel.

    The command must mark its steps: recording begins and ends with the CUDA profiler's range.
    """
    nsys = [
        "nsys", "profile", "--trace=cuda,nvtx,osrt", "--capture-range=cudaProfilerApi", "--capture-range-end=stop",
        "--force-overwrite=true", f"--output={out / 'nsys'}",
    ]  # fmt: skip
    ncu = [
        "ncu", "--profile-from-start=off", "--set=full", "--kernel-name-base=function",
        f"--kernel-name={function_name(kernel)}", "--launch-count=3", "--force-overwrite", f"--export={out / 'ncu'}",
    ]  # fmt: skip
    return {"nsys": shlex.join([*nsys, *command]), "ncu": shlex.join([*ncu, *command])}


def function_name(kernel: str) -> str:
    """Return the bare name of a kernel, as `ncu` matches it: no result type, namespace, template or parameters."""
    text = kernel.replace("(anonymous namespace)", "")
    while (shorter := re.sub(r"<[^<>]*>", "", text)) != text:
        text = shorter
    return text.partition("(")[0].split()[-1].rpartition("::")[2]


def _generate_steps(sampler: Sampler, assignment: Assignment) -> Iterator[None]:
    """Yield after each step, without end; each step has other candidates."""
    step = 0
    while True:
        with span("generate step"):
            for _ in generate(sampler, replace(assignment, seed=stream_seed(assignment.seed, "profile", step))):
                pass
        step += 1
        yield


def _profile(work: Iterator[object], name: str, recording: Recording) -> dict[str, object]:
    """Run the steps, recorded or marked; return the figures and a description of the machine."""
    if recording.nsight and not torch.cuda.is_available():
        raise InputError("--nsight marks steps for a profiler of GPUs, and torch sees no GPU here; leave it out")
    path = recording.out / f"{name}-trace.json"
    check_writable(path)
    skip, steps = recording.skip, recording.steps
    watched = _with_progress(work, skip + steps, recording.on_progress)
    figures = _marked(watched, skip, steps) if recording.nsight else _recorded(watched, skip, steps, path)
    return {"steps": steps, **figures, **describe()}


def _with_progress(work: Iterator[object], total: int, on_progress: OnProgress) -> Iterator[None]:
    """Yield after each step of the work, once its progress is reported."""
    for done, _ in enumerate(work, start=1):
        on_progress(done, total, f"step {done}/{total}")
        yield


def _take(work: Iterator[None], count: int, after: Callable[[], object] = lambda: None) -> list[float]:
    """Run `count` steps and return the seconds of each; `after` is called after each step and is not timed."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        next(work)
        seconds.append(time.perf_counter() - start)
        after()
    return seconds


def _recorded(work: Iterator[None], skip: int, steps: int, path: Path) -> dict[str, object]:
    """Record the steps with torch.profiler, write the trace, and return its figures."""
    # Without it, the profiler's library prints two lines of its own on stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    plan = schedule(wait=skip - 1, warmup=1, active=steps, repeat=1)
    # By default only the calling thread is recorded, and engines work in several threads.
    all_threads = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with profile(activities=activities, schedule=plan, experimental_config=all_threads) as profiler:
        # The last step of the warm-up is warm and not recorded, so it shows the cost of recording.
        unrecorded = _take(work, skip, profiler.step)[-1]
        with spans.recording(_record_with_nvtx if on_gpu else record_function):
            total_before, python_before = _processor_time()
            recorded = _take(work, steps - 1, profiler.step) + _take(work, 1)
            total, python = _processor_time()
            profiler.step()
    trace = _export(profiler)
    write_text(path, json.dumps(trace))
    processor = ProcessorTime(cpu_count() or 1, total - total_before, python - python_before)
    return {
        "seconds_a_step": sum(recorded) / steps,
        "seconds_a_step_unrecorded": unrecorded,
        **summarize(read_events(trace), processor),
        "trace": str(path),
    }


def _export(profiler: profile) -> dict[str, object]:
    """Return the recorded trace without the name of the host."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in trace.items() if key not in ("host_name", "traceName")}


def _marked(work: Iterator[None], skip: int, steps: int) -> dict[str, object]:
    """Mark the steps for Nsight, which runs this process: the CUDA profiler's range, with NVTX ranges in it."""
    _take(work, skip)
    with spans.recording(torch.cuda.nvtx.range), ExitStack() as stack:
        torch.cuda.profiler.start()
        stack.callback(torch.cuda.profiler.stop)
        seconds = _take(work, steps, torch.cuda.synchronize)
    return {"seconds_a_step": sum(seconds) / steps}


@contextmanager
def _record_with_nvtx(name: str) -> Iterator[None]:
    """Open a range in the trace, and the same range for tools that read NVTX."""
    with record_function(name), torch.cuda.nvtx.range(name):
        yield


def _processor_time() -> tuple[float, float]:
    """Return the processor seconds so far of the whole process, and of its Python threads."""
    total = time.process_time()
    if sys.platform != "linux":
        # Other systems number their threads differently, so Python's threads cannot be told from the others.
        return total, total
    python_ids = {thread.native_id for thread in threading.enumerate()}
    threads = [thread for thread in psutil.Process().threads() if thread.id in python_ids]
    return total, sum(thread.user_time + thread.system_time for thread in threads)
