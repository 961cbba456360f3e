"""Generation by several workers: blocks of candidates go to Ray actors, and come back in the order of their indices.
Measurements of the weights, the probes and audits of a run, go to the same actors.

A block (`generate.BLOCK` candidates) depends only on its index and the weights, and every worker solves it with one
thread, in the same tiles. So the output is the same to the byte for any number of workers, for any order of the blocks,
and after any number of deaths: the block of a dead worker goes to the next free one.

The model is sent once through the object store, as the files of a checkpoint. A worker gets a block only after a proof
of its weights: their digest as its engine holds them, and its outputs for fixed problems, which must equal the outputs
of the driver's engine.

Ray starts, places and ends the actors. Which worker gets the next piece, and what follows a death, is decided here and
not by Ray's `max_restarts` and `max_task_retries`: an actor that Ray restarts holds no weights and has proved none, Ray
does not tell the driver of the restart, and it counts per actor, not per piece of work.
"""

import hashlib
import os
import signal
import socket
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from sector.engine.config import VllmConfig
from sector.engine.errors import InputError, WorkersDied, first_line
from sector.engine.language.layout import Layout
from sector.engine.models.checkpoint import Model, checkpoint_files, model_of_files, task_and_layout
from sector.engine.outside import Origin, load_origins, origins
from sector.engine.policy.generate import Assignment, generate, generate_blocks
from sector.engine.policy.improve import Improved, answer_fast, simplify
from sector.engine.samplers import make_sampler
from sector.engine.samplers.protocol import Sampler, Sampling
from sector.engine.seeding import generator
from sector.engine.tasks.task import Task
from sector.engine.threads import num_cores

# Set before Ray is imported: Ray reports no usage, collects no metrics, and leaves CUDA_VISIBLE_DEVICES alone.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Deaths of workers on one piece of work, or in a row, that are not yet taken for a fault of the work or of the setup.
MAX_DEATHS = 5
_PROOF_ROWS, _PROOF_DIGITS = 16, 6
_LEAST_STORE_BYTES = 1 << 28
# How either side of HTTP/2 begins: the preface, for the caller, and settings, of which these are none.
_HTTP2_SETTINGS = b"\x04"
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _HTTP2_SETTINGS + bytes(5)
_ANSWER_SECONDS = 10.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Proof:
    """Proof that a worker holds the right weights.

    pid: process id of the worker.
    weights_sha256: digest of the weights as its engine holds them.
    said: digest of its greedy answers and simplifications of fixed problems.
    """

    pid: int
    weights_sha256: str
    said: str


class Worker:
    """A Ray actor: one engine in its own process."""

    def __init__(self, engine: str, vllm: VllmConfig) -> None:
        self._engine, self._vllm = engine, vllm
        self._sampler: Sampler | None = None

    def load(self, files: Mapping[str, bytes], code: Sequence[Origin] = ()) -> Proof:
        """Load a model and prove its weights.

        files: the files of its checkpoint by name.
        code: code of users that the driver has loaded.
        """
        load_origins(code)
        model = model_of_files(files)
        if self._sampler is None:
            self._sampler = make_sampler(self._engine, model, self._vllm, num_threads=1)
        else:
            self._sampler.load(model)
        return prove(self._sampler, *task_and_layout(model))

    def solve(self, start: int, assignment: Assignment) -> Improved:
        """Solve the blocks from a candidate on; see `generate.generate_blocks`."""
        assert self._sampler is not None, "weights are loaded before the first block"
        return generate_blocks(self._sampler, start, assignment, _blocks_of_a_call(assignment))[1]

    def make(self, start: int, assignment: Assignment, make_part: "MakePart[T]") -> T:
        """Make the part that begins with a candidate, and return the result, which is small."""
        assert self._sampler is not None, "weights are loaded before the first part"
        return make_part(self._sampler, assignment, start)

    def measure(self, job: "Job[T]") -> T:
        """Call a function with the engine, and return its result, which is small."""
        assert self._sampler is not None, "weights are loaded before the first job"
        return job(self._sampler)


