"""Checkpoints: weights, config and tokenizer in Hugging Face form, written aside and renamed, and their fingerprint."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import safetensors.torch

from sector.engine.errors import Diverged, InputError
from sector.engine.model import SectorConfig, SectorForCausalLM, best_device
from sector.engine.tokenizer import SectorTokenizer

WEIGHTS = "model.safetensors"


def weights_sha256(model: SectorForCausalLM) -> str:
    """Hex digest of the weights, equal to the sha256 of a checkpoint's model.safetensors."""
    return hashlib.sha256(weights_bytes(model)).hexdigest()


def save_checkpoint(model: SectorForCausalLM, path: Path) -> None:
    """Write a checkpoint directory, replacing one of the same name.

    InputError if it cannot be written, Diverged if a weight is no number.
    """
    check_finite(model)
    aside = path.with_name(f".{path.name}.partial")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        # What `save_pretrained` writes, without its progress bar.
        (aside / WEIGHTS).write_bytes(weights_bytes(model))
        model.config.save_pretrained(aside)
        SectorTokenizer(digit_order=model.config.digit_order).save_pretrained(aside)
        replace_directory(aside, path)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise InputError(f"cannot write the checkpoint {path}: {error.strerror or error}") from error


def check_finite(model: SectorForCausalLM) -> None:
    """Raises Diverged if a weight is not finite: such weights are never saved."""
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise Diverged(f"{name} holds a value that is no number")


def load_checkpoint(path: Path) -> SectorForCausalLM:
    """Load a checkpoint directory, or a run directory's best checkpoint, onto the best device.

    InputError names what is wrong.
    """
    path = resolve_checkpoint(path)
    try:
        config = _read_config(path)
        with safetensors.safe_open(path / WEIGHTS, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        model = SectorForCausalLM(config)
        model.load_state_dict(state)
    except Exception as error:
        # Whatever transformers and torch make of a config that someone else wrote: they check by many kinds of error.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} is not a readable sector checkpoint ({reason}); restore it or train again") from error
    # transformers declares `to` as a function of the class.
    return model.to(best_device()).eval()  # type: ignore[arg-type]


def weights_bytes(model: SectorForCausalLM) -> bytes:
    """The content of model.safetensors."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return safetensors.torch.save(state, metadata={"format": "pt"})


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
