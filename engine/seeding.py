"""Named random streams: what a step draws depends on the run's seed and the step's name, not on what came before it."""

import hashlib

import torch


def stream_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream `names` of a run."""
    digest = hashlib.sha256("/".join([str(seed), *map(str, names)]).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A fresh CPU generator at the start of the stream `names`."""
    return torch.Generator().manual_seed(stream_seed(seed, *names))
