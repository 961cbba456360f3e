"""Many engines at one round: blocks of candidates go out to Ray actors, and come back in the order of their indices.

A block (`generate.BLOCK` candidates) depends on its own index and the weights alone, and every worker solves it with
one thread, in the same tiles. So what comes out is the same to the byte for any number of workers, whoever solved a
block, in which order, and however many died over it: a dead worker's block goes to the next one that is free.

Weights go out once through the object store, as safetensors and JSON; a worker takes a block only after it has proved
them: by their digest as it holds them, and by what they say to fixed problems, which must be what the driver's own
engine says.
"""

import hashlib
import json
import os
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import safetensors.torch
import torch
from torch import Tensor

from sector.engine.config import VllmConfig
from sector.engine.errors import InputError, WorkersDied, first_line
from sector.engine.language.layout import Layout
from sector.engine.models.checkpoint import Model, weights_bytes
from sector.engine.models.sector import SectorConfig, SectorForCausalLM, best_device
from sector.engine.models.text import TextModel
from sector.engine.policy.generate import Assignment, generate, generate_block
from sector.engine.policy.improve import Improved, answer_fast, simplify
from sector.engine.samplers import make_sampler
from sector.engine.samplers.protocol import Sampler, Sampling
from sector.engine.seeding import generator
from sector.engine.tasks import find_task
from sector.engine.tasks.task import Task
from sector.engine.threads import num_cores

# Set before Ray is imported: nothing is sent anywhere, and nothing is measured that nobody asked for.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Workers that may die in one batch before it is given up.
MAX_DEATHS = 5
_PROOF_ROWS, _PROOF_DIGITS = 16, 6
_LEAST_STORE_BYTES = 1 << 28
# How either side of HTTP/2 begins: the preface, for the caller, and settings, of which these are none.
_HTTP2_SETTINGS = b"\x04"
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _HTTP2_SETTINGS + bytes(5)
_ANSWER_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Proof:
    """What a worker shows before it is given work.

    pid: its process. weights_sha256: of the weights as its engine holds them. said: digest of its greedy answers and
    simplifications of fixed problems.
    """

    pid: int
    weights_sha256: str
    said: str


class Worker:
    """One engine in a process of its own; an actor of Ray."""

    def __init__(self, engine: str, vllm: VllmConfig) -> None:
        self._engine, self._vllm = engine, vllm
        self._sampler: Sampler | None = None

    def load(self, weights: bytes, config: str) -> Proof:
        """Take weights (the bytes of a model.safetensors) of a model with that config (JSON), and prove them."""
        model = SectorForCausalLM(SectorConfig(**json.loads(config)))
        model.load_state_dict(safetensors.torch.load(weights))
        model.to(best_device()).eval()  # type: ignore[arg-type]
        if self._sampler is None:
            self._sampler = make_sampler(self._engine, model, self._vllm, num_threads=1)
        else:
            self._sampler.load(model)
        task = find_task(model.config.task)
        return prove(self._sampler, task, task.layout(model.config.digit_order))

    def solve(self, start: int, assignment: Assignment) -> Improved:
        """The block that starts at a candidate; see `generate.generate_block`."""
        assert self._sampler is not None, "weights come before work"
        return generate_block(self._sampler, start, assignment)[1]


def prove(sampler: Sampler, task: Task, layout: Layout) -> Proof:
    """What an engine with these weights says to fixed problems."""
    problems = task.draw(_PROOF_DIGITS, _PROOF_ROWS, generator(0, "proof"), hard_share=0.5)
    sampling = Sampling(0.0, 0, torch.arange(_PROOF_ROWS), stage=0)
    answers, parsed, _ = answer_fast(sampler, problems, layout, sampling)
    steps, _ = simplify(sampler, problems, layout, sampling)
    # What did not parse holds nothing that could be compared.
    said = [parsed, answers[parsed], steps.valid, steps.digit[steps.valid]]
    digest = hashlib.sha256(b"".join(part.to(torch.int64).numpy().tobytes() for part in said))
    digest.update("\n".join(steps.rest[steps.valid].texts()).encode())
    return Proof(os.getpid(), sampler.weights_sha256, digest.hexdigest())


