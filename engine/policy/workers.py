"""Generation by several workers: blocks of candidates go to Ray actors, and come back in the order of their indices.
Measurements of the weights, the probes and audits of a run, go to the same actors.

A block (`generate.BLOCK` candidates) depends only on its index and the weights, and every worker solves it with one
thread, in the same tiles. So the output is the same to the byte for any number of workers, for any order of the blocks,
and after any number of deaths: the block of a dead worker goes to the next free one.

New weights are sent once, through the object store, as the files of a checkpoint (`Workers.load`). A worker gets work
only after it has loaded them and proved it (`worker.py`). `cluster.py` starts Ray or joins a cluster.

Ray starts, places and ends the actors. Which worker gets the next piece, and what follows a death, is decided here and
not by Ray's `max_restarts` and `max_task_retries`: an actor that Ray restarts holds no weights and has proved none, Ray
does not tell the driver of the restart, and it counts per actor, not per piece of work.
"""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from sector.engine.config import VllmConfig
from sector.engine.models.checkpoint import Model, checkpoint_files, task_and_layout
from sector.engine.outside import Origin, origins
from sector.engine.policy.cluster import check_cores, import_ray, open_cluster
from sector.engine.policy.deaths import Deaths
from sector.engine.policy.generate import Assignment, generate
from sector.engine.policy.improve import Improved
from sector.engine.policy.worker import Job, MakePart, Proof, Worker, blocks_of_a_call, prove
from sector.engine.samplers.protocol import Sampler

# Ray has no types: a handle of an actor, and a reference to a result.
Actor = Any
Reference = object

T = TypeVar("T")


class Workers:
    """Workers on this machine, or on the cluster that RAY_ADDRESS names.

    The workers start when the first weights are sent. Used as a context manager, it ends them.

    proofs: proofs of the current workers, by index of the worker.
    """

    def __init__(self, count: int, engine: str, vllm: VllmConfig | None = None) -> None:
        self._ray = import_ray()
        self._count, self._engine, self._vllm = count, engine, vllm or VllmConfig()
        self._actors: list[Actor] = []
        self._weights: tuple[Reference, Sequence[Origin]] = (None, ())
        self._expected: Proof | None = None
        self.proofs: dict[int, Proof] = {}

    @property
    def count(self) -> int:
        """Count of the workers."""
        return self._count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
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
        starts, done = deque(assignment.starts(blocks_of_a_call(assignment))), {}
        for start, block in self._run(deque(starts), lambda worker, start: worker.solve.remote(start, assignment)):
            done[start] = block
            while starts and starts[0] in done:
                start = starts.popleft()
                block = done.pop(start)
                yield torch.arange(start, start + len(block.problems)), block

    def make_parts(
        self, starts: Iterable[int], assignment: Assignment, make_part: MakePart[T]
    ) -> Iterator[tuple[int, T]]:
        """Yield (first candidate, result) of each part, in the order in which the workers finish.

        Raise WorkersDied if too many workers die.

        starts: first candidates of the parts.
        make_part: function of a module that is installed everywhere. The workers call it.
        """
        # Sent once, not with each part.
        work = self._ray.put(assignment), self._ray.put(make_part)
        return self._run(deque(starts), lambda worker, start: worker.make.remote(start, *work))

    def measure(self, jobs: Sequence[Job[T]]) -> list[T]:
        """Call each function with an engine, and return the results in order. Raise WorkersDied if too many die."""
        done = dict(self._run(deque(range(len(jobs))), lambda worker, index: worker.measure.remote(jobs[index])))
        return [done[index] for index in range(len(jobs))]

    def _run(
        self, starts: deque[int], send: Callable[[Actor, int], Reference] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Send work to free workers, and yield each result as it comes; a worker without the weights loads them first.

        The last result ends it: no worker that still loads is waited for.

        starts: numbers of the pieces of work, of most their first candidates.
        send: function that sends a worker a piece of work, and returns Ray's reference of the result; None if the
            workers are to load the weights and do nothing else.
        """
        busy: dict[Reference, tuple[int, int | None]] = {}
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

    def _finished(self, references: list[Reference]) -> list[Reference]:
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
        """Start Ray, if the cluster does not run yet, and the workers.

        num_bytes: size of the weights.
        """
        open_cluster(self._ray, self._count, num_bytes)
        self._actors = [self._start_actor() for _ in range(self._count)]

    def _start_actor(self) -> Actor:
        """Return an actor with one CPU and an equal share of the cluster's GPUs, at most one GPU."""
        gpus = self._ray.cluster_resources().get("GPU", 0.0)
        share = min(1.0, gpus / self._count)
        return self._ray.remote(num_cpus=1, num_gpus=share, max_restarts=0)(Worker).remote(self._engine, self._vllm)


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
