"""Starting vLLM in this process: is it there, what it is told, and what its refusals mean."""

import json
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor

from sector.engine.config import VllmConfig
from sector.engine.errors import InputError
from sector.engine.language.tokens import row_length
from sector.engine.models.bound import WEIGHTS
from sector.engine.models.checkpoint import Model, save_checkpoint
from sector.engine.models.text import TextModel

if TYPE_CHECKING:
    from vllm import LLM

# First and first untested release; the tests ran with what `make vllm` installs.
TESTED = ((0, 32), (0, 33))
_MEND = "run `make vllm`, or choose --engine native"

# Tokens of a block of the cache: the fewest that vLLM's attention takes on a CPU, so that short prefixes are shared.
BLOCK = 32

# The attention on a CPU takes heads of these multiples only.
_HEAD_MULTIPLE = 32

# What it must be told before it is imported; a person's own settings win.
_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    # Data of ours goes to stdout.
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
    # Its threads are those of the process, which trains too.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
}

# Our settings in vLLM's words; there are no others.
ARGUMENTS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "dtype": ("dtype", str),
    "compiled": ("enforce_eager", lambda compiled: compiled != "on"),
    "max_digits": ("max_model_len", row_length),
    "rows": ("max_num_seqs", int),
    "memory_mib": ("kv_cache_memory_bytes", lambda mib: mib << 20),
    "prefix_caching": ("enable_prefix_caching", bool),
}

# Kept until the process ends: an engine that goes takes with it what all engines of the process share.
_started: "list[LLM]" = []


def padded_head(size: int) -> int:
    """Components that a head of `size` takes in vLLM's cache: zeros behind its own change no product."""
    return size + -size % _HEAD_MULTIPLE


def check_installed() -> None:
    """InputError, naming the mend, unless a vLLM is installed that this was tested with."""
    found = _version()
    if found is None or find_spec("vllm") is None:
        raise InputError(f"the engine vllm needs vLLM, which is not installed; {_MEND}")
    if not TESTED[0] <= tuple(int(part) for part in found.split(".")[:2]) < TESTED[1]:
        first, last = (".".join(map(str, bound)) for bound in TESTED)
        raise InputError(f"the engine vllm needs vLLM >={first},<{last}, not {found}; {_MEND}")


def start(model: Model, settings: VllmConfig) -> "LLM":
    """A vLLM with the model's weights. InputError where it cannot start."""
    check_installed()
    arguments = engine_arguments(model, settings)
    _check_memory(model, settings, arguments)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # In this process, so that new weights need no way to another one.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    set_num_threads = torch.set_num_threads
    try:
        with _quiet(), tempfile.TemporaryDirectory(prefix="sector-") as folder:
            from vllm import LLM

            _save(model, Path(folder) / "model")
            _started.append(LLM(model=str(Path(folder) / "model"), **arguments))
            return _started[-1]
    except Exception as error:
        raise InputError(
            f"vLLM does not start ({one_line(error)}); free memory or lower vllm.memory_mib or vllm.rows"
        ) from error
    finally:
        # vLLM forbids threads to change on a CPU; training lives on it.
        torch.set_num_threads = set_num_threads


def vllm_weights(model: Model) -> dict[str, Tensor]:
    """Weights as vLLM is given them: matrices that are tied twice, since it would reload only one of the two."""
    state = model.network.state_dict() if isinstance(model, TextModel) else model.state_dict()
    return {name: tensor.detach() for name, tensor in state.items()}


def _save(model: Model, path: Path) -> None:
    """A checkpoint for vLLM, with nothing tied."""
    save_checkpoint(model, path)
    if not isinstance(model, TextModel):
        return
    config = path / "config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(values | {"tie_word_embeddings": False}), encoding="utf-8")
    # Copies, since safetensors keeps nothing twice.
    state = {name: tensor.clone() for name, tensor in vllm_weights(model).items()}
    (path / WEIGHTS).write_bytes(safetensors.torch.save(state, metadata={"format": "pt"}))


def one_line(error: Exception) -> str:
    """What an error of vLLM is, and the line of it that says most."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if "validation error" not in line]
    said = next((line for line in lines if line), "")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def engine_arguments(model: Model, settings: VllmConfig) -> dict[str, Any]:
    """What vLLM is called with."""
    on_gpu = model.device.type == "cuda"
    values = settings.model_dump()
    if settings.compiled == "auto":
        values["compiled"] = "on" if on_gpu else "off"
    if settings.dtype == "model":
        values["dtype"] = str(model.dtype).removeprefix("torch.")
    renamed = {name: translate(values[ours]) for ours, (name, translate) in ARGUMENTS.items()}
    if isinstance(model, TextModel):
        # Lead and pads; and no more than it was made for.
        wanted = renamed["max_model_len"] + len(model.alphabet.lead)
        renamed["max_model_len"] = min(wanted, model.config.get_text_config().max_position_embeddings)
    return {
        **renamed,
        "block_size": BLOCK,
        # What must be free at the start; what it takes is weights and `memory_mib`. A trainer lives on the same GPU.
        "gpu_memory_utilization": 0.5,
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }


def _check_memory(model: Model, settings: VllmConfig, arguments: dict[str, Any]) -> None:
    """InputError unless keys and values of one row of the longest problem fit. What a model of text takes vLLM says."""
    if isinstance(model, TextModel):
        return
    config = model.config
    width = 2 * config.num_attention_heads * padded_head(config.head_dim) * config.num_hidden_layers
    itemsize = getattr(torch, arguments["dtype"]).itemsize
    needed = math.ceil(arguments["max_model_len"] / BLOCK) * BLOCK * width * itemsize
    if needed > arguments["kv_cache_memory_bytes"]:
        raise InputError(
            f"vllm.memory_mib = {settings.memory_mib} does not hold keys and values of one problem of "
            f"{settings.max_digits} digits, {math.ceil(needed / 2**20)} MiB; raise it, or lower vllm.max_digits"
        )


def _version() -> str | None:
    """Of the vLLM that is installed; the build for CPUs has a name of its own."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what vLLM says at a start off stderr, where progress is drawn, unless someone asked to hear it."""
    if os.environ["VLLM_LOGGING_LEVEL"] != _ENVIRONMENT["VLLM_LOGGING_LEVEL"]:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
