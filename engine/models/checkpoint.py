"""Checkpoints: weights, config and tokenizer in Hugging Face form, written aside and renamed, and their fingerprint."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedTokenizerBase

from sector.engine.errors import Diverged, InputError, made_again
from sector.engine.files import in_utf8
from sector.engine.language.layout import Layout
from sector.engine.models.bound import LEARNED, WEIGHTS, check_learned, learned_json
from sector.engine.models.pretrained import open_pretrained
from sector.engine.models.sector import SectorConfig, SectorForCausalLM, best_device
from sector.engine.models.text import TextModel
from sector.engine.models.tokenizer import SectorTokenizer
from sector.engine.tasks import find_task
from sector.engine.tasks.task import Task

# Files of a checkpoint of ours that follow from its weights and config.
_FOLLOWS = ("chat_template.jinja", "generation_config.json", LEARNED, "tokenizer_config.json")

# What the loop trains: a model of ours, or one of text.
Model = SectorForCausalLM | TextModel


def weights(model: Model) -> dict[str, Tensor]:
    """Every weight once, by its name in a checkpoint."""
    return model.weights() if isinstance(model, TextModel) else model.state_dict()


def weights_sha256(model: Model) -> str:
    """Hex digest of the weights, equal to the sha256 of a checkpoint's model.safetensors."""
    return hashlib.sha256(weights_bytes(model)).hexdigest()


def save_checkpoint(model: Model, path: Path) -> None:
    """Write a checkpoint directory, replacing one of the same name.

    InputError if it cannot be written, Diverged if a weight is no number.
    """
    check_finite(model)
    aside = path.with_name(f".{path.name}.partial")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        # What `save_pretrained` writes, without its progress bar.
        content = weights_bytes(model)
        (aside / WEIGHTS).write_bytes(content)
        (aside / LEARNED).write_text(learned_json(model.config, content), encoding="utf-8")
        model.config.save_pretrained(aside)
        if isinstance(model, SectorForCausalLM):
            model.generation_config.save_pretrained(aside)
        _tokenizer(model).save_pretrained(aside)
        replace_directory(aside, path)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise InputError(f"cannot write the checkpoint {path}: {error.strerror or error}") from error


def check_finite(model: Model) -> None:
    """Raises Diverged if a weight is not finite: such weights are never saved."""
    for name, tensor in weights(model).items():
        if not tensor.isfinite().all():
            raise Diverged(f"{name} holds a value that is no number")


def load_checkpoint(path: Path) -> Model:
    """Load a checkpoint directory, or a run directory's best checkpoint, onto the best device.

    Its config.json says whether it is ours or a model of text. InputError names what is wrong.
    """
    path = resolve_checkpoint(path)
    model = _load_sector(path) if _is_sector(path) else open_pretrained(path)
    check_learned(path, model.config)
    # transformers declares `to` as a function of the class.
    return model.to(best_device()).eval()  # type: ignore[arg-type]


def load_sector(path: Path) -> SectorForCausalLM:
    """A checkpoint of ours, for what only works with such a model. InputError if it is one of text."""
    model = load_checkpoint(path)
    if isinstance(model, TextModel):
        raise InputError(f"{path} is a model of text; this needs one of sector's own")
    return model


def check_checkpoint(path: Path) -> None:
    """InputError if the config cannot be read, or the weights are not whole; the weights are not loaded."""
    try:
        if _is_sector(path):
            _read_config(path)
        # The header says how long the file is; a truncated one is refused.
        with open_tensors(path / WEIGHTS):
            pass
    except Exception as error:
        raise _unreadable(path, error) from error


def _load_sector(path: Path) -> SectorForCausalLM:
    try:
        config = _read_config(path)
        with open_tensors(path / WEIGHTS) as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        model = SectorForCausalLM(config)
        model.load_state_dict(state)
    except Exception as error:
        raise _unreadable(path, error) from error
    return model


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file of any name."""
    with in_utf8(path) as name, safetensors.safe_open(name, framework="pt") as tensors:
        yield tensors


def _unreadable(path: Path, error: Exception) -> InputError:
    """Say what transformers and torch make of a file that someone else wrote: they check by many kinds of error."""
    reason = " ".join(str(error).split()) or type(error).__name__
    is_of_run = path.parent.name == "checkpoints"
    mend = made_again(path.parent.parent) if is_of_run else "restore it or train again"
    return InputError(f"{path} is not a readable sector checkpoint ({reason}); {mend}")


def _is_sector(path: Path) -> bool:
    """Is it a checkpoint of ours, or one that says nothing else?"""
    try:
        values = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    kind = values.get("model_type") if isinstance(values, dict) else None
    return not isinstance(kind, str) or kind not in CONFIG_MAPPING or kind == SectorConfig.model_type


def _tokenizer(model: Model) -> PreTrainedTokenizerBase:
    if isinstance(model, TextModel):
        return model.tokenizer
    return SectorTokenizer(digit_order=model.config.digit_order, task=model.config.task)


def weights_bytes(model: Model) -> bytes:
    """The content of model.safetensors."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in weights(model).items()}
    return safetensors.torch.save(state, metadata={"format": "pt"})


def complete_checkpoint(path: Path) -> list[str]:
    """Write what of a checkpoint is gone and follows from the rest; the names of those files."""
    if not _is_sector(path):
        return []
    lacking = [name for name in _FOLLOWS if not (path / name).exists()]
    if lacking:
        save_checkpoint(load_checkpoint(path), path)
    return lacking


def _read_config(path: Path) -> SectorConfig:
    """The config of a checkpoint. OSError, ValueError or TypeError if it is none of ours."""
    values = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if not isinstance(values, dict) or values.get("model_type") != SectorConfig.model_type:
        raise ValueError("config.json is not that of a sector model")
    return SectorConfig(**values)


def resolve_checkpoint(path: Path) -> Path:
    """The checkpoint directory that `path` means: itself, or a run directory's best. InputError if neither."""
    if not path.is_dir():
        raise InputError(f"no such directory: {path}; give a checkpoint or a run directory")
    if (path / "checkpoints").is_dir():
        path = path / "checkpoints" / "best"
    for name in ("config.json", WEIGHTS):
        if not (path / name).is_file():
            raise InputError(f"{path} holds no {name}; give a checkpoint directory or a run directory with a best one")
    return path


def replace_directory(aside: Path, path: Path) -> None:
    """Rename `aside` to `path`; an older `path` is moved away first, since a full directory cannot be renamed onto."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.rename(path, old)
    os.rename(aside, path)
    shutil.rmtree(old, ignore_errors=True)


def task_and_layout(model: Model) -> tuple[Task, Layout]:
    """The task and the layout, plain variant. InputError for a model of text if its task has none of text."""
    if isinstance(model, TextModel):
        task = find_task(model.task)
        return task, task.text_layout(model.alphabet)
    task = find_task(model.config.task)
    return task, task.layout(model.config.digit_order)