def prove(sampler: Sampler, task: Task, layout: Layout) -> Proof:
    """Return the proof of an engine: the digests of its weights and of its outputs for fixed problems."""
    problems = task.draw(_PROOF_DIGITS, _PROOF_ROWS, generator(0, "proof"), hard_share=0.5)
    sampling = Sampling(0.0, 0, torch.arange(_PROOF_ROWS), stage=0)
    answers, parsed, _ = answer_fast(sampler, problems, layout, sampling)
    steps, _ = simplify(sampler, problems, layout, sampling)
    # Rows that did not parse hold no values that could be compared.
    outputs = [parsed, answers[parsed], steps.valid, steps.digit[steps.valid]]
    digest = hashlib.sha256(b"".join(output.to(torch.int64).numpy().tobytes() for output in outputs))
    digest.update("\n".join(steps.rest[steps.valid].texts()).encode())
    return Proof(os.getpid(), sampler.weights_sha256, digest.hexdigest())


class Deaths:
    """Deaths of workers on some work, which end it if they go on.

    in_a_row: deaths since a worker last finished something. A machine may take all its workers along, so that as many
        deaths as there are workers prove nothing.
    """

    def __init__(self, count: int) -> None:
        """Prepare for a count of workers."""
        self.in_a_row = 0
        self._limit = max(MAX_DEATHS, count)
        self._by_start = Counter[int | None]()

    def add(self, start: int | None, error: Exception) -> None:
        """Count the death of a worker. Raise WorkersDied if too many died in a row, or on one piece of work.

        start: number of its piece of work, of most the first candidate; None if it was loading weights.
        """
        self.in_a_row += 1
        if self.in_a_row > self._limit:
            raise WorkersDied(f"{self.in_a_row} workers died in a row; the last: {first_line(error)}") from error
        if start is None:
            return
        self._by_start[start] += 1
        if self._by_start[start] > MAX_DEATHS:
            raise WorkersDied(
                f"{self._by_start[start]} workers died at one piece of work ({start}); the last: {first_line(error)}"
            ) from error


