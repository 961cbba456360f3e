"""Models of text small enough for a test, random, with tokenizers made here."""

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

from sector.engine.language.alphabet import CHARACTERS
from sector.engine.models.text import TextModel

# All that tasks of the package ask of a tokenizer.
MARKS = string.digits + "+-*/=>|,;:.()" + string.ascii_lowercase + " \n"
# How byte-level tokenizers write it.
NEWLINE = "\u010a"

_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    # Larger than usual, so that rows differ and end at different lengths.
    "initializer_range": 0.25,
}


def character_tokenizer(characters: str = CHARACTERS, start: bool = False) -> PreTrainedTokenizerFast:
    """A token a character. start: put a mark of its own in front of every text."""
    names = ["<pad>", "<unk>", "<s>", "</s>", *characters]
    backend = Tokenizer(WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = Fuse()
    if start:
        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", names.index("<s>"))])
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Of the class that transformers takes for every Qwen2, without a merge."""
    names = ["<|endoftext|>", *(NEWLINE if name == "\n" else name for name in CHARACTERS)]
    return Qwen2Tokenizer(vocab={name: index for index, name in enumerate(names)}, merges=[])


def merging_tokenizer(
    pattern: str = r"\d+|[^\d]", text: str = "123 12 123 23 456 45 99 00 10"
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer like GPT-2's. It merges characters of `text` within matches of `pattern`."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = Split(Regex(pattern), "isolated")
    backend.train_from_iterator(
        [text] * 10, BpeTrainer(vocab_size=300, initial_alphabet=sorted(CHARACTERS), show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="0")


def small_text_model(
    kind: str = "llama", seed: int = 1, start: bool = False, characters: str = CHARACTERS, **overrides: Any
) -> TextModel:
    """A Llama with separate, or a Qwen2 with tied embeddings. characters: those of the Llama's tokenizer."""
    tokenizer = character_tokenizer(characters, start) if kind == "llama" else qwen_tokenizer()
    sizes = _SIZES | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id} | overrides
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = (
            LlamaForCausalLM(LlamaConfig(**sizes, head_dim=32))
            if kind == "llama"
            else Qwen2ForCausalLM(Qwen2Config(**sizes, tie_word_embeddings=True))
        )
    return TextModel(network, tokenizer, f"the small {kind}")


def save_text_model(model: TextModel, path: Path) -> Path:
    """As its makers would publish it."""
    model.network.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    return path
