"""The ids of a model that an engine treats specially: ends, padding, and the lane of noise of each id.

Prompts that are shorter than others of their batch begin with padding, which engines leave out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sector.engine.language import tokens
from sector.engine.models.checkpoint import Model
from sector.engine.models.text import TextModel


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Special ids and noise lanes of a model.

    ends: ids that end a completion.
    pad: the id of padding.
    lanes: `[V]` the lane of the random stream (`Sampling.gumbel`) that each id uses.
    num_lanes: the number of lanes.
    """

    ends: list[int]
    pad: int
    lanes: Tensor
    num_lanes: int


def vocabulary(model: Model) -> Vocabulary:
    """Return the vocabulary of a model. Each class of our own model has a lane, and each id of a text model."""
    if isinstance(model, TextModel):
        alphabet = model.alphabet
        # The random stream yields lanes in groups of four.
        num_lanes = alphabet.size + -alphabet.size % 4
        return Vocabulary(list(alphabet.ends), alphabet.pad, torch.arange(alphabet.size), num_lanes)
    lanes = tokens.class_of(torch.arange(model.config.vocab_size))
    return Vocabulary(tokens.eos_ids(), tokens.PAD_ID, lanes, tokens.NUM_CLASSES)
