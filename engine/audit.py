"""The audit: what only someone who knows the sums can say. Nothing it finds goes back into the loop.

Label error of what a round accepted, the fast policy's error on the same problems, and exact-match accuracy by length.
"""

from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor

from sector.engine import improve, mistakes, oracle, policy, tokens
from sector.engine.examples import Examples
from sector.engine.improve import Filter
from sector.engine.policy import DigitOrder, Layout
from sector.engine.problem import Problems, batches, draw_problems
from sector.engine.samplers.protocol import Branch, Sampler, Sampling
from sector.engine.seeding import generator, stream_seed

POLICIES = ("fast", "slow", "improved")
EVAL_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Score:
    """Exact-match accuracy on one set of problems, with its Wilson 95 % interval.

    name: what kind of problems; digits: per operand; correct of samples.
    """

    name: str
    digits: int
    correct: int
    samples: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.samples

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson score interval at 95 %."""
        low, high = binomtest(self.correct, self.samples).proportion_ci(0.95, method="wilson")
        return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Solver:
    """A policy ready to be asked: an engine, the digit order of its weights, and how to sample."""

    sampler: Sampler
    order: DigitOrder
    policy: str
    settings: Filter
    k: int
    seed: int
    temperature: float = 0.0

    def correct(self, problems: Problems) -> Tensor:
        """`[B]` bool: is the policy's output exactly right? An answer it does not believe counts as wrong."""
        rows = torch.arange(len(problems))
        sampling = Sampling(self.temperature, stream_seed(self.seed, "solve"), rows, stage=0)
        if self.policy == "slow":
            # One digit cannot be simplified; its answer stands for it.
            if problems.digits == 1:
                return self._fast(problems, sampling)
            step, _ = improve.simplify(self.sampler, problems, self.order, sampling)
            return simplification_correct(problems, step.rest, step.digit) & step.valid
        if self.policy == "fast":
            return self._fast(problems, sampling)
        improved = improve.improve(self.sampler, problems, self.settings, self.k, self.order, sampling)
        return answers_correct(problems, improved.first.answers) & improved.accepted

    def _fast(self, problems: Problems, sampling: Sampling) -> Tensor:
        answers, valid, _ = improve.answer_fast(self.sampler, problems, self.order, sampling)
        return answers_correct(problems, answers) & valid


def answers_correct(problems: Problems, answers: Tensor) -> Tensor:
    """`[B]` bool: which of the answers `[B, N+1]` are the true sums?"""
    return (oracle.true_answers(problems) == answers).all(dim=1)


def simplification_correct(problems: Problems, rest: Problems, digit: Tensor) -> Tensor:
    """`[B]` bool: is the remaining problem the true one, and the digit the last of the true sum?"""
    answers, carries = oracle.true_answers(problems), oracle.true_carries(problems)
    same = (rest.a == problems.a[:, :-1]) & (rest.b == problems.b[:, :-1])
    return same.all(dim=1) & (rest.carry == carries[:, -2]) & (digit == answers[:, -1])


def label_error(examples: Examples) -> float | None:
    """Share of examples whose answer is wrong; None if there are none."""
    if len(examples) == 0:
        return None
    return 1 - answers_correct(examples.problems, examples.answers).double().mean().item()


def label_mistakes(examples: Examples) -> dict[str, int]:
    """Examples by the mistake in their answer (`mistakes.Mistake`)."""
    truth, carries = oracle.true_answers(examples.problems), oracle.true_carries(examples.problems)
    return mistakes.tally(mistakes.in_answers(examples.answers, truth, carries))


