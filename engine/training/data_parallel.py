"""Training in several processes or on several GPUs, under torchrun: data parallel, the same to the bit as in one.

Every process holds the model and both optimizers, and works on its share of a step's shards. Their gradients are not
added up on the way, as the all-reduce of torch's DistributedDataParallel would (in an order that depends on the number
of processes), but gathered whole, and averaged by everyone in the order of the shards. That is more to send, shards
instead of two gradients, and buys that a run may change its number of processes at any checkpoint without a trace in
its weights.

NCCL on GPUs, gloo elsewhere.
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

# Others wait for a message while the first process generates: as long as it takes. Its death ends the wait.
_PATIENCE = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Gradient:
    """What a shard says of a step. loss: in nats a token. flat: `[P]`, the gradients of all parameters in a row."""

    loss: float
    flat: Tensor


class FirstLeft(WorkersDied):
    """The first process ended the training at hand."""


class Ranks:
    """The processes of a process group, seen from one of them."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._talk = dist.new_group(backend="gloo", timeout=_PATIENCE)
        self._open: Exchange | None = None

    def exchange(self, like: Tensor, num_shards: int) -> "Exchange":
        """How gradients go round in a training cycle that everyone begins now; they are like that one, `[P]`."""
        self._open = Exchange(self, like, num_shards)
        return self._open

    def closed(self) -> None:
        """The cycle is over for everyone."""
        self._open = None

    def say(self, message: bytes) -> None:
        """The first process tells all others, who `hear`."""
        with _death_named():
            length = torch.tensor([len(message)])
            dist.broadcast(length, 0, group=self._talk)
            if message:
                # A copy, since tensors are writable.
                dist.broadcast(torch.frombuffer(bytearray(message), dtype=torch.uint8), 0, group=self._talk)

    def hear(self) -> bytes:
        """What the first process says next. WorkersDied if it is gone."""
        with _death_named():
            length = torch.zeros(1, dtype=torch.int64)
            dist.broadcast(length, 0, group=self._talk)
            content = torch.zeros(int(length), dtype=torch.uint8)
            if len(content):
                dist.broadcast(content, 0, group=self._talk)
            return content.numpy().tobytes()

    def leave(self) -> None:
        """End a cycle under way for all others too: there, FirstLeft is raised."""
        if self._open is not None:
            with suppress(WorkersDied):
                self._open.leave()


class Exchange:
    """What goes round in one training cycle: after every step the gradients, at its end a digest of the weights.

    All messages are of one size, so that the first process can leave instead of any of them. A row a shard: is the
    first process leaving, the loss, the gradients.
    """

    def __init__(self, ranks: Ranks, like: Tensor, num_shards: int) -> None:
        self._ranks, self._num_shards = ranks, num_shards
        self._own = like.new_zeros(-(-num_shards // ranks.size), 2 + len(like))
        self._everyone = [torch.zeros_like(self._own) for _ in range(ranks.size)]

    def share(self, shards: Sequence[T]) -> Sequence[T]:
        """The shards that this process works on; none, if there are more processes than shards."""
        return shards[self._ranks.rank :: self._ranks.size]

    def gather(self, mine: Sequence[Gradient]) -> list[Gradient]:
        """Everyone's results in the order of the shards. They are views: the next message overwrites them."""
        # Who has a shard less than others sends an old one, which nobody reads.
        for row, result in zip(self._own, mine, strict=False):
            row[1], row[2:] = result.loss, result.flat
        self._send()
        rows = [
            self._everyone[shard % self._ranks.size][shard // self._ranks.size] for shard in range(self._num_shards)
        ]
        return [Gradient(row[1].item(), row[2:]) for row in rows]

    def close(self, digest: str) -> None:
        """The cycle is done. RuntimeError unless everyone has the weights of that sha256."""
        said = list(bytes.fromhex(digest))
        self._own[0, 2 : 2 + len(said)] = self._own.new_tensor(said)
        self._send()
        self._ranks.closed()
        if any(each[0, 2 : 2 + len(said)].tolist() != said for each in self._everyone):
            raise RuntimeError("processes ended with different weights; are all machines and versions of torch alike?")

    def leave(self) -> None:
        """Instead of the next message of any kind: the first process will send no more."""
        self._own[0, 0] = 1.0
        self._send()

    def _send(self) -> None:
        with _death_named():
            dist.all_gather(self._everyone, self._own)
        if self._ranks.rank and self._everyone[0][0, 0]:
            self._ranks.closed()
            raise FirstLeft("the first process has ended the training")


def check_useful(num_shards: int) -> None:
    """InputError if there are more processes than shards in a step."""
    if num_processes() > num_shards:
        raise InputError(
            f"{num_processes()} processes, but a step has {num_shards} shards; start fewer, or set "
            "round.trainer.num_shards"
        )


@contextmanager
def process_group() -> Iterator[Ranks | None]:
    """The processes that torchrun started, this one among them; None outside of it."""
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
    try:
        yield
    except RuntimeError as error:
        # gloo begins with a line of its source, and ends with advice.
        reason = first_line(error).rpartition("] Conn")
        said = "".join(reason[1:]).removeprefix("] ").partition(". ")[0]
        raise WorkersDied(f"a process of this training died, or cannot be reached ({said})") from error
