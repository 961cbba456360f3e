"""Check that a machine can run `gpu.sh`: name each package that is missing, and the versions of those that matter.

It imports nothing of sector before all packages are there, and installs nothing.
"""

import importlib
import importlib.metadata
import sys

# Packages by the name that is imported; those that sector and its GPU tests import.
NEEDED = {
    "torch": "torch",
    "triton": "triton",
    "transformers": "transformers",
    "safetensors": "safetensors",
    "numpy": "numpy",
    "scipy": "scipy",
    "pyarrow": "pyarrow",
    "matplotlib": "matplotlib",
    "tensorboard": "tensorboard",
    "jinja2": "jinja2",
    "pydantic": "pydantic",
    "tomli_w": "tomli-w",
    "filelock": "filelock",
    "psutil": "psutil",
    "typer": "typer",
    "rich": "rich",
    "pytest": "pytest",
    "xdist": "pytest-xdist",
    "hypothesis": "hypothesis",
}


def missing() -> list[str]:
    """Return the packages that cannot be imported, as pip names them."""
    names = []
    for module, package in NEEDED.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            names.append(f"{package} ({error})")
    return names


def main() -> int:
    """Print versions and the GPU; return 2, with a line that says why, if a package or the GPU is missing.

    With `--rehearse` no GPU is needed.
    """
    if names := missing():
        print(f"gpu.sh: missing {', '.join(names)}; unpack their wheels into a folder, and name it in PYTHONPATH")
        return 2
    import torch

    for package in ("torch", "triton", "transformers", "pydantic", "pytest"):
        print(package, importlib.metadata.version(package))
    import sector.engine.samplers.gpu  # noqa: F401

    if sys.argv[1:] == ["--rehearse"]:
        print("a rehearsal, without a GPU")
        return 0
    if not torch.cuda.is_available():
        print("gpu.sh: torch sees no GPU; set PYTHON to one whose torch does")
        return 2
    properties = torch.cuda.get_device_properties(0)
    print(
        f"{properties.name}: {properties.multi_processor_count} multiprocessors, {properties.total_memory >> 20} MiB, "
        f"{properties.L2_cache_size >> 20} MiB of second-level cache, CUDA {torch.version.cuda}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
