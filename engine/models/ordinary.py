"""Ordinary transformers from scratch: models of text with an architecture of transformers, and a token per character.

The first layer of the presets has rotary positions and sees four tokens, so that a digit is known with its letter; the
others see all tokens and have no positions (NoPE: Kazemnejad et al. 2023, arXiv 2305.19466). With rotary positions over
all tokens a model of this size did not copy one digit more than it was taught, and without any it did so from some
seeds only (docs/research/log.md, 2026-11-27).
"""

import string
from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sector.engine.errors import InputError, first_line
from sector.engine.models.text import TextModel

_NAMES = ("<pad>", "<unk>", "</s>", *string.digits, *"+-*/=>|,;:.() \n", *string.ascii_letters)

# Keys of a config of transformers by preset.
TEXT_PRESETS: dict[str, dict[str, object]] = {
    "text-tiny": {
        "model_type": "smollm3",
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
    "text-base": {
        "model_type": "smollm3",
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
    },
}


def new_text_model(preset: str, seed: int, network: Mapping[str, Any]) -> TextModel:
    """Return a fresh model of text.

    preset: name in TEXT_PRESETS.
    seed: seed of the weights.
    network: keys of the config that replace those of the preset; with another `model_type` they replace all.

    Raise InputError if transformers does not make a causal model of the config.
    """
    keys = {**TEXT_PRESETS[preset], **network}
    is_preset = keys["model_type"] == TEXT_PRESETS[preset]["model_type"]
    ids = {"vocab_size": len(_NAMES), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2}
    try:
        keys = {**_local_first(keys["num_hidden_layers"]), **keys} if is_preset else dict(network)
        config = AutoConfig.for_model(**{"tie_word_embeddings": False, **keys, **ids})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # transformers raises many kinds of error on bad configs.
    except Exception as error:
        raise InputError(f"network: transformers does not make a causal model of it ({first_line(error)})") from error
    return TextModel(made, character_tokenizer(), f"the preset {preset}")


def _local_first(layers: Any) -> dict[str, object]:
    """Return the keys of a first layer with rotary positions in a window, and others without either."""
    return {
        "layer_types": ["sliding_attention", *["full_attention"] * (layers - 1)],
        "no_rope_layers": [1, *[0] * (layers - 1)],
        "use_sliding_window": True,
        "sliding_window": 4,
    }


def character_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer with a token per character."""
    backend = Tokenizer(WordLevel({name: index for index, name in enumerate(_NAMES)}, unk_token="<unk>"))
    backend.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    # Without it a server shows tokens with spaces between them.
    backend.decoder = Fuse()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)
