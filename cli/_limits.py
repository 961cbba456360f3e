"""Limits of the shell on this process, checked before numerical libraries are imported."""

import os
import sys

from sector.engine.errors import InputError

_MIB = 1 << 20
# Measured with imports alone: 1,500 MiB on 2 cores. Libraries reserve 32 MiB for each core.
_MIN_MIB, _MIN_MIB_PER_CORE = 1536, 64


def check_address_space() -> None:
    """Raise InputError if `ulimit -v` is too low. OpenBLAS would retry its failed allocations forever."""
    if sys.platform == "win32":
        return
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    needed = _MIN_MIB + _MIN_MIB_PER_CORE * (os.cpu_count() or 1)
    if limit != resource.RLIM_INFINITY and limit < needed * _MIB:
        raise InputError(
            f"the address space is limited to {limit // _MIB:,} MiB (ulimit -v), but the libraries alone need "
            f"{needed:,} MiB; raise the limit, or limit memory with a control group instead"
        )
