"""Draw the examples of a training step from new sets and a replay of earlier ones."""

from collections.abc import Callable, Sequence

import torch

from sector.engine.language.examples import Examples
from sector.engine.seeding import generator
from sector.engine.training.stream import ExampleStream


def mixed_batches(
    new: Sequence[Examples | ExampleStream],
    replay: Sequence[Examples | ExampleStream],
    num_shards: int,
    shard_rows: int,
    replay_share: float,
    seed: int,
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

    def replay_set(time_around: int, place: int) -> Examples | ExampleStream:
        order = torch.randperm(len(replay), generator=generator(seed, "turns", time_around))
        return replay[int(order[place])]

    def draw(step: int) -> list[Examples]:
        draws = generator(seed, "batch", step)
        shards = []
        for turn in range(step * num_new, (step + 1) * num_new):
            time_around, place = divmod(turn, len(new))
            shards.append(_shard(new[place], time_around, shard_rows, seed, draws))
        for turn in range(step * num_replay, (step + 1) * num_replay):
            time_around, place = divmod(turn, len(replay))
            shards.append(_shard(replay_set(time_around, place), time_around, shard_rows, seed, draws))
        return shards

    return draw


def _shard(examples: Examples | ExampleStream, turn: int, rows: int, seed: int, draws: torch.Generator) -> Examples:
    """Return the rows that a set gives at its turn: those that come next in a stream, or any rows in memory."""
    if isinstance(examples, ExampleStream):
        return examples.shard(turn, rows, seed)
    return examples[torch.randint(0, len(examples), (rows,), generator=draws)]
