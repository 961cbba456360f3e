"""Prompts of random problems, and drafts of their completions that are right, wrong, or partly so."""

import torch
from torch import Tensor

from sector.engine.language import tokens
from sector.engine.language.operands import draw_problems
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.samplers.protocol import Branch


def prompts(count: int, digits: int) -> tuple[Tensor, list[Branch]]:
    """Prefixes of random problems, each in a variant of its own, for a simplification and a fast answer."""
    layout = PlaceLayout(variant=torch.arange(count) % tokens.NUM_SHIFTS)
    problems = draw_problems(digits, count, torch.Generator().manual_seed(count))
    think, answer = (layout.mark_ids(mode, count) for mode in (tokens.THINK, tokens.ANSWER))
    branches = [
        Branch(think, PlaceLayout().simplification_length(digits)),
        Branch(answer, PlaceLayout().answer_length(digits)),
    ]
    return layout.prefix_ids(problems), branches


def _other(ids: Tensor) -> Tensor:
    """Another token of the same place everywhere."""
    return torch.where(tokens.class_of(ids) == 4, ids + 1, tokens.NUM_LOCAL * tokens.place_of(ids) + 4)


def draft(kind: str, right: Tensor) -> Tensor | None:
    """Drafts of completions whose right ids are `right [B, length]`."""
    rows, length = right.shape
    right_until = torch.arange(rows).unsqueeze(1) % (length + 1)
    drafts = {
        "none": None,
        "right": right,
        "wrong": _other(right),
        "right_to_a_point": torch.where(torch.arange(length) < right_until, right, _other(right)),
        # Right to the end of the sequence, and digits where the padding belongs.
        "runs_on": torch.where(right == tokens.PAD_ID, tokens.NUM_LOCAL + 4, right),
        "short": right[:, :3],
        "empty": right[:, :0],
    }
    return drafts[kind]
