"""Check that the engine has the trainer's weights: compare the log-probabilities of both on fixed prompts.

In other systems reloading is known to fail silently: stale weights, or weights of some layers only. The tokens that a
trained model generates are nearly certain under old and new weights alike. So tokens that were not chosen are compared
too: their probabilities change with every step of training.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sector.engine.errors import EngineFailed
from sector.engine.language.layout import Layout, Mode
from sector.engine.models.checkpoint import Model
from sector.engine.tasks.task import Task

# The maximum of classes that may follow a token: ten digits, the end of a number, the end of a sequence.
CANDIDATES = 12

# The largest difference of log-probabilities that rounding explains, by the dtype of the engine. Measured on trained
# weights: 2e-5 and 0.3; weights one round old differ by 10 and more.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1.0}

_DIGITS = (1, 7, 20)
_ROWS = 2
# Enough to read the cache many times; every token uses all weights.
_MAX_LENGTH = 12


@dataclass(frozen=True, slots=True)
class Said:
    """A completion by an engine.

    prompt: the ids of the prompt.
    ids: the new ids.
    logprobs: for each new id, the log-probabilities of some candidates by id.
    """

    prompt: list[int]
    ids: list[int]
    logprobs: list[dict[int, float]]


def probe_prompts(task: Task, layout: Layout, max_digits: int) -> list[tuple[list[int], int]]:
    """Return fixed prompts in both modes, at plain and shifted places, each with the length of its completion."""
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
            length = min(length, _MAX_LENGTH)
            prompts += [([token for token in row if token != layout.pad_id], length) for row in rows]
    return prompts


@torch.no_grad()
def check_weights(model: Model, completions: list[Said], dtype: torch.dtype) -> float:
    """Return the largest difference of log-probabilities between engine and model; raise EngineFailed if too large."""
    worst, where = 0.0, ""
    for completion in completions:
        expected = _logprobs(model, completion)
        for position, (candidates, logprobs) in enumerate(zip(completion.logprobs, expected, strict=True)):
            difference = _difference(candidates, logprobs)
            # Negated, so that NaN counts as worse.
            if not difference <= worst:
                worst, where = difference, f"token {position + 1} after {len(completion.prompt)} of a prompt"
    if not worst <= TOLERANCE[dtype]:
        raise EngineFailed(
            f"the engine vllm does not have the weights that it was given: its log-probabilities are up to {worst:.3g} "
            f"off the trainer's ({where}; rounding explains {TOLERANCE[dtype]:g})"
        )
    return worst


def _logprobs(model: Model, completion: Said) -> Tensor:
    """Return the model's log-probabilities `[T, V]` of all ids at each of the T new ids of a completion."""
    ids = torch.tensor([completion.prompt + completion.ids], device=model.device)
    logits = model(ids[:, :-1]).logits[0, len(completion.prompt) - 1 :]
    return F.log_softmax(logits.double(), dim=-1).cpu()


def _difference(candidates: dict[int, float], logprobs: Tensor) -> float:
    """Return the largest difference over the candidates that are possible in the engine."""
    possible = {token: value for token, value in candidates.items() if value > float("-inf")}
    values = torch.tensor(list(possible.values()), dtype=torch.float64)
    return (values - logprobs[list(possible)]).abs().max().item()
