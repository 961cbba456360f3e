"""Training in several processes or on several GPUs, under torchrun: data parallel, the same to the bit as in one.

Every process holds the model and both optimizers, and works on its share of a step's shards. Their gradients are not
added up on the way, as an all-reduce would (in an order that depends on the number of processes), but gathered whole,
and averaged by everyone in the order of the shards. That is more to send, shards instead of two gradients, and buys
that a run may change its number of processes at any checkpoint without a trace in its weights.

NCCL on GPUs, gloo elsewhere.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sector.engine.errors import InputError

T = TypeVar("T")
# The loss of a shard and its gradients, a tensor a parameter.
Gradients = tuple[float, tuple[Tensor, ...]]


class Ranks:
    """The processes of a process group, seen from one of them."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def share(self, shards: Sequence[T]) -> Sequence[T]:
        """The shards that this process works on."""
        return shards[self.rank :: self.size]

    def gather(self, mine: Sequence[Gradients], num_shards: int, like: Sequence[Tensor]) -> list[Gradients]:
        """Everyone's results in the order of the shards; `like` are the parameters."""
        slots = -(-num_shards // self.size)
        width = 1 + sum(parameter.numel() for parameter in like)
        # Who has a shard less than others sends zeros, which nobody reads.
        own = like[0].new_zeros(slots, width)
        for row, (loss, gradients) in zip(own, mine, strict=False):
            row[0] = loss
            torch.cat([gradient.flatten() for gradient in gradients], out=row[1:])
        everyone = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(everyone, own)
        sizes = [parameter.numel() for parameter in like]
        gathered = []
        for shard in range(num_shards):
            row = everyone[shard % self.size][shard // self.size]
            parts = row[1:].split(sizes)
            gradients = tuple(part.view_as(parameter) for part, parameter in zip(parts, like, strict=True))
            gathered.append((row[0].item(), gradients))
        return gathered

    def check_same(self, digest: str, device: torch.device) -> None:
        """RuntimeError unless everyone ended with the weights of that sha256."""
        own = torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8, device=device)
        everyone = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(everyone, own)
        if any(not torch.equal(own, other) for other in everyone):
            raise RuntimeError("processes ended with different weights; are all machines and versions of torch alike?")


def leads() -> bool:
    """Is this the process that writes and speaks? Also outside of torchrun."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def joined(num_shards: int) -> Iterator[Ranks | None]:
    """The processes that torchrun started, this one among them; None outside of it.

    InputError if there are more of them than shards.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield None
        return
    if size > num_shards:
        raise InputError(
            f"{size} processes, but a step has {num_shards} shards; start fewer, or set round.trainer.num_shards"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Ranks()
    finally:
        dist.destroy_process_group()
