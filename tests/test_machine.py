"""The description of the machine of a measurement: complete, true, and without names of hosts or users."""

import json
import os
import platform
import socket
import subprocess
from pathlib import Path

import pytest
import torch
import transformers

from sector.benchmarks import machine
from sector.benchmarks.machine import describe, one_line


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    run = subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True)
    return run.stdout.strip()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file that a repository tracks, with nothing changed since its commit."""
    file = tmp_path / "source.py"
    file.write_text("1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", file.name)
    git(tmp_path, "commit", "--quiet", "--message", "first")
    git(tmp_path, "tag", "--annotate", "v1", "--message", "v1")
    return file


def test_it_says_what_this_machine_is() -> None:
    description = describe()
    assert description.keys() == {"hardware", "versions", "commit"}
    hardware, versions = description["hardware"], description["versions"]
    assert hardware["cpu"] and hardware["cores"] == os.cpu_count()
    assert hardware["instruction_set"] == torch.backends.cpu.get_cpu_capability()
    # At least what this process could not do without, at most a petabyte: a wrong unit falls out.
    assert 1 << 28 < hardware["memory_bytes"] < 1 << 50
    assert versions["python"] == platform.python_version()
    assert (versions["torch"], versions["transformers"]) == (torch.__version__, transformers.__version__)
    assert (hardware["gpu"] is None) == (hardware["gpu_memory_bytes"] is None) == (not torch.cuda.is_available())
    assert json.loads(json.dumps(description)) == description


def test_it_names_no_host_and_no_path() -> None:
    text = json.dumps(describe())
    assert socket.gethostname() not in text
    assert str(Path.cwd()) not in text and str(Path.home()) + os.sep not in text


def test_the_commit_says_whether_files_differ_from_it(source: Path) -> None:
    head = git(source.parent, "rev-parse", "HEAD")
    assert machine._commit(source) == head[:12]
    source.write_text("2\n")
    assert machine._commit(source) == head[:12] + "-dirty"


def test_what_no_repository_tracks_has_no_commit(source: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    installed = source.with_name("installed.py")
    installed.write_text("1\n")
    assert machine._commit(installed) is None
    assert machine._commit(tmp_path_factory.mktemp("bare") / "source.py") is None


def test_without_git_there_is_no_commit(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(source.parent))
    assert machine._commit(source) is None


def test_without_proc_the_architecture_stands_for_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_proc(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", no_proc)
    assert machine._cpu_model() in (platform.processor(), platform.machine())


@pytest.mark.parametrize("gpu", [None, "NVIDIA H100 80GB HBM3"], ids=str)
def test_one_line(gpu: str | None) -> None:
    hardware = {
        "cpu": "Some CPU",
        "instruction_set": "AVX512",
        "cores": 2,
        "memory_bytes": 8 << 30,
        "gpu": gpu,
        "gpu_memory_bytes": 80 << 30,
    }
    line = one_line({"hardware": hardware, "versions": {"torch": "2.13.0"}, "commit": "0123456789ab"})
    card = "NVIDIA H100 80GB HBM3, 80 GiB; " if gpu else ""
    assert line == f"2 cores of Some CPU (AVX512), 8 GiB; {card}torch 2.13.0; commit 0123456789ab"
