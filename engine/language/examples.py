"""Training examples: problems with the answers and simplifications to be distilled."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Examples:
    """What the trainer learns from: problem -> answer (fast) and problem -> first simplification (slow).

    problems: a batch of B problems of N digits (`task.Batch`).
    answers: `[B, W]` digits, most significant first.
    rest: the remaining problems of N-1 digits; with N = 1, or where nothing was simplified, they have no digits and
        there is nothing slow to learn.
    digit: `[B]` the digit split off by the simplification.
    """

    problems: Any
    answers: Tensor
    rest: Any
    digit: Tensor

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, rows: Tensor | slice) -> "Examples":
        return Examples(self.problems[rows], self.answers[rows], self.rest[rows], self.digit[rows])

    @property
    def digits(self) -> int:
        return int(self.problems.digits)

    def answers_only(self) -> "Examples":
        """The same problems and answers, and no simplifications."""
        return Examples(self.problems, self.answers, self.problems.without_digits(), self.answers[:, -1])

    @staticmethod
    def cat(parts: "Iterable[Examples]") -> "Examples":
        parts = list(parts)
        return Examples(
            type(parts[0].problems).cat(part.problems for part in parts),
            torch.cat([part.answers for part in parts]),
            type(parts[0].rest).cat(part.rest for part in parts),
            torch.cat([part.digit for part in parts]),
        )
