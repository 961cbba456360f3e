"""Profile the two halves of a round, step by step: what runs, for how long, and what waits.

A step of `generate` is one batch of candidates through the improved policy; a step of `distill` is a training step.
Some steps warm up, the next ones are recorded by torch.profiler, and the trace is read by `trace.py`. For Nsight, which
cannot share the GPU's counters with torch.profiler, the same steps are only marked.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from sector.benchmarks.machine import describe
from sector.benchmarks.trace import ProcessorTime, read_events, summarize
from sector.engine import spans
from sector.engine.config import Filter
from sector.engine.errors import InputError
from sector.engine.files import check_writable, write_text
from sector.engine.policy.generate import Assignment, generate
from sector.engine.run.steps import OnProgress, check_digits, open_engine, open_training
from sector.engine.samplers.protocol import Sampler
from sector.engine.seeding import stream_seed
from sector.engine.spans import span
from sector.engine.training.distill import start_training, train_cycle


def profile_generate(
    model: Path,
    out: Path,
    digits: int,
    count: int,
    *,
    skip: int,
    steps: int,
    engine: str,
    settings: Filter,
    hard_share: float,
    seed: int,
    nsight: bool,
    on_progress: OnProgress,
    given: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Profile steps of `count` candidates each; returns the figures. With `nsight` it only marks them.

    given: as in `open_engine`.
    """
    check_digits(digits)
    sampler, task, layout = open_engine(model, engine, given)
    work = _generate_steps(sampler, Assignment(task, layout, digits, count, settings, seed, hard_share))
    return _profile(work, out, "generate", skip, steps, nsight, on_progress)


def profile_distill(
    model: Path,
    data: Sequence[Path],
    replay: Sequence[Path],
    out: Path,
    *,
    skip: int,
    steps: int,
    seed: int,
    nsight: bool,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Profile training steps on such files as `distill_files` takes; returns the figures. No weights are written."""
    training = open_training(model, data, replay, seed)
    state = start_training(training.weights, training.trainer)
    work = train_cycle(state, training.batches, training.trainer, skip + steps, training.seed)
    return _profile(work, out, "distill", skip, steps, nsight, on_progress)


def nsight_commands(kernel: str, command: Sequence[str], out: Path) -> dict[str, str]:
    """Lines for a shell that look closer: `nsys` at the steps as a whole, `ncu` at the kernel named.

    `command` must mark its steps: recording begins and ends with the CUDA profiler's range.
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
    """The bare name of a kernel, as `ncu` matches it: no result type, namespace, template or parameters."""
    text = kernel.replace("(anonymous namespace)", "")
    while (shorter := re.sub(r"<[^<>]*>", "", text)) != text:
        text = shorter
    return text.partition("(")[0].split()[-1].rpartition("::")[2]


def _generate_steps(sampler: Sampler, assignment: Assignment) -> Iterator[None]:
    """Without end: a step tries candidates of its own, as many as assigned."""
    step = 0
    while True:
        with span("generate step"):
            for _ in generate(sampler, replace(assignment, seed=stream_seed(assignment.seed, "profile", step))):
                pass
        step += 1
        yield


def _profile(
    work: Iterator[object], out: Path, name: str, skip: int, steps: int, nsight: bool, on_progress: OnProgress
) -> dict[str, Any]:
    """Run the steps recorded, or only marked; the figures with what they were measured on."""
    if nsight and not torch.cuda.is_available():
        raise InputError("--nsight marks steps for a profiler of GPUs, and torch sees no GPU here; leave it out")
    path = out / f"{name}-trace.json"
    check_writable(path)
    watched = _watched(work, skip + steps, on_progress)
    figures = _marked(watched, skip, steps) if nsight else _recorded(watched, skip, steps, path)
    return {"steps": steps, **figures, **describe()}


def _watched(work: Iterator[object], total: int, on_progress: OnProgress) -> Iterator[None]:
    for done, _ in enumerate(work, start=1):
        on_progress(done, total, f"step {done}/{total}")
        yield


def _take(work: Iterator[None], count: int, after: Callable[[], object] = lambda: None) -> list[float]:
    """Take steps, and call `after` behind each; the seconds that each took."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        next(work)
        seconds.append(time.perf_counter() - start)
        after()
    return seconds


def _recorded(work: Iterator[None], skip: int, steps: int, path: Path) -> dict[str, Any]:
    """Record with torch.profiler, write the trace, and read it."""
    # Else its library prints two lines of its own on stderr, whatever happens.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    plan = schedule(wait=skip - 1, warmup=1, active=steps, repeat=1)
    # By default only the calling thread is recorded, and engines work in threads of their own.
    every_thread = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with profile(activities=activities, schedule=plan, experimental_config=every_thread) as profiler:
        # The last of them is warm, and nothing is recorded in it.
        plain = _take(work, skip, profiler.step)[-1]
        with spans.recording(_record_with_nvtx if torch.cuda.is_available() else record_function):
            before = _processor_time()
            recorded = _take(work, steps - 1, profiler.step) + _take(work, 1)
            used = [now - then for now, then in zip(_processor_time(), before, strict=True)]
            profiler.step()
    trace = _export(profiler)
    write_text(path, json.dumps(trace))
    return {
        "seconds_a_step": sum(recorded) / steps,
        "seconds_a_step_unrecorded": plain,
        **summarize(read_events(trace), ProcessorTime(os.cpu_count() or 1, *used)),
        "trace": str(path),
    }


def _export(profiler: profile) -> dict[str, Any]:
    """The trace that was recorded, without the name of the host."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in trace.items() if key not in ("host_name", "traceName")}


def _marked(work: Iterator[None], skip: int, steps: int) -> dict[str, Any]:
    """Have Nsight record, under which this process runs: the CUDA profiler's range, with NVTX ranges in it."""
    _take(work, skip)
    with spans.recording(torch.cuda.nvtx.range), ExitStack() as stack:
        torch.cuda.profiler.start()
        stack.callback(torch.cuda.profiler.stop)
        seconds = _take(work, steps, torch.cuda.synchronize)
    return {"seconds_a_step": sum(seconds) / steps}


@contextmanager
def _record_with_nvtx(name: str) -> Iterator[None]:
    """A range in the trace, and for what listens to NVTX beside it."""
    with record_function(name), torch.cuda.nvtx.range(name):
        yield


def _processor_time() -> tuple[float, float]:
    """Processor seconds so far of the whole process, and of its Python threads."""
    total = time.process_time()
    if sys.platform != "linux":
        # Nothing tells the threads apart.
        return total, total
    # User and system time are the 14th and 15th field; the name before them may hold blanks.
    stats = [Path(f"/proc/self/task/{thread.native_id}/stat") for thread in threading.enumerate()]
    fields = [stat.read_text().rpartition(")")[2].split() for stat in stats if stat.exists()]
    return total, sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")
