"""The launch of this process, alone or by torchrun as one of several, read from the environment without torch.

Outside of torchrun, variables of these names are left alone.
"""

import os

from sector.engine.errors import InputError

# The variables that torchrun sets for each process.
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def leads() -> bool:
    """Return whether this is the process that writes files and prints; True outside of torchrun."""
    return rank() == 0


def rank() -> int:
    """Return the rank of this process, from 0; 0 outside of torchrun. Raise InputError if the variables contradict."""
    size = num_processes()
    if size == 1:
        return 0
    index = _whole_number("RANK", 0)
    if index >= size:
        raise InputError(f"RANK={index} of WORLD_SIZE={size}: processes count from 0; let torchrun set both")
    return index


def local_rank() -> int:
    """Return the rank of this process among those of its machine, from 0."""
    return _whole_number("LOCAL_RANK", 0)


def num_processes() -> int:
    """Return the number of processes that torchrun started; 1 outside of torchrun."""
    return max(1, _whole_number("WORLD_SIZE", 1))


def check_launch() -> None:
    """Raise InputError if there are several processes but a variable by which they find each other is missing."""
    missing = [name for name in _VARIABLES if not os.environ.get(name)]
    if num_processes() > 1 and missing:
        raise InputError(f"WORLD_SIZE says several processes, but {missing[0]} is not set; start them with torchrun")


def _whole_number(name: str, default: int) -> int:
    """Return the whole number in a variable; the default if it is empty or not set. Raise InputError if it is none."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise InputError(f"{name}={text!r} is no number of processes; unset it, or let torchrun set it")
    return int(text)
