"""Gates of chance: accept candidates at random, as a control, or let a share of the rejected ones pass.

They measure the worth of a gate: how the loop fares with as many labels and no choice among them, and how much a strict
gate may leak. Draws depend on the row alone. Candidates that are unparsable have no answer, so they never pass. In the
shape descriptions B is the batch.
"""

from dataclasses import replace

import torch
from torch import Tensor

from sector.engine.config import Filter
from sector.engine.policy.improve import STAGES, Improved, Verdict
from sector.engine.samplers.protocol import Sampling
from sector.kernels.philox import uniforms

# Random stream of a row: past those of `improve`, and of the two fast answers that choose candidates from a pool.
STAGE = STAGES + 2


def draw_accepted(improved: Improved, settings: Filter, sampling: Sampling, block: int) -> Improved:
    """Return the result with the candidates that the gate of the filter accepts.

    sampling: random streams of the rows, which begin with a whole block.
    block: rows of a block. The gate `random` accepts as many rows of each block as pass vote and checks.
    """
    if settings.gate == "checks" and not settings.leak:
        return improved
    luck = uniforms(sampling.seed, sampling.rows, STAGE, torch.zeros_like(sampling.rows), 4)
    can_pass = improved.verdict != Verdict.UNPARSABLE
    accepted = improved.accepted
    if settings.gate == "random":
        parts = zip(accepted.split(block), can_pass.split(block), luck[:, 0].split(block), strict=True)
        accepted = torch.cat([_as_many(*part) for part in parts])
    return replace(improved, drawn=accepted | can_pass & (luck[:, 1] < settings.leak))


def _as_many(accepted: Tensor, can_pass: Tensor, luck: Tensor) -> Tensor:
    """Return as many rows as are accepted, `[B]` bool: those with the least luck among the rows that can pass."""
    order = luck.masked_fill(~can_pass, 2.0).argsort()
    return torch.zeros_like(accepted).index_fill(0, order[: int(accepted.sum())], True)
