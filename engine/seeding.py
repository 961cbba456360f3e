"""Named random streams: the draws of a step depend on the run's seed and the step's name, not on earlier draws."""

import hashlib

import torch


def stream_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for the stream `names` of a run."""
    digest = hashlib.sha256("/".join([str(seed), *map(str, names)]).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """Return a new CPU generator at the start of the stream `names`."""
    return torch.Generator().manual_seed(stream_seed(seed, *names))
