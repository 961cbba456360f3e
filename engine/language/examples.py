"""Training examples: problems with their answers and first simplifications."""

from dataclasses import dataclass
from typing import Generic

import torch.nn.functional as F
from torch import Tensor

from sector.engine.language.layout import B
from sector.engine.language.operands import Problems
from sector.engine.language.rows import RowRecord


@dataclass(frozen=True, slots=True)
class Examples(RowRecord, Generic[B]):
    """Problems with the two completions to distill: the answer (fast) and the first simplification (slow).

    problems: batch of B problems of N digits (`layout.Batch`).
    answers: `[B, W]` digits, most significant first.
    rest: the remaining problems of N-1 digits. They have no digits if N is 1 or nothing was simplified; then there is
        no slow completion to learn.
    digit: `[B]` digit split off by the simplification.
    """

    problems: B
    answers: Tensor
    rest: B
    digit: Tensor

    def __len__(self) -> int:
        return len(self.problems)

    @property
    def digits(self) -> int:
        """N, the digits of a problem."""
        return self.problems.digits

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.problems.task

    def answers_only(self) -> "Examples[B]":
        """Return the same problems and answers without simplifications."""
        return Examples(self.problems, self.answers, self.problems.without_digits(), self.answers[:, -1])


def with_zeros(examples: Examples[Problems], count: int) -> Examples[Problems]:
    """Return the same examples with `count` zeros in front of all numbers: examples of N + `count` digits.

    Examples without simplifications stay so.
    """
    rest = examples.rest if examples.rest.is_nothing else examples.rest.with_zeros(count)
    return Examples(examples.problems.with_zeros(count), F.pad(examples.answers, (count, 0)), rest, examples.digit)
