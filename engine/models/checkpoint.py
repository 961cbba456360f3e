"""Load, save and check checkpoints: weights, config and tokenizer in Hugging Face form, written aside and renamed."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import safetensors.torch
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedTokenizerBase

from sector.engine.errors import Diverged, InputError, made_again
from sector.engine.files import in_utf8
from sector.engine.language.layout import Layout
from sector.engine.models.adapter import ADAPTER, ADAPTER_WEIGHTS, AdaptedModel
from sector.engine.models.bound import LEARNED, WEIGHTS, check_learned, learned_json
from sector.engine.models.pretrained import open_pretrained
from sector.engine.models.sector import SectorForCausalLM, best_device
from sector.engine.models.sector_config import SectorConfig
from sector.engine.models.shelf import from_shelf, shelf_names
from sector.engine.models.text import TextModel
from sector.engine.tasks import DEFAULT, find_task
from sector.engine.tasks.task import Task

# Files of a sector checkpoint that can be made again from its weights and config.
_DERIVED = ("chat_template.jinja", "generation_config.json", LEARNED, "tokenizer_config.json")

# Key of config.json that names the task: that of a model of text (`TextModel.learns`), and of sector's own.
_TASK_KEYS = {False: "sector_task", True: "task"}

# A model that the loop trains: sector's own, or a pretrained model of text.
Model = SectorForCausalLM | TextModel


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A trained model in memory, which several calls can use.

    source: the path that it was loaded from: a checkpoint, a run directory, or the name of shipped weights.
    path: directory of the checkpoint.
    model: the weights; a causal model of transformers, or a `TextModel`.
    """

    source: Path
    path: Path
    model: Model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the model."""
        return self.model.tokenizer

    @property
    def task(self) -> str:
        """Name of the task that the model has learned."""
        return task_and_layout(self.model)[0].name

    @property
    def weights_sha256(self) -> str:
        """Digest of the weights, as in records."""
        return weights_sha256(self.model)


def open_trained(model: Path | TrainedModel) -> TrainedModel:
    """Load the model of a path; return a loaded one as it is. Raise InputError if it cannot be loaded."""
    if isinstance(model, TrainedModel):
        return model
    return TrainedModel(model, resolve_checkpoint(model), load_checkpoint(model))


def source_of(model: Path | TrainedModel) -> Path:
    """Return the path that a model was loaded from, or is to be loaded from."""
    return model.source if isinstance(model, TrainedModel) else model


def trained_parameters(model: Model) -> list[nn.Parameter]:
    """Return the parameters that training changes."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def weights_sha256(model: Model) -> str:
    """Return the hex digest of the weights, equal to the sha256 of a checkpoint's model.safetensors."""
    return hashlib.sha256(weights_bytes(model)).hexdigest()


def save_checkpoint(model: Model, path: Path) -> None:
    """Write a checkpoint directory; an older one of the same name is replaced.

    A model with an adapter is written as a plain one, with its adapter in the folder `adapter`.
    Raise InputError if it cannot be written, and Diverged if a weight is not finite.
    """
    check_finite(model)
    trained, model = model, model.plain()
    aside = path.with_name(f".{path.name}.partial")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        # The content is that of `save_pretrained`, which would print a progress bar.
        content = weights_bytes(model)
        (aside / WEIGHTS).write_bytes(content)
        (aside / LEARNED).write_text(learned_json(model.config, content), encoding="utf-8")
        model.config.save_pretrained(aside)
        if isinstance(model, SectorForCausalLM):
            model.generation_config.save_pretrained(aside)
        model.tokenizer.save_pretrained(aside)
        if isinstance(trained, AdaptedModel):
            trained.save_adapter(aside / ADAPTER)
        replace_directory(aside, path)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise InputError(f"cannot write the checkpoint {path}: {error.strerror or error}") from error


def check_finite(model: Model) -> None:
    """Raise Diverged if a weight is not finite; such weights are never saved."""
    for name, tensor in model.trained_weights().items():
        if not tensor.isfinite().all():
            raise Diverged(f"{name} holds a value that is no number")


def load_checkpoint(path: Path) -> Model:
    """Load a checkpoint directory, or the best checkpoint of a run directory, onto the best device.

    Its config.json tells whether it is a sector model or a model of text. Raise InputError if it cannot be loaded.
    """
    path = resolve_checkpoint(path)
    model = _load_sector(path) if _is_sector(path) else open_pretrained(path)
    check_learned(path, model.config)
    # transformers declares `to` in a form that mypy cannot call.
    return model.to(best_device()).eval()  # type: ignore[arg-type]


def load_sector(path: Path) -> SectorForCausalLM:
    """Load a checkpoint as a sector model. Raise InputError if it is a model of text."""
    model = load_checkpoint(path)
    if isinstance(model, TextModel):
        raise InputError(f"{path} is a model of text; this needs one of sector's own")
    return model


