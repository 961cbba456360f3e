"""A worker: a process with an engine, as a Ray actor, and the proof that it holds the right weights.

A worker gets work only after a proof of its weights: their digest as its engine holds them, and its outputs for fixed
problems, which must equal the outputs of the driver's engine.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from sector.engine.config import VllmConfig
from sector.engine.language.layout import Layout
from sector.engine.models.checkpoint import model_of_files, task_and_layout
from sector.engine.outside import Origin, load_origins
from sector.engine.policy.generate import Assignment, generate_blocks
from sector.engine.policy.improve import Improved, answer_fast, simplify
from sector.engine.samplers import make_sampler
from sector.engine.samplers.protocol import Sampler, Sampling
from sector.engine.seeding import generator
from sector.engine.tasks.task import Task

_PROOF_ROWS, _PROOF_DIGITS = 16, 6

T = TypeVar("T")

# Arguments: engine, assignment, first candidate of the part.
MakePart = Callable[[Sampler, Assignment, int], T]
# A measurement of the weights that an engine holds: a function of a module that is installed everywhere.
Job = Callable[[Sampler], T]


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
        """Solve the blocks that begin at candidate `start`; see `generate.generate_blocks`."""
        assert self._sampler is not None, "weights are loaded before the first block"
        return generate_blocks(self._sampler, start, assignment, blocks_of_a_call(assignment))[1]

    def make(self, start: int, assignment: Assignment, make_part: MakePart[T]) -> T:
        """Make the part that begins with a candidate, and return the result, which is small."""
        assert self._sampler is not None, "weights are loaded before the first part"
        return make_part(self._sampler, assignment, start)

    def measure(self, job: Job[T]) -> T:
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


def blocks_of_a_call(assignment: Assignment) -> int:
    """Return the blocks that a worker solves together: one, so that all have work, unless the settings say more."""
    return assignment.blocks or 1
