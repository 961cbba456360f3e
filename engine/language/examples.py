"""Training examples: problems with their answers and first simplifications."""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sector.engine.language.rows import Record


@dataclass(frozen=True, slots=True)
class Examples(Record):
    """Problems with the two completions to distill: the answer (fast) and the first simplification (slow).

    problems: batch of B problems of N digits (`layout.Batch`).
    answers: `[B, W]` digits, most significant first.
    rest: the remaining problems of N-1 digits. They have no digits if N is 1 or nothing was simplified; then there is
        no slow completion to learn.
    digit: `[B]` digit split off by the simplification.
    """

    problems: Any
    answers: Tensor
    rest: Any
    digit: Tensor

    def __len__(self) -> int:
        return len(self.problems)

    @property
    def digits(self) -> int:
        """N, the digits of a problem."""
        return int(self.problems.digits)

    @property
    def task(self) -> str:
        """Name of the task."""
        return str(self.problems.task)

    def with_zeros(self, count: int) -> "Examples":
        """Return the same examples with `count` zeros in front of all numbers: examples of N + `count` digits.

        Examples without simplifications stay so. Only problems in columns (`Task.columns`) can be written so.
        """
        rest = self.rest if self.rest.is_nothing else self.rest.with_zeros(count)
        return Examples(self.problems.with_zeros(count), F.pad(self.answers, (count, 0)), rest, self.digit)

    def answers_only(self) -> "Examples":
        """Return the same problems and answers without simplifications."""
        return Examples(self.problems, self.answers, self.problems.without_digits(), self.answers[:, -1])