def frontier_mistakes(sampler: Sampler, order: DigitOrder, problems: Problems) -> dict[str, dict[str, int]]:
    """What the `fast` and the `slow` policy make of problems of N >= 2 digits, greedy: outputs by mistake.

    Of one prefix both are asked at once, as the improved policy does it.
    """
    layout, count = Layout(order), len(problems)
    sampling = Sampling(0.0, 0, torch.arange(count), stage=0)
    lengths = (policy.answer_length(problems.digits), policy.simplification_length(problems.digits))
    branches = [
        Branch(policy.mark_ids(mark, layout, count), length)
        for mark, length in zip((tokens.ANSWER, tokens.THINK), lengths, strict=True)
    ]
    fast, slow = sampler.sample(policy.prefix_ids(problems, layout), branches, sampling)
    truth, carries = oracle.true_answers(problems), oracle.true_carries(problems)
    return {
        "fast": mistakes.tally(mistakes.in_answer_ids(fast, truth, carries, layout)),
        "slow": mistakes.tally(mistakes.in_simplification_ids(slow, problems, truth, carries, layout)),
    }


@dataclass(frozen=True, slots=True)
class Gate:
    """How far agreement, which needs no labels, tells right from wrong: candidates of one round.

    accepted, rejected: counts as (right by the vote, of so many). votes: the same by how many guesses gave the vote.
    """

    accepted: tuple[int, int]
    rejected: tuple[int, int]
    votes: dict[int, tuple[int, int]]

    @property
    def tried(self) -> int:
        return self.accepted[1] + self.rejected[1]

    @property
    def agreement(self) -> float:
        """What the loop knows: the share accepted."""
        return self.accepted[1] / self.tried

    @property
    def accuracy(self) -> float:
        """What it does not: the share of all candidates whose voted answer is right."""
        return (self.accepted[0] + self.rejected[0]) / self.tried


def gate(problems: Problems, answers: Tensor, votes: Tensor, accepted: Tensor) -> Gate:
    """Of candidates with voted answers `[B, N+1]`, votes `[B]` and `[B]` bool whether they were accepted."""
    right = answers_correct(problems, answers)

    def counted(rows: Tensor) -> tuple[int, int]:
        return int(right[rows].sum()), int(rows.sum())

    return Gate(counted(accepted), counted(~accepted), {int(each): counted(votes == each) for each in votes.unique()})


def score(solver: Solver, name: str, problems: Problems) -> Score:
    """Accuracy of a solver on given problems."""
    correct = sum(int(solver.correct(batch).sum()) for batch in batches(problems, EVAL_BATCH))
    return Score(name, problems.digits, correct, len(problems))


def score_length(solver: Solver, digits: int, samples: int, seed: int, hard_share: float = 0.0) -> Score:
    """Accuracy on `samples` drawn problems of one length, uniform digits by default."""
    return score(solver, "uniform", draw_problems(digits, samples, generator(seed, "eval", digits), hard_share))


def carry_chains(digits: int, samples: int, seed: int) -> Problems:
    """`9...9 + b` with small b, and columns that all add up to nine with a carry-in: a carry through every digit."""
    draws = generator(seed, "eval-chains", digits)
    problems = draw_problems(digits, samples, draws)
    nines = torch.arange(samples) % 2 == 0
    a = torch.where(nines[:, None], 9, problems.a)
    small = torch.zeros_like(problems.b)
    small[:, -1] = torch.randint(1, 10, (samples,), generator=draws)
    return Problems(a, torch.where(nines[:, None], small, 9 - problems.a), torch.where(nines, problems.carry, 1))


def short_operands(digits: int, samples: int, seed: int) -> Problems:
    """One operand of `digits` digits, the other of a random smaller length: leading zeros, as when people type."""
    draws = generator(seed, "eval-short", digits)
    problems = draw_problems(digits, samples, draws)
    lengths = torch.randint(1, max(2, digits), (samples, 1), generator=draws)
    b = problems.b.masked_fill(torch.arange(digits) < digits - lengths, 0)
    flip = torch.rand(samples, 1, generator=draws) < 0.5
    return Problems(torch.where(flip, b, problems.a), torch.where(flip, problems.a, b), problems.carry)
