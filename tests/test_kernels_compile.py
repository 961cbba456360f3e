"""Every kernel compiles for an H100, whether or not there is one: `compile_kernels.py`, read back.

A kernel that would not compile, or whose registers spill, cannot land.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sector.kernels import acceptance, consistency, decode_attention, digit_sampler, layer, layout
from sector.kernels._triton import AVAILABLE

# An SM has 65,536 registers and up to 228 KiB of shared memory. Four warps of 255 still share it with another program.
MAX_REGISTERS = 255
MAX_SHARED = 64 * 1024


@pytest.fixture(scope="module")
def compiled() -> list[dict[str, Any]]:
    if not AVAILABLE:
        pytest.skip("there is no Triton for this system")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_no_kernel_is_forgotten(compiled: list[dict[str, Any]]) -> None:
    modules = (acceptance, consistency, decode_attention, digit_sampler, layer, layout)
    kernels = {name for module in modules for name in vars(module) if name.endswith("_kernel") and name.startswith("_")}
    assert len(kernels) == 10
    assert kernels <= {line["kernel"] for line in compiled}


def test_nothing_spills_and_programs_share_a_multiprocessor(compiled: list[dict[str, Any]]) -> None:
    for line in compiled:
        assert line["stack"] == 0, line
        assert 0 < line["registers"] <= MAX_REGISTERS, line
        assert line["shared"] <= MAX_SHARED, line


# The kernels whose time is the reading of caches and states. Triton widens loads if it knows that sizes and strides are
# multiples of 16.
WIDE = ("decode_attention tiny", "decode_attention base", "digit_sampler tiny", "digit_sampler base", "layer")


def test_loads_are_sixteen_bytes_wide(compiled: list[dict[str, Any]]) -> None:
    lines = [line for line in compiled if line["case"].startswith(WIDE)]
    assert len(lines) >= 20
    for line in lines:
        assert line["widest_load"] == 128, line
