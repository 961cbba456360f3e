"""`benchmarks/gpu.sh` on a machine that has only the packages that it names, rehearsed without a GPU."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from importlib.util import find_spec
from pathlib import Path

import pytest

from sector.benchmarks.gpu_check import NEEDED

ROOT = Path(__file__).parents[1]

# Python imports it at its start from a folder on the path: from then on it finds no module that is named there.
BLOCK = """
import json, pathlib, sys

ABSENT = set(json.loads((pathlib.Path(__file__).parent / "absent.json").read_text()))

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
"""


def _name(requirement: str) -> str:
    """Return the name of a package in one spelling."""
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def _with_requirements(packages: list[str]) -> set[str]:
    """Return packages and what they require, without extras."""
    found: set[str] = set()
    waiting = [_name(package) for package in packages]
    while waiting:
        package = waiting.pop()
        if package in found:
            continue
        found.add(package)
        try:
            waiting += [_name(line) for line in requires(package) or [] if "extra ==" not in line]
        except PackageNotFoundError:
            continue
    return found


def _absent() -> list[str]:
    """Return the modules that are installed here and not on the bare machine."""
    present = {*_with_requirements(list(NEEDED.values())), "pip", "setuptools", "sector-lm"}
    setuptools = find_spec("setuptools")
    assert setuptools is not None and setuptools.origin is not None
    # Copies that setuptools adds to the path when it is imported.
    vendored = {copy.name.partition(".")[0] for copy in (Path(setuptools.origin).parent / "_vendor").iterdir()}
    return sorted(
        module
        for module, packages in packages_distributions().items()
        if module not in vendored and not any(_name(package) in present for package in packages)
    )


def _rehearse(folder: Path, absent: list[str], *parts: str) -> "subprocess.CompletedProcess[str]":
    """Run parts of the script in a Python that lacks modules."""
    blocked = folder / "blocked"
    blocked.mkdir(exist_ok=True)
    (blocked / "sitecustomize.py").write_text(BLOCK)
    (blocked / "absent.json").write_text(json.dumps(absent))
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": str(blocked),
        "STATE": str(folder / "state"),
        "SECTOR_COMMIT": "rehearsed",
        "REHEARSE": "1",
    }
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(folder / "out"), *parts]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_bare_machine_collects_the_tests_and_measures(tmp_path: Path) -> None:
    absent = _absent()
    assert not {"torch", "numpy", "pydantic", "pydantic_core"} & set(absent)
    if "ray" not in absent:
        pytest.skip("nothing is installed here that such a machine lacks")
    done = _rehearse(tmp_path, absent, "check", "tests", "tiny", "train_bf16", "train_tiny_text", "pretrained")
    log = (tmp_path / "out" / "log.txt").read_text(encoding="utf-8")
    assert done.returncode == 0, done.stdout + log
    assert re.search(r"^\d{3} tests collected", log, re.MULTILINE), log
    lines = (tmp_path / "out" / "cells.jsonl").read_text(encoding="utf-8").splitlines()
    description, *cells = map(json.loads, lines[:-6])
    assert description["commit"] == "rehearsed"
    assert [(cell["dtype"], cell["decode"]) for cell in cells] == [
        ("float32", "cpu"),
        ("float32", "kernels"),
        ("bfloat16", "kernels"),
    ]
    assert all(cell["accepted"] == cell["rows"] == 8 for cell in cells), cells
    assert all(cell["unlike_repetitions"] == 0 for cell in cells), cells
    assert cells[1]["differing"] == 0
    description, *steps = (json.loads(line) for line in (*lines[-6:-3], *lines[-2:]))
    assert description["commit"] == "rehearsed"
    assert [(cell["preset"], cell["precision"], cell["way"]) for cell in steps] == [
        ("tiny", "float32", "graphs"),
        ("tiny", "bfloat16", "graphs"),
        ("text-tiny", "float32", "graphs"),
        ("text-tiny", "float32", "eager"),
    ]
    assert all(cell["within_tolerance"] and cell["compared_steps"] == 3 for cell in steps), steps
    assert all(cell["steps_per_s"] > 0 and cell["tokens_per_s"] > 0 and cell["peak_bytes"] > 0 for cell in steps), steps
    # Float32 on the CPU is what it is compared with.
    assert [cell["largest_difference"] == 0 for cell in steps] == [True, False, True, True]
    (phase,) = (tmp_path / "out" / "run_pretrained.jsonl").read_text(encoding="utf-8").splitlines()
    taught = json.loads(phase)
    assert (taught["phase"], taught["digits"]) == ("sft", 3) and taught["tokens_trained"] > 0


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    done = _rehearse(tmp_path, ["tomli_w", "pydantic"], "check", "tests")
    assert done.returncode == 2
    (line,) = done.stdout.splitlines()
    assert "pydantic (No module named 'pydantic')" in line and "tomli-w (No module" in line and "PYTHONPATH" in line


def test_a_part_that_is_not_there_is_named_before_any_part_runs(tmp_path: Path) -> None:
    done = _rehearse(tmp_path, [], "check", "tinny")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "gpu.sh: there is no part 'tinny'; without arguments it lists them\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("folder", ["out", "state"])
def test_a_folder_that_cannot_be_written_is_named(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).write_text("a file")
    done = _rehearse(tmp_path, [], "check")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"gpu.sh: cannot write to {tmp_path / folder}; choose another folder\n"
