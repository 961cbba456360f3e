"""The number of cores, and the number of threads that operations of torch use.

No setting sets the threads: the engine native and the trainer take one per core, and a worker of Ray takes one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def num_cores() -> int:
    """Return the number of cores that this process may use, which its affinity may limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Run operations on one thread in the block: on small matrices, a second core costs more time than it saves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
