"""The vote: each problem solved K times by simplify-then-guess, and the most frequent answer (SECToR section 3.1).

In the shape descriptions B is the batch, W the digits of an answer (of sums N+1), K the number of guesses.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sector.engine.config import Filter
from sector.engine.language.layout import Batch, Layout, Simplifications
from sector.engine.policy.chain import guess_at_once, simplify_then_guess
from sector.engine.samplers.protocol import Sampler, Sampling
from sector.engine.spans import span
from sector.engine.tasks import task_of
from sector.kernels.consistency import majority


@dataclass(frozen=True, slots=True)
class Ballot:
    """K guesses of each problem, and the vote over them.

    guesses: `[B, K, W]` full answers, one a simplification.
    valid: `[B, K]` which of them parsed.
    answers: `[B, W]` the vote.
    votes: `[B]` guesses that gave it.
    parsed: `[B]` did the vote get what it needs?
    decided: `[B]` and does the filter accept it?
    rest, digit: the first simplification.
    direct: `[B, W]` the fast answer to the whole problem.
    direct_valid: `[B]` which of those parsed.
    tokens: generated.
    chain: all simplifications, where each is distilled (`Task.at_once`).
    """

    guesses: Tensor
    valid: Tensor
    answers: Tensor
    votes: Tensor
    parsed: Tensor
    decided: Tensor
    rest: Any
    digit: Tensor
    direct: Tensor
    direct_valid: Tensor
    tokens: int | Tensor
    chain: tuple[Simplifications, ...] = ()


def hold_vote(
    sampler: Sampler,
    problems: Batch,
    settings: Filter,
    layout: Layout,
    sampling: Sampling,
    draft: Tensor | None = None,
) -> Ballot:
    """Simplify and guess K times, and count. `draft [B, W]` is an answer that the guesses are likely to repeat."""
    num_guesses = 1 if settings.vote == "off" else settings.k
    if settings.use_chain:
        chain = simplify_then_guess(sampler, problems, num_guesses, layout, sampling, draft)
    else:
        chain = guess_at_once(sampler, problems, num_guesses, layout, sampling)
    guesses, valid = torch.stack(chain.guesses, dim=1), torch.stack(chain.valid, dim=1)
    with span("count"):
        answers, votes = majority(guesses, valid)
    unanimous, at_once = settings.vote == "unanimous", task_of(problems).at_once is None
    parsed = valid.all(dim=1) if unanimous else votes > 0
    decided = votes == guesses.shape[1] if unanimous else parsed
    if not chain.steps:
        rest, digit = problems.without_digits(), answers[:, -1]
    else:
        rest, digit = chain.steps[0].rest, chain.steps[0].digit
    # Where nothing is answered at once, the fast policy is one chain of thought, and that is the first guess.
    instead = (torch.zeros_like(answers), torch.zeros_like(parsed)) if at_once else (guesses[:, 0], valid[:, 0])
    direct, direct_valid = chain.direct or instead
    steps = () if at_once else tuple(chain.steps)
    return Ballot(
        guesses, valid, answers, votes, parsed, decided, rest, digit, direct, direct_valid, chain.tokens, steps
    )
