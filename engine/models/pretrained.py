"""Pretrained models: a directory in Hugging Face form, or a GGUF file, opened without running its code.

Weights are read as float32 from any type. A directory must hold safetensors. transformers reads GGUF and turns it back
into plain matrices; the precision that quantisation lost stays lost.
"""

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from sector.engine.errors import InputError, first_line
from sector.engine.models.text import TextModel

GGUF = ".gguf"


def open_pretrained(path: Path) -> TextModel:
    """Open a text model from a directory or a GGUF file, on the CPU. Raise InputError naming its fault."""
    if path.is_dir():
        return TextModel(*_read(path, path), str(path))
    if not path.is_file() or path.suffix != GGUF:
        raise InputError(
            f"{path} is no directory and no {GGUF} file; give a model in Hugging Face form, or a GGUF file"
        )
    if missing := [name for name in ("gguf", "accelerate") if find_spec(name) is None]:
        raise InputError(f"reading {path} needs {' and '.join(missing)}; pip install 'sector-lm[gguf]'")
    network, tokenizer = _read(path, path.parent, gguf_file=path.name)
    # transformers does not read this flag of the file.
    tokenizer.add_bos_token = _adds_start(path)
    return TextModel(network, tokenizer, str(path))


def _read(path: Path, folder: Path, **gguf: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read the network and the tokenizer of a folder, or of its file `gguf_file`. Raise InputError if that fails.

    path: path of the model in messages.
    """
    arguments: dict[str, object] = {"local_files_only": True, **gguf}
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **arguments)
            # transformers annotates the result without `output_loading_info` only.
            opened: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                **arguments,
            )
    except Exception as error:
        # transformers raises many kinds of error on bad files.
        reason = first_line(error)
        raise InputError(f"{path} is not a causal model that transformers reads ({reason})") from error
    network, loading = opened
    if lacking := loading["missing_keys"]:
        raise InputError(f"{path} lacks weights ({min(lacking)}); restore it, or choose another model")
    return _plain(network), tokenizer


def _plain(network: PreTrainedModel) -> PreTrainedModel:
    """Return the network with a config of its weights as they are now, plain matrices."""
    config = network.config
    if getattr(config, "quantization_config", None):
        del config.quantization_config
    config.architectures = [type(network).__name__]
    return network


def _adds_start(path: Path) -> bool:
    """Return whether a GGUF file asks for the start-of-text token in front of every text."""
    from gguf import GGUFReader

    field = GGUFReader(path).get_field("tokenizer.ggml.add_bos_token")
    return bool(field and field.contents())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' progress bars and advice within a context."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # The progress bar of GGUF ignores these settings.
        with redirect_stderr(StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
