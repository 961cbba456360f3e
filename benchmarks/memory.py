"""Measure peak memory: of the process on a CPU, of the allocator on a GPU.

On Linux the peak of the process is read from /proc, since psutil tells only the memory in use now.
"""

import resource
from pathlib import Path

import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def reset_peak(device: torch.device) -> None:
    """Reset the peak. On systems other than Linux this is not possible: peaks are since the start of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def peak_bytes(device: torch.device) -> int:
    """Return the peak since `reset_peak`, in bytes: resident in the process, or allocated on the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        lines = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="utf-8").splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