class Workers:
    """N workers here, or on the cluster that RAY_ADDRESS names; they start when the first weights go out.

    Use as a context manager: they end with it. proofs: what the workers at hand have shown, by their place.
    """

    def __init__(self, count: int, engine: str, vllm: VllmConfig | None = None) -> None:
        self._ray = _import_ray()
        self._count, self._engine, self._vllm = count, engine, vllm or VllmConfig()
        self._crew: list[Any] = []
        self._weights: tuple[Any, ...] = ()
        self._expected: Proof | None = None
        self.proofs: dict[int, Proof] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._crew:
            self._ray.shutdown()
            self._crew = []

    def load(self, model: SectorForCausalLM, sampler: Sampler) -> None:
        """Send the model's weights to every worker and see them proved; `sampler` holds them here.

        Does nothing if the workers have them. RuntimeError if a worker's proof fails, WorkersDied if they all do.
        """
        task = find_task(model.config.task)
        expected = prove(sampler, task, task.layout(model.config.digit_order))
        if expected == self._expected:
            return
        weights = weights_bytes(model)
        if not self._crew:
            self._start(len(weights))
        self._weights = (self._ray.put(weights), model.config.to_json_string())
        self._expected, self.proofs = expected, {}
        for _ in self._run(deque(), None):
            pass

    def generate(self, assignment: Assignment) -> Iterator[tuple[Tensor, Improved]]:
        """What `generate.generate` yields, by the weights last loaded. WorkersDied if too many die."""
        yielded, done = deque(assignment.starts), {}
        for start, block in self._run(deque(yielded), assignment):
            done[start] = block
            while yielded and yielded[0] in done:
                start = yielded.popleft()
                block = done.pop(start)
                yield torch.arange(start, start + len(block.problems)), block

    def _run(self, blocks: deque[int], assignment: Assignment | None) -> Iterator[tuple[int, Improved]]:
        """Hand blocks to whoever is free, as they come back; workers that lack the weights load them first."""
        busy: dict[Any, tuple[int, int | None]] = {}

        def employ(place: int) -> None:
            worker = self._crew[place]
            if place not in self.proofs:
                busy[worker.load.remote(*self._weights)] = (place, None)
            elif blocks:
                start = blocks.popleft()
                busy[worker.solve.remote(start, assignment)] = (place, start)

        for place in range(self._count):
            employ(place)
        deaths = 0
        while busy:
            (ready,), _ = self._ray.wait(list(busy), num_returns=1)
            place, start = busy.pop(ready)
            try:
                result = self._ray.get(ready)
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except self._ray.exceptions.RayError as error:
                deaths += 1
                if deaths > MAX_DEATHS:
                    raise WorkersDied(
                        f"{deaths} workers died in one batch, the last of: {first_line(error)}"
                    ) from error
                if start is not None:
                    blocks.appendleft(start)
                self._replace(place)
            else:
                if start is None:
                    self._admit(place, result)
                else:
                    yield start, result
            employ(place)

    def _admit(self, place: int, proof: Proof) -> None:
        """A worker may work if it holds the driver's weights and says with them what the driver's engine says."""
        assert self._expected is not None, "proofs are expected once weights are out"
        if (proof.weights_sha256, proof.said) != (self._expected.weights_sha256, self._expected.said):
            what = (
                "holds other weights" if proof.weights_sha256 != self._expected.weights_sha256 else "answers otherwise"
            )
            raise RuntimeError(f"worker {place} {what} than the driver; are all machines of one version of sector?")
        self.proofs[place] = proof

    def _replace(self, place: int) -> None:
        """A new worker in the place of one that died, or that cannot be reached."""
        self._ray.kill(self._crew[place])
        self._crew[place] = self._hire()
        self.proofs.pop(place, None)

    def _start(self, num_bytes: int) -> None:
        """Join the cluster that RAY_ADDRESS names, or start one here; then the workers."""
        # Ray takes SIGTERM for itself; whoever had it before gets it back.
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
        self._crew = [self._hire() for _ in range(self._count)]

    def _join(self, address: str) -> None:
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

    def _hire(self) -> Any:
        """An actor with one CPU, and its share of the GPUs where there are any: a whole one, if there are enough."""
        gpus = self._ray.cluster_resources().get("GPU", 0.0)
        share = min(1.0, gpus / self._count)
        return self._ray.remote(num_cpus=1, num_gpus=share, max_restarts=0)(Worker).remote(self._engine, self._vllm)


# Takes what `generate.generate` takes behind its engine, and yields what it yields.
Generate = Callable[[Assignment], Iterator[tuple[Tensor, Improved]]]


@contextmanager
def start_workers(count: int | None, engine: str, vllm: VllmConfig | None = None) -> Iterator[Workers | None]:
    """So many workers for the time of a `with`; nobody if `count` is None. InputError if Ray is not installed."""
    if count is None:
        yield None
        return
    check_cores(count)
    # Ray prints what it has to say of workers that died, and stdout is for data.
    with redirect_stdout(sys.stderr), Workers(count, engine, vllm) as workers:
        yield workers


def check_cores(count: int) -> None:
    """InputError if this machine has fewer cores than workers are asked for; a cluster is asked when it is joined."""
    cores = num_cores()
    if count > cores and not os.environ.get("RAY_ADDRESS"):
        raise InputError(
            f"--workers {count}, but this machine has {cores} cores to give; ask for {cores} at most, or name a Ray "
            "cluster in RAY_ADDRESS"
        )


def _check_answers(address: str) -> None:
    """OSError or ValueError unless what is at HOST:PORT speaks HTTP/2, as Ray does: it would itself try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    # Under TLS the first word is another one, and addresses of other forms are Ray's to read.
    if not colon or "://" in host or os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS) as connection:
        connection.sendall(_HTTP2_HELLO)
        if connection.recv(4)[3:] != _HTTP2_SETTINGS:
            raise OSError("what listens there is no Ray")


def with_weights(workers: Workers | None, model: Model, sampler: Sampler) -> Generate:
    """How to generate with a model that `sampler` holds: by the workers, once they have its weights, or here."""
    if workers is None:
        return partial(generate, sampler)
    if isinstance(model, TextModel):
        raise InputError("--workers takes sector's own models only; leave it out for a model of text")
    workers.load(model, sampler)
    return workers.generate


def _import_ray() -> Any:
    os.environ |= {name: os.environ.get(name, value) for name, value in _QUIET.items()}
    try:
        import ray
    except ImportError as error:
        raise InputError("several workers need Ray; pip install 'sector-lm[ray]'") from error
    return ray