class Workers:
    """Workers on this machine, or on the cluster that RAY_ADDRESS names.

    The workers start when the first weights are sent. Used as a context manager, it ends them.

    proofs: proofs of the current workers, by index of the worker.
    """

    def __init__(self, count: int, engine: str, vllm: VllmConfig | None = None) -> None:
        self._ray = _import_ray()
        self._count, self._engine, self._vllm = count, engine, vllm or VllmConfig()
        self._actors: list[Any] = []
        self._weights: tuple[Any, ...] = ()
        self._expected: Proof | None = None
        self.proofs: dict[int, Proof] = {}

    @property
    def count(self) -> int:
        """Count of the workers."""
        return self._count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._actors:
            self._ray.shutdown()
            self._actors = []

    def load(self, model: Model, sampler: Sampler) -> None:
        """Send the model's weights to every worker and check the proofs. Do nothing if the workers have the weights.

        Raise RuntimeError if a proof fails, WorkersDied if too many workers die.

        sampler: the driver's engine, which holds the same weights.
        """
        expected = prove(sampler, *task_and_layout(model))
        if expected == self._expected:
            return
        files = checkpoint_files(model)
        if not self._actors:
            self._start(sum(map(len, files.values())))
        self._weights = (self._ray.put(files), origins())
        self._expected, self.proofs = expected, {}
        for _ in self._run(deque()):
            pass

    def generate(self, assignment: Assignment) -> Iterator[tuple[Tensor, Improved]]:
        """Yield the same as `generate.generate`, with the weights last loaded. Raise WorkersDied if too many die."""
        starts, done = deque(assignment.starts(_blocks_of_a_call(assignment))), {}
        for start, block in self._run(deque(starts), lambda worker, start: worker.solve.remote(start, assignment)):
            done[start] = block
            while starts and starts[0] in done:
                start = starts.popleft()
                block = done.pop(start)
                yield torch.arange(start, start + len(block.problems)), block

    def make_parts(
        self, starts: Iterable[int], assignment: Assignment, make_part: "MakePart[T]"
    ) -> Iterator[tuple[int, T]]:
        """Yield (first candidate, result) of each part, in the order in which the workers finish.

        Raise WorkersDied if too many workers die.

        starts: first candidates of the parts.
        make_part: function of a module that is installed everywhere. The workers call it.
        """
        # Sent once, not with each part.
        work = self._ray.put(assignment), self._ray.put(make_part)
        return self._run(deque(starts), lambda worker, start: worker.make.remote(start, *work))

    def measure(self, jobs: "Sequence[Job[T]]") -> list[T]:
        """Call each function with an engine, and return the results in order. Raise WorkersDied if too many die."""
        done = dict(self._run(deque(range(len(jobs))), lambda worker, index: worker.measure.remote(jobs[index])))
        return [done[index] for index in range(len(jobs))]

    def _run(self, starts: deque[int], send: Callable[[Any, int], Any] | None = None) -> Iterator[tuple[int, Any]]:
        """Send work to free workers, and yield each result as it comes; a worker without the weights loads them first.

        The last result ends it: no worker that still loads is waited for.

        starts: numbers of the pieces of work, of most their first candidates.
        send: function that sends a worker a piece of work, and returns Ray's reference of the result; None if the
            workers are to load the weights and do nothing else.
        """
        busy: dict[Any, tuple[int, int | None]] = {}
        left = len(starts)

        def send_work(index: int) -> None:
            worker = self._actors[index]
            if index not in self.proofs:
                busy[worker.load.remote(*self._weights)] = (index, None)
            elif send and starts:
                start = starts.popleft()
                busy[send(worker, start)] = (index, start)

        for index in range(self._count):
            send_work(index)
        deaths = Deaths(self._count)
        while busy and (left or send is None):
            for ready in self._finished(list(busy)):
                index, start = busy.pop(ready)
                try:
                    result = self._ray.get(ready)
                except self._ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except self._ray.exceptions.RayError as error:
                    deaths.add(start, error)
                    if start is not None:
                        starts.appendleft(start)
                    self._replace(index)
                else:
                    deaths.in_a_row = 0
                    if start is None:
                        self._admit(index, result)
                    else:
                        left -= 1
                        yield start, result
                send_work(index)

    def _finished(self, references: list[Any]) -> list[Any]:
        """Wait until work is finished, and return the references of all work that is."""
        finished, others = self._ray.wait(references, num_returns=1)
        more, _ = self._ray.wait(others, num_returns=len(others), timeout=0) if others else ([], [])
        return [*finished, *more]

    def _admit(self, index: int, proof: Proof) -> None:
        """Record the proof of a worker. Raise RuntimeError if it differs from the driver's."""
        expected = self._expected
        assert expected is not None, "the driver's proof is made before weights are sent"
        if proof.weights_sha256 != expected.weights_sha256:
            difference = "holds other weights"
        elif proof.said != expected.said:
            difference = "answers otherwise"
        else:
            self.proofs[index] = proof
            return
        raise RuntimeError(f"worker {index} {difference} than the driver; install one version of sector everywhere")

    def _replace(self, index: int) -> None:
        """Start a new worker in the place of one that died or cannot be reached."""
        self._ray.kill(self._actors[index])
        self._actors[index] = self._start_actor()
        self.proofs.pop(index, None)

    def _start(self, num_bytes: int) -> None:
        """Join the cluster that RAY_ADDRESS names, or start one on this machine; then start the workers.

        num_bytes: size of the weights.
        """
        # Ray installs a handler for SIGTERM; the previous one is put back.
        handler = signal.getsignal(signal.SIGTERM)
        if address := os.environ.get("RAY_ADDRESS"):
            self._join(address)
        else:
            self._ray.init(
                address="local",
                num_cpus=self._count,
                object_store_memory=max(_LEAST_STORE_BYTES, 4 * num_bytes),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
            )
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
        self._actors = [self._start_actor() for _ in range(self._count)]

    def _join(self, address: str) -> None:
        """Join the cluster at an address. Raise InputError if none answers, or if it has too few CPUs."""
        try:
            _check_answers(address)
            self._ray.init(address=address, log_to_driver=False, logging_level="error")
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"no Ray cluster answers at RAY_ADDRESS={address} ({first_line(error)})") from error
        cpus = int(self._ray.cluster_resources().get("CPU", 0))
        if cpus < self._count:
            self._ray.shutdown()
            raise InputError(
                f"the cluster at RAY_ADDRESS={address} has {cpus} CPUs, too few for --workers {self._count}"
            )

    def _start_actor(self) -> Any:
        """Return an actor with one CPU and an equal share of the cluster's GPUs, at most one GPU."""
        gpus = self._ray.cluster_resources().get("GPU", 0.0)
        share = min(1.0, gpus / self._count)
        return self._ray.remote(num_cpus=1, num_gpus=share, max_restarts=0)(Worker).remote(self._engine, self._vllm)