def check_checkpoint(path: Path, has_adapter: bool = False) -> None:
    """Raise InputError if the config cannot be read or the weights are truncated; the weights are not loaded.

    has_adapter: whether there must be an adapter, too.
    """
    try:
        if _is_sector(path):
            _read_config(path)
        # Opening compares the length of the file with its header.
        for name in (WEIGHTS, ADAPTER_WEIGHTS) if has_adapter else (WEIGHTS,):
            with open_tensors(path / name):
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
def open_tensors(path: Path) -> Iterator[safetensors.safe_open]:
    """Open a safetensors file of any name."""
    with in_utf8(path) as name, safetensors.safe_open(name, framework="pt") as tensors:
        yield tensors


def _unreadable(path: Path, error: Exception) -> InputError:
    """Return the error of a checkpoint that transformers or torch cannot load, with its reason and the mend."""
    reason = " ".join(str(error).split()) or type(error).__name__
    is_of_run = path.parent.name == "checkpoints"
    mend = made_again(path.parent.parent) if is_of_run else "restore it or train again"
    return InputError(f"{path} is not a readable sector checkpoint ({reason}); {mend}")


def _is_sector(path: Path) -> bool:
    """Return whether a checkpoint is a sector model; it is one unless its config names another known model."""
    kind = _config_values(path).get("model_type")
    return not isinstance(kind, str) or kind not in CONFIG_MAPPING or kind == SectorConfig.model_type


def _config_values(path: Path) -> dict[str, object]:
    """Return the content of the config.json of a checkpoint; none if it cannot be read, which loading explains."""
    try:
        values = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def weights_bytes(model: Model) -> bytes:
    """Return the content of model.safetensors."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.weights().items()}
    return safetensors.torch.save(state, metadata={"format": "pt"})


def checkpoint_files(model: Model) -> dict[str, bytes]:
    """Return the files of a checkpoint by name: a model that another machine can load (`model_of_files`)."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        save_checkpoint(model.plain(), path)
        return {file.name: file.read_bytes() for file in path.iterdir()}


def model_of_files(files: Mapping[str, bytes]) -> Model:
    """Load the model of `checkpoint_files` onto the best device."""
    with TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        return load_checkpoint(Path(folder))


def complete_checkpoint(path: Path) -> list[str]:
    """Write the missing files of a sector checkpoint that follow from the others; return their names."""
    if not _is_sector(path):
        return []
    missing = [name for name in _DERIVED if not (path / name).exists()]
    if missing:
        save_checkpoint(load_checkpoint(path), path)
    return missing


def _read_config(path: Path) -> SectorConfig:
    """Read the config of a sector checkpoint. Raise OSError, ValueError or TypeError if it cannot be read as one."""
    values = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if not isinstance(values, dict) or values.get("model_type") != SectorConfig.model_type:
        raise ValueError("config.json is not that of a sector model")
    return SectorConfig(**values)


def resolve_checkpoint(path: Path) -> Path:
    """Return the checkpoint directory of a path: itself, the best of a run, or the shipped weights of that name.

    Raise InputError if there is none.
    """
    if not path.is_dir():
        if shipped := from_shelf(path):
            return shipped
        raise InputError(
            f"no such directory: {path}; give a checkpoint, a run directory, or the name of weights that ship with "
            f"sector ({', '.join(shelf_names())})"
        )
    if (path / "checkpoints").is_dir():
        path = path / "checkpoints" / "best"
    for name in ("config.json", WEIGHTS):
        if not (path / name).is_file():
            raise InputError(f"{path} holds no {name}; give a checkpoint, or a run directory with a best one")
    return path


def replace_directory(aside: Path, path: Path) -> None:
    """Rename `aside` to `path`; an older `path` is moved away first, since a rename cannot replace a full directory."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.rename(path, old)
    os.rename(aside, path)
    shutil.rmtree(old, ignore_errors=True)


def learned_task(path: Path) -> str:
    """Return the name of the task that a checkpoint, a run's best checkpoint or shipped weights have learned.

    No weights are loaded, and the task need not be known here. Raise InputError if there is no such model.
    """
    path = resolve_checkpoint(path)
    return str(_config_values(path).get(_TASK_KEYS[_is_sector(path)], DEFAULT))


def task_and_layout(model: Model) -> tuple[Task, Layout]:
    """Return the task and the plain layout of a model.

    Raise InputError for a model of text if the task has no text form.
    """
    if isinstance(model, TextModel):
        task = find_task(model.task)
        if model.layout == "hints":
            return task, task.hint_layout(model.alphabet_with(task.text_marks, letters=True), model.digit_order)
        return task, task.text_layout(model.alphabet_with(task.text_marks), model.digit_order)
    task = find_task(model.config.task)
    return task, task.layout(model.config.digit_order)
