"""A policy with everything that it needs to solve problems."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sector.engine.config import Filter
from sector.engine.language.layout import Batch, Layout, Simplifications
from sector.engine.policy import improve
from sector.engine.samplers.protocol import Sampler, Sampling
from sector.engine.seeding import stream_seed


@dataclass(frozen=True, slots=True)
class Solver:
    """An engine, the layout that its weights were trained on, and the policy that it runs.

    sampler: engine that holds the weights.
    layout: token layout of problems and answers.
    policy: `fast`, `slow` or `improved`.
    settings: vote and checks of the improved policy.
    seed: seed of sampling.

    A solver is greedy; the temperature of `settings` is for generation.
    """

    sampler: Sampler
    layout: Layout
    policy: str
    settings: Filter
    seed: int = 0

    def answer_fast(self, problems: Batch) -> tuple[Tensor, Tensor]:
        """Return the fast answers `[B, W]` and which of them parsed `[B]`."""
        answers, parsed, _ = improve.answer_fast(self.sampler, problems, self.layout, self._sampling(problems))
        return answers, parsed

    def simplify(self, problems: Batch) -> Simplifications:
        """Return one simplification of each problem; N must be at least 2."""
        return improve.simplify(self.sampler, problems, self.layout, self._sampling(problems))[0]

    def improve(self, problems: Batch) -> improve.Improved:
        """Return the improved policy's output."""
        return improve.improve(self.sampler, problems, self.settings, self.layout, self._sampling(problems))

    def _sampling(self, problems: Batch) -> Sampling:
        """Return the random streams of a batch; the row counters start at 0 for each batch."""
        rows = torch.arange(len(problems))
        return Sampling(0.0, stream_seed(self.seed, "solve"), rows, stage=0)
