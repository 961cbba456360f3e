"""The instructions that a process may use: torch, oneDNN and MKL each read theirs from the environment as they load.

So a narrower set must be asked for before torch is imported, and processes started later inherit it.
"""

import os
import sys

from sector.engine.errors import InputError

_VARIABLES = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        # A peer's own; onnxruntime has no such switch.
        "CT2_FORCE_CPU_ISA": "AVX2",
    }
}


def hold_to(name: str) -> None:
    """Use no instructions beyond `avx2`; `native` is all that the processor has.

    InputError where torch is loaded already and was not told.
    """
    wanted = _VARIABLES.get(name, {})
    if "torch" in sys.modules and any(os.environ.get(key) != value for key, value in wanted.items()):
        given = " ".join(f"{key}={value}" for key, value in wanted.items())
        raise InputError(f"--isa {name} comes too late, torch is loaded; start `sector` itself, or set {given}")
    os.environ.update(wanted)
