"""A plain causal model of transformers with its tokenizer, as the loop takes models."""

from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from sector.engine.language.alphabet import read_alphabet
from sector.engine.tasks import DEFAULT

# The key in config.json.
_TASK = "sector_task"


class TextModel(nn.Module):
    """A network that reads and writes text, and what its ids mean.

    network: any causal model of transformers. tokenizer: its own. alphabet: what that makes of problems.
    """

    def __init__(self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        """name: what messages call it. InputError if the tokenizer does not write a digit as one token."""
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        size = network.config.get_text_config().vocab_size
        self.alphabet = read_alphabet(tokenizer, name, size, _ends(network, tokenizer))
        # What its makers set for chats, such as penalties, would change what is greedy.
        network.generation_config = GenerationConfig()
        self.eval()

    @property
    def config(self) -> PreTrainedConfig:
        return self.network.config

    @property
    def task(self) -> str:
        """The name of the task that it learns; addition if it has learned none of ours."""
        return str(self.config.to_dict().get(_TASK, DEFAULT))

    @task.setter
    def task(self, name: str) -> None:
        setattr(self.config, _TASK, name)

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    def weights(self) -> dict[str, Tensor]:
        """Every weight once, by its name in the network: matrices that are tied are one, under the first name."""
        kept: dict[str, Tensor] = {}
        known: set[int] = set()
        for name, tensor in self.network.state_dict(keep_vars=True).items():
            if id(tensor) not in known:
                known.add(id(tensor))
                kept[name] = tensor.detach()
        return kept

    def train(self, mode: bool = True) -> Self:
        """No dropout: shards are worked on side by side, and what it draws would depend on who comes first."""
        return super().train(False)

    def forward(self, input_ids: Tensor, **arguments: Any) -> Any:
        """Ids `[B, T]` -> what the network makes of them; its `logits [B, T, V]` are all that is asked for."""
        return self.network(input_ids=input_ids, **arguments)


def _ends(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What ends a text, by the config and by the tokenizer: they need not agree."""
    own = network.config.get_text_config().eos_token_id
    given = own if isinstance(own, list) else [own]
    return [index for index in (*given, tokenizer.eos_token_id) if isinstance(index, int)]
