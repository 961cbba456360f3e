"""Run the loop on a language model that is not ours: here a small Llama, made fresh, with a token per character.

A model of yours in the form of Hugging Face works in the same way: `--model DIRECTORY`. Its tokenizer must write each
digit as one token.
"""

import argparse
import string
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import sector
from sector import events

CHARACTERS = string.digits + "+-*/=>|,;:.() \n" + string.ascii_lowercase
# Trained for seconds: enough to see all events, too little to learn.
SMALL: dict[str, Any] = {
    "audit_samples": 4,
    "supervised": {"max_digits": 2, "cycle_steps": 8, "max_cycles": 1, "examples": 20},
    "round": {"candidates": 8, "cycle_steps": 2, "max_cycles": 1, "probe": 4},
}


def make_model(folder: Path) -> None:
    """Write a fresh Llama and its tokenizer."""
    names = ["<pad>", "<unk>", "</s>", *CHARACTERS]
    backend = Tokenizer(WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")  # type: ignore[assignment]
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(names), eos_token_id=2, **sizes)).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="model in the form of Hugging Face; a fresh one by default")
    parser.add_argument("--out", type=Path, default=Path("runs/own-model"), help="run directory")
    parser.add_argument("--until", type=int, default=7, help="digits at which the run is done")
    parser.add_argument("--small", action="store_true", help="train for seconds only")
    options = parser.parse_args()
    model = options.model or options.out.with_name(f"{options.out.name}-start")
    if not model.is_dir():
        make_model(model)
    settings = {**SMALL, "until": 2} if options.small else {"until": options.until}
    for event in sector.run(options.out, pretrained=model, **settings):
        match event:
            case events.TrainingStep(step=step, of=of, loss=loss) if step in (1, of) or step % 100 == 0:
                print(f"step {step:5} of {of}  loss {loss:.4f}  {'#' * round(10 * loss)}")
            case events.GoalMeasured(agreement=agreement):
                print(f"agreement one digit further: {agreement:.0%}")
            case events.PhaseAudited(metrics):
                print(f"after {metrics.digits} digits: accuracy {metrics.accuracy}")


if __name__ == "__main__":
    main()
