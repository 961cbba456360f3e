"""The start of vLLM in this process: check the installation, set its arguments, and translate its errors."""

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
from typing import TYPE_CHECKING, Any, TypeGuard

import safetensors.torch
import torch
from torch import Tensor

from sector.engine.config import VllmConfig
from sector.engine.errors import InputError
from sector.engine.language.tokens import row_length
from sector.engine.models.bound import WEIGHTS
from sector.engine.models.checkpoint import Model, save_checkpoint, task_and_layout
from sector.engine.models.text import TextModel
from sector.engine.models.wide_heads import wide_weights, with_wide_heads
from sector.engine.samplers.vllm import register
from sector.engine.samplers.vllm.drafts import DraftProposer, takes_drafts
from sector.engine.samplers.vllm.own_classes import own_classes

if TYPE_CHECKING:
    from vllm import LLM

# Releases 0.N that were tested on a CPU; 0.20 takes no drafts. The tests run with the one that `make vllm` installs.
# The build of 0.24 for CPUs does not start with drafts.
TESTED = (20, 28, 31, 32)
_MEND = "run `make vllm`, or choose --engine native"

# Tokens of a block of the cache: the minimum of vLLM's attention on a CPU, so that short prefixes are shared.
BLOCK = 32

# Tokens of a step. Fewer split a batch of drafts into several steps.
_STEP_TOKENS = 1 << 15

# Bytes of logits in a step of a text model, for which vLLM's own sampler chooses.
_LOGITS_BYTES = 1 << 28

# Heads of our own models are padded to a multiple of this, which the attention on a CPU takes.
_HEAD_MULTIPLE = 32

# Environment variables to set before vLLM is imported; the user's own values win.
_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    # The commands write data to stdout.
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
    # The process also trains, so vLLM may not bind its threads to cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    # On a GPU, Triton's products of float32 would round to TF32, and greedy tokens would differ.
    "TRITON_F32_DEFAULT": "ieee",
}


def _speculative_config(draft_tokens: int) -> dict[str, Any] | None:
    """Return vLLM's settings of speculative decoding with drafts of at most this many tokens."""
    proposer = f"{DraftProposer.__module__}.{DraftProposer.__qualname__}"
    config = {"method": "custom_class", "model": proposer, "num_speculative_tokens": draft_tokens}
    return config if draft_tokens else None


# For each of our settings, the name and the value of vLLM's argument.
ARGUMENTS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "dtype": ("dtype", str),
    "compiled": ("enforce_eager", lambda compiled: compiled != "on"),
    "max_digits": ("max_model_len", row_length),
    "rows": ("max_num_seqs", int),
    "memory_mib": ("kv_cache_memory_bytes", lambda mib: mib << 20),
    "prefix_caching": ("enable_prefix_caching", bool),
    "draft_tokens": ("speculative_config", _speculative_config),
}

# Engines are kept until the process ends, since destroying one tears down state that all of them share.
_started: "list[LLM]" = []


def padded_head(size: int) -> int:
    """Return the size of a head in vLLM's cache; the added components are zero, which changes no product."""
    return size + -size % _HEAD_MULTIPLE


def check_installed() -> None:
    """Raise InputError, naming the mend, unless a tested release of vLLM is installed."""
    installed = _version()
    if installed is None or find_spec("vllm") is None:
        raise InputError(f"the engine vllm needs vLLM, which is not installed; {_MEND}")
    if installed.split(".")[:2] not in (["0", str(minor)] for minor in TESTED):
        tested = ", ".join(f"0.{minor}" for minor in TESTED)
        raise InputError(f"the engine vllm needs vLLM {tested}, not {installed}; {_MEND}")


def start(model: Model, settings: VllmConfig) -> "LLM":
    """Start a vLLM with the model's weights. Raise InputError if it cannot start."""
    check_installed()
    arguments = engine_arguments(model, settings)
    _check_memory(model, settings, arguments)
    served = with_wide_heads(model) if _needs_wide_heads(model) else model
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # vLLM runs in this process: new weights need no transfer to another one, and drafts and sampler are at hand.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    set_num_threads = torch.set_num_threads
    try:
        with _quiet(), tempfile.TemporaryDirectory(prefix="sector-") as folder:
            from vllm import LLM
            from vllm.v1.executor.uniproc_executor import UniProcExecutor

            # By its class: old releases for CPUs read its name as that of another executor.
            arguments["distributed_executor_backend"] = UniProcExecutor
            # vLLM finds the entry point of an installed package only, and a checkout can run without one.
            register()
            if not takes_drafts():
                arguments["speculative_config"] = None
            _save(served, Path(folder) / "model")
            with own_classes(served) as classes:
                _started.append(LLM(model=str(Path(folder) / "model"), **arguments))
            _started[-1].collective_rpc(classes.apply)
            return _started[-1]
    except Exception as error:
        raise InputError(
            f"vLLM does not start ({one_line(error)}); free memory or lower vllm.memory_mib or vllm.rows"
        ) from error
    finally:
        # On a CPU vLLM replaces this function, so that the number of threads cannot change; training changes it.
        torch.set_num_threads = set_num_threads


