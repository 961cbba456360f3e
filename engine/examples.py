"""Training examples: problems with the answers and simplifications to be distilled."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sector.engine.seeding import generator


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


def mixed_batches(
    new: list[Examples], replay: list[Examples], num_shards: int, shard_rows: int, replay_share: float, seed: int
) -> Callable[[int], list[Examples]]:
    """Shards of a training step: some from the new examples, the others each from one set of the replay.

    The new sets take turns, and so do those of the replay, in a new random order every time around: left to chance,
    some would not be seen for a whole round, and be forgotten. What a step draws depends on `seed` and the step alone.
    With no replay all shards are new.
    """
    num_replay = round(num_shards * replay_share) if replay else 0
    num_new = num_shards - num_replay

    def set_at(turn: int) -> Examples:
        around, place = divmod(turn, len(replay))
        return replay[int(torch.randperm(len(replay), generator=generator(seed, "turns", around))[place])]

    def draw(step: int) -> list[Examples]:
        draws = generator(seed, "batch", step)
        sets = [new[(step * num_new + index) % len(new)] for index in range(num_new)]
        sets += [set_at(step * num_replay + index) for index in range(num_replay)]
        return [each[torch.randint(0, len(each), (shard_rows,), generator=draws)] for each in sets]

    return draw
