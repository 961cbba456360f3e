"""How this process was launched: alone, or by torchrun as one of several. Read off the environment; needs no torch.

Outside of torchrun, what happens to bear these names is not ours and is left alone.
"""

import os

from sector.engine.errors import InputError

# What torchrun says to every process that it starts.
_SAID = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def leads() -> bool:
    """Is this the process that writes and speaks? Also outside of torchrun."""
    return rank() == 0


def rank() -> int:
    """Which of the processes this is, from 0."""
    size = num_processes()
    if size == 1:
        return 0
    place = _whole("RANK", 0)
    if place >= size:
        raise InputError(f"RANK={place} of WORLD_SIZE={size}: processes count from 0; let torchrun set both")
    return place


def local_rank() -> int:
    """Which of the processes on this machine this is, from 0."""
    return _whole("LOCAL_RANK", 0)


def num_processes() -> int:
    """How many torchrun started; 1 outside of it."""
    return max(1, _whole("WORLD_SIZE", 1))


def check_launch() -> None:
    """InputError where there are said to be several processes, but not how they find each other."""
    missing = [name for name in _SAID if not os.environ.get(name)]
    if num_processes() > 1 and missing:
        raise InputError(f"WORLD_SIZE says several processes, but {missing[0]} is not set; start them with torchrun")


def _whole(name: str, default: int) -> int:
    """A variable that holds a whole number; one that is empty counts as not set."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise InputError(f"{name}={text!r} is no number of processes; unset it, or let torchrun set it")
    return int(text)
