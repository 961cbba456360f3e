"""Two forked processes that train together, and their training data."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any

from forked import FORKS, Forked, forked
from small_text import small_text_model

from sector.engine.config import Precision, TrainerConfig
from sector.engine.language.examples import Examples
from sector.engine.language.operands import draw_problems
from sector.engine.models.sector import new_model
from sector.engine.seeding import generator
from sector.engine.training.batches import mixed_batches
from sector.engine.training.data_parallel import process_group
from sector.engine.training.distill import start_training, train_cycle
from sector.engine.training.supervised import label


def labelled(digits: int) -> Examples:
    return label(draw_problems(digits, 60, generator(0, "ranks", digits)))


def curve(num_shards: int, ranks: Any = None, precision: Precision = "float32", micro_batch: int = 0) -> list[float]:
    """Losses of twelve steps; the last says everything about the weights before. With micro-batches, those of text."""
    config = TrainerConfig(
        num_shards=num_shards, shard_rows=8, warmup_steps=2, precision=precision, micro_batch=micro_batch
    )
    batches = mixed_batches([labelled(5)], [labelled(3)], num_shards, 8, 0.5, seed=5)
    state = start_training(small_text_model() if micro_batch else new_model("tiny", 0), config)
    return [loss for _, loss in train_cycle(state, batches, config, 12, 7, ranks)]


def curves_of_two(shards: list[int], precision: Precision = "float32", micro_batch: int = 0) -> list[list[list[float]]]:
    """Of each of two processes, a curve for each number of shards."""
    pipes = [FORKS.Pipe(duplex=False) for _ in range(2)]
    processes = [
        FORKS.Process(target=_curves, args=(environment, shards, precision, micro_batch, end))
        for environment, (_, end) in zip(_two_ranks(), pipes, strict=True)
    ]
    for process in processes:
        process.start()
    for _, end in pipes:
        end.close()
    curves = [read.recv() for read, _ in pipes]
    for process in processes:
        process.join()
    return curves


@contextmanager
def command_of_two(*words: object) -> Iterator[list[Forked]]:
    """`sector WORDS` in two processes, under way until the end of the `with`."""
    with ExitStack() as stack:
        yield [stack.enter_context(forked(*words, environment=environment)) for environment in _two_ranks()]


def _two_ranks() -> list[dict[str, str]]:
    """Set the variables by which torchrun describes two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    return [{**where, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]


def _curves(
    environment: dict[str, str], shards: list[int], precision: Precision, micro_batch: int, end: Connection
) -> None:
    os.environ.update(environment)
    with process_group() as ranks:
        end.send([curve(num_shards, ranks, precision, micro_batch) for num_shards in shards])