def _blocks_of_a_call(assignment: Assignment) -> int:
    """Return the blocks that a worker solves together: one, so that all have work, unless the settings say more."""
    return assignment.blocks or 1


# Arguments: engine, assignment, first candidate of the part.
MakePart = Callable[[Sampler, Assignment, int], T]
# A measurement of the weights that an engine holds: a function of a module that is installed everywhere.
Job = Callable[[Sampler], T]


class Measure(Protocol):
    """Function that calls jobs with an engine that holds the weights in question, and returns the results in order."""

    def __call__(self, jobs: Sequence[Job[T]]) -> list[T]: ...


# `generate.generate` with its engine bound.
Generate = Callable[[Assignment], Iterator[tuple[Tensor, Improved]]]


@contextmanager
def start_workers(count: int | None, engine: str, vllm: VllmConfig | None = None) -> Iterator[Workers | None]:
    """Yield `count` workers for the time of a `with`; None if `count` is None. Raise InputError without Ray."""
    if count is None:
        yield None
        return
    check_cores(count)
    # Ray prints a line about each worker that dies, and stdout is for data.
    with redirect_stdout(sys.stderr), Workers(count, engine, vllm) as workers:
        yield workers


def check_cores(count: int) -> None:
    """Raise InputError if this machine has fewer cores than workers; a cluster is checked when it is joined."""
    cores = num_cores()
    if count > cores and not os.environ.get("RAY_ADDRESS"):
        raise InputError(
            f"--workers {count}, but this machine has {cores} cores to give; ask for {cores} at most, or name a Ray "
            "cluster in RAY_ADDRESS"
        )


def _check_answers(address: str) -> None:
    """Raise OSError or ValueError unless HOST:PORT answers in HTTP/2, as Ray does. Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    # Under TLS the first word is another one, and addresses of other forms are Ray's to read.
    if not colon or "://" in host or os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS) as connection:
        connection.sendall(_HTTP2_HELLO)
        if connection.recv(4)[3:] != _HTTP2_SETTINGS:
            raise OSError("what listens there is no Ray")


def with_weights(workers: Workers | None, model: Model, sampler: Sampler) -> Generate:
    """Return the function that generates with a model: on the workers, which get its weights first, or in this process.

    sampler: the engine of this process, which holds the model.
    """
    if workers is None:
        return partial(generate, sampler)
    workers.load(model, sampler)
    return workers.generate


def make_parts(
    workers: Workers | None,
    model: Model,
    sampler: Sampler,
    starts: Iterable[int],
    assignment: Assignment,
    make_part: MakePart[T],
) -> Iterator[tuple[int, T]]:
    """Yield (first candidate, result) of each part: as `Workers.make_parts`, or made in this process, in order."""
    if workers is None:
        return ((start, make_part(sampler, assignment, start)) for start in starts)
    workers.load(model, sampler)
    return workers.make_parts(starts, assignment, make_part)


def measure_on(workers: Workers | None, model: Model, sampler: Sampler) -> Measure:
    """Return the function that measures a model: on the workers, which get its weights first, or in this process.

    sampler: the engine of this process, which holds the model.
    """
    if workers is None:
        return lambda jobs: [job(sampler) for job in jobs]
    workers.load(model, sampler)
    return workers.measure


def _import_ray() -> Any:
    """Return the module `ray`. Raise InputError if it is not installed."""
    os.environ |= {name: os.environ.get(name, value) for name, value in _QUIET.items()}
    try:
        import ray
    except ImportError as error:
        raise InputError("several workers need Ray; pip install 'sector-lm[ray]'") from error
    return ray
