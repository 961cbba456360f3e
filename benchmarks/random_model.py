"""Write a model of text of a given shape with random weights, in the form of Hugging Face, for measurements.

    python -m sector.benchmarks.random_model FOLDER [--shape smollm2-135m]

Its tokenizer has a token per character, since that of a pretrained model comes with its weights only.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sector.engine.models.ordinary import character_tokenizer
from sector.engine.models.text import TextModel

# Keys of configs of transformers. The first is that of HuggingFaceTB/SmolLM2-135M; the other is for rehearsals.
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": True,
    },
    "rehearsal": {
        "model_type": "llama",
        "vocab_size": 2048,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    },
}


def random_model(shape: str) -> TextModel:
    """Return a model of a shape with random weights, always the same ones, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPES[shape], eos_token_id=2))
    return TextModel(made, character_tokenizer(), shape)


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    arguments = parser.parse_args()
    model = random_model(arguments.shape)
    model.network.save_pretrained(arguments.folder)
    model.tokenizer.save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
