"""Does the engine have the trainer's weights? Log-probabilities of fixed prompts, its own against the trainer's.

Reloading is known to fail silently elsewhere: stale weights, weights of some layers only. What a trained model writes
is nearly certain under old and new weights alike, so the tokens it did not choose are compared too: the tails move with
every step of training.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sector.engine.errors import EngineFailed
from sector.engine.language.layout import Layout, Mode
from sector.engine.models.checkpoint import Model
from sector.engine.tasks.task import Task

# The most classes that may follow a token: ten digits, the end of a number, the end of a sequence.
CANDIDATES = 12

# The largest difference of log-probabilities that rounding explains, by what the engine computes in. Measured on
# trained weights: 2e-5 and 0.3; weights one round old are off by 10 and more.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1.0}

_DIGITS = (1, 7, 20)
_ROWS = 2
# Enough to read the cache many times; every token goes through all weights.
_MAX_LENGTH = 12


@dataclass(frozen=True, slots=True)
class Said:
    """What an engine said to a prompt: new ids, and for each position log-probabilities of some ids by id."""

    prompt: list[int]
    ids: list[int]
    logprobs: list[dict[int, float]]


def probe_prompts(task: Task, layout: Layout, max_digits: int) -> list[tuple[list[int], int]]:
    """Fixed prompts in both modes, at plain and shifted places, each with the most tokens of its completion."""
    prompts: list[tuple[list[int], int]] = []
    for digits in _DIGITS:
        if digits > max_digits:
            continue
        layout = layout.shifted(torch.arange(_ROWS) % layout.num_variants)
        problems = task.draw(digits, _ROWS, torch.Generator().manual_seed(digits), hard_share=0.5)
        size = problems.size
        lengths = {Mode.ANSWER: layout.answer_length(size), Mode.THINK: layout.simplification_length(size)}
        for mode, length in lengths.items():
            rows = layout.prompt_ids(problems, mode).tolist()
            prompts += [([each for each in row if each != layout.pad_id], min(length, _MAX_LENGTH)) for row in rows]
    return prompts


@torch.no_grad()
def check_weights(model: Model, said: list[Said], dtype: torch.dtype) -> float:
    """The largest difference between what the engine said and what the model says. EngineFailed if it is too large."""
    worst, where = 0.0, ""
    for one in said:
        expected = _logprobs(model, one)
        for position, (theirs, ours) in enumerate(zip(one.logprobs, expected, strict=True)):
            difference = _difference(theirs, ours)
            if not difference <= worst:
                worst, where = difference, f"token {position + 1} after {len(one.prompt)} of a prompt"
    if not worst <= TOLERANCE[dtype]:
        raise EngineFailed(
            f"the engine vllm does not have the weights that it was given: its log-probabilities are up to {worst:.3g} "
            f"off the trainer's ({where}; rounding explains {TOLERANCE[dtype]:g})"
        )
    return worst


def _logprobs(model: Model, said: Said) -> Tensor:
    """`[T, V]` log-probabilities of every next token under the model, along what the engine wrote."""
    ids = torch.tensor([said.prompt + said.ids], device=model.device)
    logits = model(ids[:, :-1]).logits[0, len(said.prompt) - 1 :]
    return F.log_softmax(logits.double(), dim=-1).cpu()


def _difference(theirs: dict[int, float], ours: Tensor) -> float:
    """The largest over the ids that the engine holds possible."""
    possible = {index: value for index, value in theirs.items() if value > float("-inf")}
    values = torch.tensor(list(possible.values()), dtype=torch.float64)
    return (values - ours[list(possible)]).abs().max().item()
