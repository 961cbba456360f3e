"""Completions that a layout writes of examples, and reads back."""

import torch
from torch import Tensor

from sector.engine.language.examples import Examples
from sector.engine.language.layout import Batch, Layout, Mode
from sector.engine.testing.promise import hold


def completions(layout: Layout, examples: Examples) -> dict[Mode, Tensor]:
    """Return the ids of the completions of each mode."""
    return {
        Mode.ANSWER: layout.answer_ids(examples.answers),
        Mode.THINK: layout.simplification_ids(examples.rest, examples.digit),
    }


def has_step(rest: Batch, digit: Tensor, examples: Examples) -> bool:
    """Return whether remaining problems and digits `[B]` are those of examples."""
    return rest.texts() == examples.rest.texts() and torch.equal(digit, examples.digit)


def hold_read_back(layout: Layout, examples: Examples) -> None:
    """Raise BrokenPromise if completions have another length, are not well-formed, or are not read back."""
    text, size, written = examples.problems.texts()[0], examples.problems.size, completions(layout, examples)
    lengths = {Mode.ANSWER: layout.answer_length(size), Mode.THINK: layout.simplification_length(size)}
    for mode, ids in written.items():
        hold(ids.shape[1] == lengths[mode], f"{mode.name} ids of {text} are {ids.shape[1]}, not {lengths[mode]}")
        hold(all(layout.is_well_formed(ids, mode)), f"the {mode.name} ids of {text} are not well-formed")
    answers, valid = layout.parse_answers(written[Mode.ANSWER], size)
    hold(bool(valid.all()) and torch.equal(answers, examples.answers), f"the answer to {text} is not read back")
    steps = layout.parse_simplifications(written[Mode.THINK], size)
    hold(
        bool(steps.valid.all()) and has_step(steps.rest, steps.digit, examples),
        f"the step from {text} is not read back",
    )
