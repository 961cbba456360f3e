"""What an engine must know of the ids of a model: which end a completion, which is padding, which noise each takes.

Prompts may begin with padding, where they are shorter than others of their batch; engines leave it out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sector.engine.language import tokens
from sector.engine.models.checkpoint import Model
from sector.engine.models.text import TextModel


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """ends: ids that end a completion. pad: what stands behind the end.

    lanes: `[V]` which number of a random stream (`Sampling.gumbel`) each id takes, of num_lanes.
    """

    ends: list[int]
    pad: int
    lanes: Tensor
    num_lanes: int


def vocabulary(model: Model) -> Vocabulary:
    """Of a model of ours the classes take a lane each; of one of text every id."""
    if isinstance(model, TextModel):
        alphabet = model.alphabet
        # A stream of random numbers comes in fours.
        num_lanes = alphabet.size + -alphabet.size % 4
        return Vocabulary(list(alphabet.ends), alphabet.pad, torch.arange(alphabet.size), num_lanes)
    lanes = tokens.class_of(torch.arange(model.config.vocab_size))
    return Vocabulary(tokens.eos_ids(), tokens.PAD_ID, lanes, tokens.NUM_CLASSES)
