"""Training examples: problems with the answers and simplifications to be distilled."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sector.engine.problem import Problems


@dataclass(frozen=True, slots=True)
class Examples:
    """What the trainer learns from: problem -> answer (fast) and problem -> first simplification (slow).

    problems: B problems of N digits.
    answers: `[B, N+1]` digits, most significant first.
    rest: the remaining problems of N-1 digits; with N = 1 they have no digits and there is nothing slow to learn.
    digit: `[B]` the digit split off by the simplification.
    """

    problems: Problems
    answers: Tensor
    rest: Problems
    digit: Tensor

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, rows: Tensor | slice) -> "Examples":
        return Examples(self.problems[rows], self.answers[rows], self.rest[rows], self.digit[rows])

    @property
    def digits(self) -> int:
        return self.problems.digits

    @staticmethod
    def cat(parts: "Iterable[Examples]") -> "Examples":
        parts = list(parts)
        return Examples(
            Problems.cat(part.problems for part in parts),
            torch.cat([part.answers for part in parts]),
            Problems.cat(part.rest for part in parts),
            torch.cat([part.digit for part in parts]),
        )
