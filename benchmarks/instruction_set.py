"""Restrict the processor instructions that a process uses.

Torch, oneDNN and MKL read the limit from the environment when they are loaded, so it must be set before torch is
imported. Processes that are started later inherit it.
"""

import os
import sys

from sector.engine.errors import InputError

_VARIABLES = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        # For CTranslate2; onnxruntime has no such variable.
        "CT2_FORCE_CPU_ISA": "AVX2",
    }
}


def hold_to(name: str) -> None:
    """Use no instructions beyond `avx2`; `native` allows all that the processor has.

    Raise InputError if torch has been loaded without the limit.
    """
    variables = _VARIABLES.get(name, {})
    if "torch" in sys.modules and any(os.environ.get(key) != value for key, value in variables.items()):
        assignments = " ".join(f"{key}={value}" for key, value in variables.items())
        raise InputError(f"--isa {name} comes too late, torch is loaded; start `sector` itself, or set {assignments}")
    os.environ.update(variables)
