"""Adapters of pretrained models (LoRA: Hu et al. 2021, arXiv 2106.09685): small matrices that are trained in the place
of the weights, through the package peft.

    adapter/adapter_config.json          form of the adapter, and the path of the model that it adapts
    adapter/adapter_model.safetensors    its weights, by peft's names

`PeftModel.from_pretrained(model, "adapter")` of peft reads the folder. peft is imported only if it is used.
"""

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sector.engine.errors import InputError
from sector.engine.models.text import TextModel
from sector.engine.seeding import generator

ADAPTER = "adapter"
ADAPTER_WEIGHTS = f"{ADAPTER}/adapter_model.safetensors"

# peft's name of an adapter without a name, and what it writes in front of the network's names.
_NAME, _PREFIX = "default", "base_model.model."


def check_peft() -> None:
    """Raise InputError if peft is not installed."""
    if find_spec("peft") is None:
        raise InputError("trainer.lora_rank needs peft; pip install 'sector-lm[lora]'")


def targets_of(network: PreTrainedModel, names: Sequence[str] = ()) -> list[str]:
    """Return the names of the matrices to adapt, in order; without `names` all matrices of the blocks.

    Raise InputError for a name that no matrix of the blocks has.
    """
    ends = (network.get_input_embeddings(), network.get_output_embeddings())
    known = sorted(
        {
            name.rpartition(".")[2]
            for name, module in network.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and not any(module is end for end in ends)
        }
    )
    if unknown := next((name for name in names if name not in known), None):
        raise InputError(f"trainer.lora_targets: the blocks have no matrix {unknown}; choose from {', '.join(known)}")
    return sorted(names) or known


class AdaptedModel(TextModel):
    """A pretrained model with an adapter, which is trained in the place of its weights.

    The network computes both; `plain` is the model that engines run.
    """

    def __init__(self, model: TextModel, rank: int, targets: Sequence[str], seed: int, base: Path) -> None:
        """Add an adapter that changes nothing yet to a model, whose network becomes part of this one.

        targets: names of the matrices to adapt; without any all matrices of the blocks.
        seed: seed of the adapter's weights.
        base: path of the model, which the adapter records.

        Raise InputError if peft is not installed, or as `targets_of`.
        """
        check_peft()
        from peft import LoraConfig, inject_adapter_in_model

        self._form = LoraConfig(
            r=rank,
            # The usual factor of 2, at any rank.
            lora_alpha=2 * rank,
            lora_dropout=0.0,
            target_modules=targets_of(model.network, targets),
            base_model_name_or_path=str(base),
            task_type="CAUSAL_LM",
        )
        with _undisturbed():
            network: Any = inject_adapter_in_model(self._form, model.network)
        super().__init__(network, model.tokenizer, model.name)
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad and ".lora_A." in name:
                _draw(parameter, generator(seed, "adapter", name))

    def trained_weights(self) -> dict[str, Tensor]:
        """Return the weights of the adapter, by peft's names."""
        return {
            _PREFIX + name.replace(f".{_NAME}.", "."): parameter.detach()
            for name, parameter in self.network.named_parameters()
            if parameter.requires_grad
        }

    def weights(self) -> dict[str, Tensor]:
        """Return each weight of the plain model once, by its name in the network."""
        return self.plain().weights()

    @torch.no_grad()
    def plain(self) -> TextModel:
        """Return a copy of the model in which the adapter is part of the matrices."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        network = copy.deepcopy(self.network)
        adapted = [(name, module) for name, module in network.named_modules() if isinstance(module, BaseTunerLayer)]
        for name, module in adapted:
            module.merge()
            network.set_submodule(name, module.get_base_layer())
        return TextModel(network, self.tokenizer, self.name)

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter in the form of peft."""
        form = copy.copy(self._form)
        form.inference_mode = True
        # peft keeps a set, whose order changes from process to process.
        form.target_modules = sorted(form.target_modules or ())
        form.save_pretrained(str(folder))
        content = {name: tensor.cpu().contiguous() for name, tensor in self.trained_weights().items()}
        (folder.parent / ADAPTER_WEIGHTS).write_bytes(safetensors.torch.save(content, metadata={"format": "pt"}))

    def load_adapter(self, checkpoint: Path) -> None:
        """Take over the adapter of a checkpoint. Raise InputError if it has none of this form."""
        path, weights = checkpoint / ADAPTER_WEIGHTS, self.trained_weights()
        try:
            saved = safetensors.torch.load(path.read_bytes())
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} is no readable adapter ({error}); restore it, or train again") from error
        if {name: tensor.shape for name, tensor in saved.items()} != {
            name: tensor.shape for name, tensor in weights.items()
        }:
            raise InputError(f"{path} is an adapter of another form; restore it, or train again")
        for name, tensor in weights.items():
            tensor.copy_(saved[name])


@torch.no_grad()
def _draw(parameter: Tensor, draws: torch.Generator) -> None:
    """Draw a first matrix of an adapter, as peft does."""
    parameter.copy_(nn.init.kaiming_uniform_(torch.empty(parameter.shape), a=math.sqrt(5), generator=draws))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep the global random stream as it is, and peft's advice away, within a context."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
