"""Text models: a causal model of transformers and its tokenizer, in the form that the loop uses."""

from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from sector.engine.language.alphabet import CHARACTERS, Alphabet, read_alphabet, with_letters, with_marks
from sector.engine.tasks import DEFAULT

# Kinds of attention layers in a config's `layer_types`. One sees the last tokens only.
FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"

# Keys in config.json of the task, the form of problems and the order of digits.
_TASK, _LAYOUT, _ORDER = "sector_task", "sector_layout", "sector_digit_order"


class TextModel(nn.Module):
    """A network that reads and writes text, with its tokenizer.

    network: a causal model of transformers.
    tokenizer: the network's tokenizer.
    alphabet: ids of the characters of problems.
    name: name in messages.
    """

    def __init__(self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        """Join a network and its tokenizer. Raise InputError if the tokenizer does not write each digit as one token.

        name: name of the model in messages.
        """
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        size = network.config.get_text_config().vocab_size
        self.alphabet = read_alphabet(tokenizer, name, size, _ends(network, tokenizer))
        self.name = name
        self._alphabets: dict[tuple[tuple[str, ...], bool], Alphabet] = {}
        # Settings for chats, such as penalties, would change greedy decoding.
        network.generation_config = GenerationConfig()
        self.eval()

    @property
    def config(self) -> PreTrainedConfig:
        """Config of the network."""
        return self.network.config

    @property
    def task(self) -> str:
        """Name of the task that the model learns; addition if it has learned none of ours."""
        return str(getattr(self.config, _TASK, DEFAULT))

    @property
    def layout(self) -> str:
        """Name of the form in which it reads problems: `plain` or `hints`."""
        return str(getattr(self.config, _LAYOUT, "plain"))

    @property
    def digit_order(self) -> str:
        """Order in which it reads digits: `msd` or `lsd`."""
        return str(getattr(self.config, _ORDER, "msd"))

    def learns(self, task: str, layout: str = "plain", digit_order: str = "msd") -> None:
        """Set the task and the form of its problems in the config, which a checkpoint keeps."""
        setattr(self.config, _TASK, task)
        # Only differences: a model may have learned another form before.
        if layout != self.layout:
            setattr(self.config, _LAYOUT, layout)
        if layout != "plain" or digit_order != self.digit_order:
            setattr(self.config, _ORDER, digit_order)

    def alphabet_with(self, marks: tuple[str, ...], letters: bool = False) -> Alphabet:
        """Return the alphabet with the marks of a task, and with letters if the layout needs them.

        Raise InputError if the tokenizer does not keep them apart.
        """
        others = tuple(mark for mark in marks if len(mark) > 1 or mark not in CHARACTERS)
        if (others, letters) not in self._alphabets:
            # A step of training asks for each shard.
            alphabet = with_marks(self.alphabet, self.tokenizer, self.name, others)
            self._alphabets[others, letters] = (
                with_letters(alphabet, self.tokenizer, self.name) if letters else alphabet
            )
        return self._alphabets[others, letters]

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.network.dtype

    def weights(self) -> dict[str, Tensor]:
        """Return each weight once, by its name in the network. Tied matrices are one weight, under the first name."""
        weights: dict[str, Tensor] = {}
        seen: set[int] = set()
        for name, tensor in self.network.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                weights[name] = tensor.detach()
        return weights

    def trained_weights(self) -> dict[str, Tensor]:
        """Return each weight that training changes once, by its name: all."""
        return self.weights()

    def plain(self) -> "TextModel":
        """Return the model as engines run it: as it is."""
        return self

    def matrices(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the trained matrices of the blocks, and all other trained parameters except vectors."""
        ends = (self.network.get_input_embeddings(), self.network.get_output_embeddings())
        outer = {id(end.weight) for end in ends if end is not None}
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad and parameter.ndim > 1]
        inner: list[Tensor] = [parameter for parameter in trained if parameter.ndim == 2 and id(parameter) not in outer]
        return inner, [parameter for parameter in trained if parameter.ndim > 2 or id(parameter) in outer]

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode. Shards run in parallel, so the draws of dropout would depend on their order."""
        return super().train(False)

    def forward(self, input_ids: Tensor, **arguments: Any) -> Any:
        """Return the network's output for ids `[B, T]`; its `logits` are `[B, T, V]`."""
        return self.network(input_ids=input_ids, **arguments)


def attention_windows(network: PreTrainedModel) -> dict[str, int | None]:
    """Return the window of each kind of attention layer, in tokens; None sees all."""
    config = network.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or [SLIDING_ATTENTION]
    return {kind: window if kind == SLIDING_ATTENTION else None for kind in sorted(set(kinds))}


def _ends(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end a text: those of the config and that of the tokenizer, which may differ."""
    ids = network.config.get_text_config().eos_token_id
    config_ids = ids if isinstance(ids, list) else [ids]
    return [index for index in (*config_ids, tokenizer.eos_token_id) if isinstance(index, int)]
