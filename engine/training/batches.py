"""Draw the shards of a training step from new examples and a replay of earlier ones."""

from collections.abc import Callable

import torch

from sector.engine.language.examples import Examples
from sector.engine.seeding import generator


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
