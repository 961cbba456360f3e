"""The vote: solve each problem K times by simplify-then-guess and take the most frequent answer (SECToR section 3.1).

In the shape descriptions B is the batch, W the digits of an answer (of sums N+1), K the number of guesses.
"""

from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from sector.engine.config import Filter
from sector.engine.language.layout import B, Layout, Simplifications
from sector.engine.policy.chain import NUM_VIEWS, Chain, guess_at_once, simplify_then_guess
from sector.engine.samplers.protocol import Sampler, Sampling
from sector.engine.spans import span
from sector.engine.tasks import task_of
from sector.kernels.consistency import majority


@dataclass(frozen=True, slots=True)
class Ballot(Generic[B]):
    """K guesses of each problem, and the vote over them.

    guesses: `[B, K, W]` full answers, one per simplification.
    valid: `[B, K]` bool, guesses that parsed.
    answers: `[B, W]` voted answers.
    votes: `[B]` count of guesses equal to the voted answer.
    parsed: `[B]` bool, whether enough guesses parsed for a vote.
    decided: `[B]` bool, whether the votes suffice for the filter.
    rest: the problems that remain after the first simplification.
    digit: `[B]` digit that the first simplification splits off.
    direct: `[B, W]` fast answers to the whole problems.
    direct_valid: `[B]` bool, fast answers that parsed.
    tokens: count of generated tokens.
    chain: all simplifications if the task distills each of them (`Task.at_once`), else empty.
    """

    guesses: Tensor
    valid: Tensor
    answers: Tensor
    votes: Tensor
    parsed: Tensor
    decided: Tensor
    rest: B
    digit: Tensor
    direct: Tensor
    direct_valid: Tensor
    tokens: int | Tensor
    chain: tuple[Simplifications[B], ...] = ()


def hold_vote(
    sampler: Sampler, problems: B, settings: Filter, layout: Layout[B], sampling: Sampling, draft: Tensor | None = None
) -> Ballot[B]:
    """Simplify and guess K times, and count the votes. Of answers with equal votes the earliest guess wins.

    draft: `[B, W]` answers that the guesses are likely to repeat.
    """
    num_guesses = 1 if settings.vote == "off" else settings.k
    if settings.use_chain:
        chain = simplify_then_guess(sampler, problems, num_guesses, layout, sampling, draft)
    else:
        chain = guess_at_once(sampler, problems, num_guesses, layout, sampling, settings.views)
    guesses, valid = torch.stack(chain.guesses, dim=1), torch.stack(chain.valid, dim=1)
    with span("count"):
        answers, votes = harmonic(guesses, valid) if settings.vote == "harmonic" else majority(guesses, valid)
    unanimous = settings.vote == "unanimous"
    parsed = valid.all(dim=1) if unanimous else votes > 0
    decided = votes == guesses.shape[1] if unanimous else parsed
    if chain.steps:
        rest, digit = chain.steps[0].rest, chain.steps[0].digit
    else:
        rest, digit = problems.without_digits(), answers[:, -1]
    direct, direct_valid = _direct_answers(chain, problems, answers, parsed)
    steps = () if task_of(problems).at_once is None else tuple(chain.steps)
    return Ballot(
        guesses, valid, answers, votes, parsed, decided, rest, digit, direct, direct_valid, chain.tokens, steps
    )


def harmonic(guesses: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the answer `[B, W]` with the highest harmonic mean of its shares in the views, and its count `[B]`.

    The guesses `[B, K, W]` take turns at the views (Self-Harmony, 2511.01191). Rows in which no answer is in every view
    get zeros and count 0. Of equal means the earliest guess wins.

    valid: `[B, K]` bool, guesses that count.
    """
    same = _same(guesses) & valid.unsqueeze(1) & valid.unsqueeze(2)
    in_view = [same[:, :, view::NUM_VIEWS] for view in range(NUM_VIEWS)]
    # An answer that a view lacks has a share of 0, and so an infinite inverse.
    inverse = torch.stack([part.shape[2] / part.sum(dim=2) for part in in_view]).sum(dim=0)
    best, winner = (1 / inverse).max(dim=1)
    found = best > 0
    rows = torch.arange(len(guesses), device=guesses.device)
    return guesses[rows, winner] * found.unsqueeze(1), same.sum(dim=2)[rows, winner] * found


def entropies(guesses: Tensor, valid: Tensor) -> Tensor:
    """Return the entropy of the guesses `[B, K, W]` of each row in bits, `[B]`; all invalid ones count as one answer.

    valid: `[B, K]` bool, guesses that parsed.
    """
    both, neither = valid.unsqueeze(1) & valid.unsqueeze(2), ~(valid.unsqueeze(1) | valid.unsqueeze(2))
    same = _same(guesses) & both | neither
    # A difference from 0, since the negative of 0 would be written as -0.0.
    return 0.0 - same.double().mean(dim=2).log2().mean(dim=1)


def _same(guesses: Tensor) -> Tensor:
    """Return which guesses `[B, K, W]` of a row are equal, `[B, K, K]` bool.

    One guess is compared at a time: whole rounds come here, and all pairs at once would need K times their memory.
    """
    return torch.stack([(guesses == guess.unsqueeze(1)).all(dim=2) for guess in guesses.unbind(dim=1)], dim=1)


def _direct_answers(chain: Chain[B], problems: B, answers: Tensor, parsed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the fast answers `[B, W]` and which of them parsed `[B]`; zeros if the chain has none."""
    if chain.direct is not None:
        return chain.direct
    if task_of(problems).at_once is None:
        return torch.zeros_like(answers), torch.zeros_like(parsed)
    # If only short problems of the task are answered at once, the fast policy is one chain of thought: the first guess.
    return chain.guesses[0], chain.valid[0]
