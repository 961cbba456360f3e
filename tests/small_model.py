"""A model small enough for the interpreter, whose sequences are worth comparing."""

import torch

from sector.engine.language import tokens
from sector.engine.language.operands import Problems
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.models.sector import SectorForCausalLM, new_model
from sector.engine.models.sector_config import SectorConfig
from sector.engine.training.supervised import label


def small_model(**overrides: int) -> SectorForCausalLM:
    """Untrained, but not flat; it ends some sequences early and lets others run on."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, **overrides}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = SectorForCausalLM(SectorConfig(**sizes, initializer_range=0.2))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.uniform_(0.5, 1.5)
            model.head.weight[tokens.EOS] *= 2.5
    return model


def model_that_answers_one_digit(**overrides: int) -> SectorForCausalLM:
    """Of any prompt: one 3, and the end."""
    model = small_model(num_hidden_layers=1, **overrides)
    with torch.no_grad():
        model.blocks[0].down.weight.zero_()
        model.blocks[0].attention.out.weight.zero_()
        model.norm.weight.fill_(1.0)
        # The stream is the embedding: marks point to the first digit, and digits to the end.
        model.embed.weight.zero_()
        model.embed.weight[tokens.ANSWER : tokens.PAD, 0] = 1.0
        model.embed.weight[:10, 1] = 1.0
        model.head.weight.zero_()
        model.head.weight[3, 0] = 1.0
        model.head.weight[tokens.EOS, 1] = 1.0
    return model


def model_that_knows(problems: list[str]) -> SectorForCausalLM:
    """These sums, and nothing else."""
    model = new_model("tiny", seed=0)
    rows = []
    for text in problems:
        examples = label(Problems.parse([text], max(len(operand) for operand in text.split("+")[:2])))
        prompt = PlaceLayout().prompt_ids(examples.problems, tokens.ANSWER)
        rows.append((prompt, PlaceLayout().answer_ids(examples.answers)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(60):
        optimizer.zero_grad()
        for prompt, answer in rows:
            labels = torch.cat([torch.full_like(prompt, -100), answer], dim=1)
            model(torch.cat([prompt, answer], dim=1), labels=labels).loss.backward()
        optimizer.step()
    return model.eval()
