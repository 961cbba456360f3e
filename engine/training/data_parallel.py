"""Data-parallel training in several processes or on several GPUs, under torchrun; equal to the bit to one process.

Each process holds the model and its optimizers, and works on its share of a step's shards. The all-reduce of torch's
DistributedDataParallel would add up gradients in an order that depends on the number of processes. Here each process
gathers the gradients of all shards, and averages them in the order of the shards. More data is sent, but a run may
change its number of processes at any checkpoint without a trace in its weights.

Messages go by NCCL on GPUs, and by gloo elsewhere. In the shape descriptions P is the parameters of the model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sector.engine.errors import InputError, WorkersDied, first_line
from sector.engine.training.torchrun import check_launch, local_rank, num_processes

T = TypeVar("T")

# While the first process generates, the others wait for its next message, for any time. Its death ends the wait.
_TIMEOUT = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Gradient:
    """Result of a shard in a step.

    loss: `[]` mean loss in nats per token.
    flat: `[P]` gradients of all parameters, one after another.
    """

    loss: Tensor
    flat: Tensor


class FirstLeft(WorkersDied):
    """Error: the first process ended the training cycle."""


class Ranks:
    """The processes of a process group, seen from one of them."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        self._exchange: Exchange | None = None

    def exchange(self, like: Tensor, num_shards: int) -> "Exchange":
        """Begin a training cycle in all processes. Return its exchange of gradients of the form of `like [P]`."""
        self._exchange = Exchange(self, like, num_shards)
        return self._exchange

    def closed(self) -> None:
        """Note that the cycle is over in all processes."""
        self._exchange = None

    def say(self, message: bytes) -> None:
        """Send a message from the first process to all others, which `hear` it. Raise WorkersDied if one is dead."""
        with _death_named():
            length = torch.tensor([len(message)])
            dist.broadcast(length, 0, group=self._group)
            if message:
                # A copy, because tensors need writable memory.
                dist.broadcast(torch.frombuffer(bytearray(message), dtype=torch.uint8), 0, group=self._group)

    def hear(self) -> bytes:
        """Wait for the next message of the first process, and return it. Raise WorkersDied if that process is dead."""
        with _death_named():
            length = torch.zeros(1, dtype=torch.int64)
            dist.broadcast(length, 0, group=self._group)
            content = torch.zeros(int(length), dtype=torch.uint8)
            if len(content):
                dist.broadcast(content, 0, group=self._group)
            return content.numpy().tobytes()

    def leave(self) -> None:
        """End a cycle that is under way in all processes; the others raise FirstLeft."""
        if self._exchange is not None:
            with suppress(WorkersDied):
                self._exchange.leave()


class Exchange:
    """Exchange of messages in one training cycle: the gradients after each step, a digest of the weights at the end.

    All messages have one size, so that the first process can leave in the place of any of them. A message has a row a
    shard: whether the first process leaves, the loss, and the gradients.
    """

    def __init__(self, ranks: Ranks, like: Tensor, num_shards: int) -> None:
        self._ranks, self._num_shards = ranks, num_shards
        self._message = like.new_zeros(-(-num_shards // ranks.size), 2 + len(like))
        self._messages = [torch.zeros_like(self._message) for _ in range(ranks.size)]

    def share(self, shards: Sequence[T]) -> Sequence[T]:
        """Return the shards of this process; there are none if there are more processes than shards."""
        return shards[self._ranks.rank :: self._ranks.size]

    def gather(self, gradients: Sequence[Gradient]) -> list[Gradient]:
        """Send the gradients of this process, and return those of all processes in the order of the shards.

        They are views: the next message overwrites them.
        """
        # A process with one shard less than others sends an old row, which is not read.
        for row, gradient in zip(self._message, gradients, strict=False):
            row[1], row[2:] = gradient.loss, gradient.flat
        self._send()
        rows = [
            self._messages[shard % self._ranks.size][shard // self._ranks.size] for shard in range(self._num_shards)
        ]
        return [Gradient(row[1], row[2:]) for row in rows]

    def close(self, digest: str) -> None:
        """End the cycle. Raise RuntimeError unless the weights of all processes have the sha256 `digest`."""
        expected = list(bytes.fromhex(digest))
        place = slice(2, 2 + len(expected))
        self._message[0, place] = self._message.new_tensor(expected)
        self._send()
        self._ranks.closed()
        if any(message[0, place].tolist() != expected for message in self._messages):
            raise RuntimeError(
                "processes ended with different weights; use machines of one kind and one version of torch"
            )

    def leave(self) -> None:
        """Send, as the next message, that the first process leaves."""
        self._message[0, 0] = 1.0
        self._send()

    def _send(self) -> None:
        """Gather the messages of all processes. Raise FirstLeft if the first one leaves, WorkersDied if one is dead."""
        with _death_named():
            dist.all_gather(self._messages, self._message)
        if self._ranks.rank and self._messages[0][0, 0]:
            self._ranks.closed()
            raise FirstLeft("the first process has ended the training")


def check_useful(num_shards: int) -> None:
    """Raise InputError if there are more processes than shards in a step."""
    if num_processes() > num_shards:
        raise InputError(
            f"{num_processes()} processes, but a step has {num_shards} shards; start fewer, or set "
            "round.trainer.num_shards"
        )


@contextmanager
def process_group() -> Iterator[Ranks | None]:
    """Join the process group of torchrun for the time of a context, and yield it; yield None outside of torchrun."""
    if num_processes() == 1:
        yield None
        return
    check_launch()
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    with _death_named():
        try:
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        except ValueError as error:
            raise InputError(f"the processes cannot find each other ({error}); start them with torchrun") from error
        ranks = Ranks()
    try:
        yield ranks
    finally:
        if ranks.rank == 0:
            ranks.leave()
        dist.destroy_process_group()


@contextmanager
def _death_named() -> Iterator[None]:
    """Turn errors of torch's communication in the block into WorkersDied, with the reason in one line."""
    try:
        yield
    except RuntimeError as error:
        # gloo's message begins with a line of its source code, and ends with advice.
        parts = first_line(error).rpartition("] Conn")
        reason = "".join(parts[1:]).removeprefix("] ").partition(". ")[0]
        raise WorkersDied(f"a process of this training died, or cannot be reached ({reason})") from error
