"""Shared setup of the tests: one thread, no network, poisoned uninitialised memory, and the device of the kernels."""

import os

# Before transformers is imported, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"
# In processes that tests start, too: there are as many workers of pytest as cores.
os.environ["OMP_NUM_THREADS"] = "1"

import shutil
from pathlib import Path

import pytest
import torch

# Before kernels are imported, which are compiled or interpreted from then on: compiled where there is a GPU.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

torch.set_num_threads(1)

# Uninitialised memory is NaN then (the largest number, if whole), so that a test fails if anything reads it.
torch.use_deterministic_algorithms(True, warn_only=True)

# Kernel tests take the fixture `kernel_device`. On a GPU they are what `-m gpu` selects.
_KERNEL_DEVICE = pytest.param("cuda", marks=pytest.mark.gpu) if torch.cuda.is_available() else pytest.param("cpu")


# Files that share what takes long: vLLM's import; a run to its end, Ray, the server of forks; a fixture of one file, as
# compiled kernels or a server. With several workers of pytest each group goes to one, and first, so that what is left
# fills the gaps.
_TOGETHER = {
    "vllm": ["test_vllm", "test_text_samplers", "test_text_run", "test_vllm_workers", "test_served"],
    "runs": ["test_ranks", "test_selfplay", "test_failures", "test_records", "test_workers", "test_part_folder"],
    "server": ["test_server_tokenizer"],
    "adapter": ["test_adapter"],
    "kernels": ["test_kernels_compile"],
    "stores": ["test_store"],
    "tasks as text": ["test_text_tasks"],
}
_GROUPS = {file: group for group, files in _TOGETHER.items() for file in files}
_ORDER = {file: place for place, file in enumerate(_GROUPS)}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _ORDER.get(item.path.stem, len(_ORDER)))
    for item in items:
        if item.path.stem in _GROUPS:
            item.add_marker(pytest.mark.xdist_group(_GROUPS[item.path.stem]))


@pytest.fixture
def draws() -> torch.Generator:
    return torch.Generator().manual_seed(20230917)


@pytest.fixture(params=[_KERNEL_DEVICE])
def kernel_device(request: pytest.FixtureRequest) -> torch.device:
    """Where Triton kernels run in this session: compiled on the GPU, or interpreted on the CPU."""
    return torch.device(request.param, 0) if request.param == "cuda" else torch.device("cpu")


@pytest.fixture(scope="session")
def supervised_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has just left the supervised phase."""
    # Imported here, and not before it is settled where kernels run.
    from small_run import give_weights, start

    from sector.engine.run.phases import Phases

    run, config = start(tmp_path_factory.mktemp("runs") / "supervised")
    give_weights(run)
    for _ in Phases(run, config).supervise():
        pass
    return run.root


@pytest.fixture
def fresh_run(supervised_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(supervised_run, tmp_path / "run", symlinks=True))


@pytest.fixture(scope="session")
def finished_run(supervised_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run gone on to its end, never interrupted."""
    from sector.engine.run.directory import RunDir
    from sector.engine.selfplay import self_play

    root = Path(shutil.copytree(supervised_run, tmp_path_factory.mktemp("runs") / "finished", symlinks=True))
    run = RunDir(root)
    for _ in self_play(run, run.read_config()):
        pass
    return root