def vllm_weights(model: Model) -> dict[str, Tensor]:
    """Return the weights for vLLM: a tied matrix under both of its names, since vLLM would reload only one of them."""
    state = wide_weights(model) if _needs_wide_heads(model) else model.network.state_dict()
    return {name: tensor.detach() for name, tensor in state.items()}


def _needs_wide_heads(model: Model) -> TypeGuard[TextModel]:
    """Return whether vLLM runs a model of text on a CPU, which takes some sizes of head. Ours pads its heads itself."""
    return isinstance(model, TextModel) and model.device.type == "cpu"


def _save(model: Model, path: Path) -> None:
    """Save a checkpoint for vLLM, with tied weights as separate tensors."""
    save_checkpoint(model, path)
    # Requests name the ids that end them; vLLM would add those of this file to every request again.
    (path / "generation_config.json").write_text("{}", encoding="utf-8")
    if not isinstance(model, TextModel):
        return
    config = path / "config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(values | {"tie_word_embeddings": False}), encoding="utf-8")
    # Copies, since safetensors does not save two tensors that share memory.
    state = {name: tensor.clone() for name, tensor in vllm_weights(model).items()}
    (path / WEIGHTS).write_bytes(safetensors.torch.save(state, metadata={"format": "pt"}))


def one_line(error: Exception) -> str:
    """Return the type of an error of vLLM, and the first line of its message with information."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if "validation error" not in line]
    message = next((line for line in lines if line), "")
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def engine_arguments(model: Model, settings: VllmConfig) -> dict[str, Any]:
    """Return the arguments of `LLM`."""
    on_gpu = model.device.type == "cuda"
    values = settings.model_dump()
    if settings.compiled == "auto":
        values["compiled"] = "on" if on_gpu else "off"
    if settings.dtype == "model":
        values["dtype"] = str(model.dtype).removeprefix("torch.")
    arguments = {argument: translate(values[name]) for name, (argument, translate) in ARGUMENTS.items()}
    return {
        **arguments,
        # vLLM asks for no draft where a full one could exceed this length.
        "max_model_len": min(max_tokens(model, settings) + settings.draft_tokens, _positions(model)),
        "block_size": BLOCK,
        "max_num_batched_tokens": max(arguments["max_num_seqs"], _tokens_of_a_step(model)),
        # The share that must be free at the start. vLLM takes only weights and `memory_mib`, since a trainer uses the
        # same GPU.
        "gpu_memory_utilization": 0.5,
        # Else it takes an architecture that it runs by transformers for one that scores texts.
        "runner": "generate",
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        **_graphs(arguments, on_gpu),
    }


def _graphs(arguments: dict[str, Any], on_gpu: bool) -> dict[str, Any]:
    """Return the numbers of rows for which vLLM captures a step as a CUDA graph, if it captures any.

    By default it captures 51, none above 512 rows, where a step then waits for its launches.
    """
    if not on_gpu or arguments["enforce_eager"]:
        return {}
    rows = arguments["max_num_seqs"]
    powers = [1 << bits for bits in range(rows.bit_length())]
    return {"compilation_config": {"cudagraph_capture_sizes": sorted({*powers, *range(256, rows, 128), rows})}}


def max_tokens(model: Model, settings: VllmConfig) -> int:
    """Return the maximum length of a prompt with its completion."""
    task, layout = task_and_layout(model)
    problem = task.draw(settings.max_digits, 1, torch.Generator(), hard_share=0.0)
    completion = max(layout.answer_length(problem.size), layout.simplification_length(problem.size))
    # No prompt may exceed the positions of the model.
    return min(layout.prefix_ids(problem).shape[1] + 1 + completion, _positions(model))


def _positions(model: Model) -> int:
    positions: int = model.config.get_text_config().max_position_embeddings
    return positions


def _tokens_of_a_step(model: Model) -> int:
    if isinstance(model, TextModel):
        return min(_STEP_TOKENS, _LOGITS_BYTES // (torch.float32.itemsize * model.config.get_text_config().vocab_size))
    return _STEP_TOKENS


def _check_memory(model: Model, settings: VllmConfig, arguments: dict[str, Any]) -> None:
    """Raise InputError unless keys and values of one row of the longest problem fit. Text models are left to vLLM."""
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
    """Return the version of the installed vLLM, or None. Its build for CPUs has another package name."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Discard vLLM's output at the start, because progress is drawn on stderr, unless the user set a logging level."""
    if os.environ["VLLM_LOGGING_LEVEL"] != _ENVIRONMENT["VLLM_LOGGING_LEVEL"]:
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "wb") as null, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(null.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
