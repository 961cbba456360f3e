"""The audit: what only someone who knows the truth can say. Nothing it finds goes back into the loop.

Label error of what a round accepted, the fast policy's error on the same problems, and exact-match accuracy by length.
"""

from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor

from sector.engine.language.examples import Examples
from sector.engine.language.layout import Batch, Layout, Mode, Simplifications
from sector.engine.language.operands import batches
from sector.engine.policy import improve
from sector.engine.policy.solver import Solver
from sector.engine.samplers.protocol import Branch, Sampler, Sampling
from sector.engine.seeding import generator
from sector.engine.tasks import mistakes, task_of, true_answers, truth_of
from sector.engine.tasks.mistakes import Mistake
from sector.engine.tasks.task import Task

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


def outputs_correct(solver: Solver, problems: Batch) -> Tensor:
    """Return whether the policy's output is exactly right, `[B]` bool; an answer that it rejects counts as wrong."""
    if solver.policy == "improved":
        improved = solver.improve(problems)
        return answers_correct(problems, improved.ballot.answers) & improved.accepted
    # One digit cannot be simplified; the fast answer stands for the slow one.
    if solver.policy == "slow" and problems.digits > 1:
        step = solver.simplify(problems)
        return simplification_correct(problems, step.rest, step.digit) & step.valid
    answers, valid = solver.answer_fast(problems)
    return answers_correct(problems, answers) & valid


def answers_correct(problems: Batch, answers: Tensor) -> Tensor:
    """`[B]` bool: which of the answers `[B, W]` are the true ones?"""
    return (true_answers(problems) == answers).all(dim=1)


def simplification_correct(problems: Batch, rest: Batch, digit: Tensor) -> Tensor:
    """`[B]` bool: is the remaining problem the true one, and the digit the last of the true answer?"""
    valid = torch.ones_like(digit, dtype=torch.bool)
    kinds = truth_of(problems).simplification_mistakes(problems, Simplifications(rest, digit, valid))
    return torch.tensor([kind is Mistake.RIGHT for kind in kinds], dtype=torch.bool)


def label_error(examples: Examples) -> float | None:
    """Share of examples whose answer is wrong; None if there are none."""
    if len(examples) == 0:
        return None
    return 1 - answers_correct(examples.problems, examples.answers).double().mean().item()


def label_mistakes(examples: Examples) -> dict[str, int]:
    """Examples by the mistake in their answer (`mistakes.Mistake`)."""
    truth = truth_of(examples.problems)
    return mistakes.tally(truth.answer_mistakes(examples.problems, examples.answers))


def frontier_mistakes(sampler: Sampler, layout: Layout, problems: Batch) -> dict[str, dict[str, int]]:
    """What the `fast` and the `slow` policy make of problems of N >= 2 digits, greedy: outputs by mistake.

    Of one prefix both are asked at once, as the improved policy does it; where the fast policy thinks down to what is
    answered at once, it is asked for itself.
    """
    size, count = problems.size, len(problems)
    sampling = Sampling(0.0, 0, torch.arange(count), stage=0)
    lengths = {Mode.ANSWER: layout.answer_length(size), Mode.THINK: layout.simplification_length(size)}
    branches = [Branch(layout.mark_ids(mode, count), length) for mode, length in lengths.items()]
    fast, slow = sampler.sample(layout.prefix_ids(problems), branches, sampling)
    if task_of(problems).answers_at_once(problems):
        kinds = answer_mistakes(fast, problems, layout)
    else:
        answers, valid, _ = improve.answer_fast(sampler, problems, layout, sampling)
        kinds = truth_of(problems).answer_mistakes(problems, answers)
        kinds = mistakes.where_parsed(kinds, valid, [False] * count)
    return {
        "fast": mistakes.tally(kinds),
        "slow": mistakes.tally(simplification_mistakes(slow, problems, layout)),
    }


def answer_mistakes(ids: Tensor, problems: Batch, layout: Layout) -> list[Mistake]:
    """What is wrong with each fast answer, as ids `[B, T]`."""
    answers, valid = layout.parse_answers(ids, problems.size)
    kinds = truth_of(problems).answer_mistakes(problems, answers)
    return mistakes.where_parsed(kinds, valid, layout.is_well_formed(ids, Mode.ANSWER))


def simplification_mistakes(ids: Tensor, problems: Batch, layout: Layout) -> list[Mistake]:
    """What is wrong with each simplification, as ids `[B, T]`."""
    said = layout.parse_simplifications(ids, problems.size)
    kinds = truth_of(problems).simplification_mistakes(problems, said)
    return mistakes.where_parsed(kinds, said.valid, layout.is_well_formed(ids, Mode.THINK))


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


def gate(problems: Batch, answers: Tensor, votes: Tensor, accepted: Tensor) -> Gate:
    """Of candidates with voted answers `[B, W]`, votes `[B]` and `[B]` bool whether they were accepted."""
    right = answers_correct(problems, answers)

    def counted(rows: Tensor) -> tuple[int, int]:
        return int(right[rows].sum()), int(rows.sum())

    return Gate(counted(accepted), counted(~accepted), {int(each): counted(votes == each) for each in votes.unique()})


def score(solver: Solver, name: str, problems: Batch) -> Score:
    """Accuracy of a solver on given problems."""
    correct = sum(int(outputs_correct(solver, batch).sum()) for batch in batches(problems, EVAL_BATCH))
    return Score(name, problems.digits, correct, len(problems))


def score_length(solver: Solver, task: Task, digits: int, samples: int, seed: int, hard_share: float = 0.0) -> Score:
    """Accuracy on `samples` drawn problems of one length, uniform digits by default."""
    return score(solver, "uniform", task.draw(digits, samples, generator(seed, "eval", digits), hard_share))
