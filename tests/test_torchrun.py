"""The environment that a process finds itself in: read where it says something, left alone or refused where not."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sector.cli._errors import forget_useless
from sector.cli.app import app
from sector.engine.errors import InputError
from sector.engine.training.torchrun import check_launch, leads, local_rank, num_processes, rank

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "said",
    [{}, dict.fromkeys(NAMES, ""), {"WORLD_SIZE": " "}, {"WORLD_SIZE": "0"}, {"RANK": "3"}, {"RANK": "x"}],
    ids=str,
)
def test_alone(said: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert leads() and num_processes() == 1 and rank() == 0
    check_launch()


def test_one_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert not leads() and (num_processes(), rank(), local_rank()) == (2, 1, 1)
    check_launch()
    for name in ("MASTER_ADDR", "LOCAL_RANK"):
        monkeypatch.delenv(name)
        with pytest.raises(InputError, match="is not set; start them with torchrun"):
            check_launch()


@pytest.mark.parametrize(
    "said",
    [
        {"WORLD_SIZE": "x"},
        {"WORLD_SIZE": "-1"},
        {"WORLD_SIZE": "9" * 5000},
        {"WORLD_SIZE": "\u0662"},
        {"WORLD_SIZE": "2", "RANK": "2"},
        {"WORLD_SIZE": "2", "RANK": "\x1b[31m"},
    ],
    ids=lambda said: ascii(said)[:30],
)
def test_what_is_no_number_is_one_line(said: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["sft", "--out", str(tmp_path / "run")], catch_exceptions=False)
    assert result.exit_code == 2 and result.stdout == "" and result.stderr.count("\n") == 1
    assert list(said)[-1] in result.stderr and result.stderr.rstrip("\n").isprintable()
    assert not (tmp_path / "run").exists()


def test_sizes_of_a_terminal_that_are_none_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINES", "24")
    for value in ("", "0", "x", "-1", " 80"):
        for name in ("COLUMNS", "TERMINAL_WIDTH"):
            monkeypatch.setenv(name, value)
        forget_useless()
        assert "COLUMNS" not in os.environ and "TERMINAL_WIDTH" not in os.environ and os.environ["LINES"] == "24"


def test_threads_and_backends_that_are_none_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "0", "x", "-1", "2,x", "1000000"):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        monkeypatch.setenv("MPLBACKEND", "x")
        forget_useless()
        assert "OMP_NUM_THREADS" not in os.environ and "MPLBACKEND" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    forget_useless()
    assert os.environ["OMP_NUM_THREADS"] == "2,1"


@pytest.mark.parametrize(
    ("said", "library"), [({"TORCH_LOGS": "x\x1b"}, "torch"), ({"SOURCE_DATE_EPOCH": "x"}, "numpy")], ids=str
)
def test_what_stops_a_library_is_one_line(said: dict[str, str], library: str, tmp_path: Path) -> None:
    """In a process of its own: a library is imported once."""
    command = [str(Path(sys.executable).with_name("sector")), "eval", "--model", str(tmp_path), "--digits", "1"]
    environment = {**os.environ, **said}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"sector: {library} cannot be imported: ") and done.stderr.count("\n") == 1
    assert done.stderr.rstrip("\n").isprintable()


def test_too_little_address_space_is_one_line_at_once() -> None:
    """OpenBLAS would spin in it for good; the help needs no more than there is."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1_000_000 << 10, resource.RLIM_INFINITY))

    def sector(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("sector")), *words]
        return subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False, timeout=300)

    for words in (["solve", "1+2"], ["run"], ["report", "x"]):
        done = sector(*words)
        assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
        assert "limited to 976 MiB (ulimit -v)" in done.stderr
    assert sector("solve", "--help").returncode == 0


@pytest.mark.parametrize("address", ["", "x:y", "127.0.0.1:1", "nowhere"], ids=str)
def test_a_cluster_that_is_not_there_is_one_line(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sector.engine.policy.cluster import check_cores

    monkeypatch.setenv("RAY_ADDRESS", address)
    if address:
        # A cluster has its own count, and says it when it is joined.
        check_cores(100_000)
    else:
        with pytest.raises(InputError, match=f"--workers 100000, but this machine has {len(os.sched_getaffinity(0))} "):
            check_cores(100_000)
