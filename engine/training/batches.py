"""Draw the examples of a training step from new sets and a replay of earlier ones."""

from collections.abc import Callable

import torch

from sector.engine.language.examples import Examples
from sector.engine.seeding import generator


def mixed_batches(
    new: list[Examples], replay: list[Examples], num_shards: int, shard_rows: int, replay_share: float, seed: int
) -> Callable[[int], list[Examples]]:
    """Return a function from a step to its examples, one item per shard; each item comes from one set.

    new: sets of new examples, which take turns in their order.
    replay: sets of earlier examples, which take turns in a new random order each time around. With independent draws
        some sets would miss a whole round and be forgotten. If there are none, all shards are new.
    replay_share: share of the shards that are drawn from the replay.

    The draws of a step depend on `seed` and the step alone.
    """
    num_replay = round(num_shards * replay_share) if replay else 0
    num_new = num_shards - num_replay

    def replay_set(turn: int) -> Examples:
        time_around, place = divmod(turn, len(replay))
        order = torch.randperm(len(replay), generator=generator(seed, "turns", time_around))
        return replay[int(order[place])]

    def draw(step: int) -> list[Examples]:
        draws = generator(seed, "batch", step)
        sets = [new[(step * num_new + index) % len(new)] for index in range(num_new)]
        sets += [replay_set(step * num_replay + index) for index in range(num_replay)]
        return [examples[torch.randint(0, len(examples), (shard_rows,), generator=draws)] for examples in sets]

    return draw
