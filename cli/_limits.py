"""What the shell allows this process, looked at before libraries of numbers are imported."""

import os
import sys

from sector.engine.errors import InputError

_MIB = 1 << 20
# Measured, imports alone: 1,500 MiB on 2 cores. Libraries set memory aside for each core, 32 MiB each.
_LEAST_MIB, _LEAST_MIB_A_CORE = 1536, 64


def check_address_space() -> None:
    """InputError where `ulimit -v` leaves too little: OpenBLAS would ask for memory again and again, without end."""
    if sys.platform == "win32":
        return
    import resource

    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    needed = _LEAST_MIB + _LEAST_MIB_A_CORE * (os.cpu_count() or 1)
    if allowed != resource.RLIM_INFINITY and allowed < needed * _MIB:
        raise InputError(
            f"the address space is limited to {allowed // _MIB:,} MiB (ulimit -v), and libraries alone take "
            f"{needed:,}; raise it, or limit memory by a control group"
        )
