"""Comparison with true answers: label error, error of the fast policy, accuracy by length, kinds of mistakes.

`label_error` is the share of wrong labels, `label_mistakes` counts them by kind. No result of the audit reaches the
loop.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sector.engine.config import Filter
from sector.engine.language.examples import Examples
from sector.engine.language.layout import Batch, Layout, Mode, Simplifications
from sector.engine.language.operands import batches
from sector.engine.policy import improve
from sector.engine.policy.solver import Solver
from sector.engine.samplers.protocol import Branch, Sampler, Sampling
from sector.engine.seeding import generator
from sector.engine.shares import wilson
from sector.engine.tasks import mistakes, task_of, true_answers, truth_of
from sector.engine.tasks.mistakes import Mistake
from sector.engine.tasks.task import Task

EVAL_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Score:
    """Exact-match accuracy on one set of problems, with its Wilson 95 % interval.

    name: kind of problems.
    digits: digits per operand.
    correct: problems answered correctly.
    samples: count of the problems.
    """

    name: str
    digits: int
    correct: int
    samples: int

    @property
    def accuracy(self) -> float:
        """Share of problems answered correctly."""
        return self.correct / self.samples

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the Wilson score interval at 95 %."""
        return wilson(self.correct, self.samples)


def outputs_correct(solver: Solver, problems: Batch) -> Tensor:
    """Return whether each output of the policy is exactly right, `[B]` bool; rejected answers count as wrong."""
    if solver.policy == "improved":
        improved = solver.improve(problems)
        return answers_correct(problems, improved.ballot.answers) & improved.accepted
    # A problem of one digit cannot be simplified, so the fast answer is used.
    if solver.policy == "slow" and problems.digits > 1:
        step = solver.simplify(problems)
        return simplification_correct(problems, step.rest, step.digit) & step.valid
    answers, valid = solver.answer_fast(problems)
    return answers_correct(problems, answers) & valid


def answers_correct(problems: Batch, answers: Tensor) -> Tensor:
    """Return whether each answer `[B, W]` is the true one, `[B]` bool."""
    return (true_answers(problems) == answers).all(dim=1)


def simplification_correct(problems: Batch, rest: Batch, digit: Tensor) -> Tensor:
    """Return whether each remaining problem is the true one and its digit the last of the true answer, `[B]` bool."""
    valid = torch.ones_like(digit, dtype=torch.bool)
    kinds = truth_of(problems).simplification_mistakes(problems, Simplifications(rest, digit, valid))
    return torch.tensor([kind is Mistake.RIGHT for kind in kinds], dtype=torch.bool)


def label_error(examples: Examples) -> float | None:
    """Return the share of examples whose answer is wrong; None without examples."""
    if len(examples) == 0:
        return None
    return 1 - answers_correct(examples.problems, examples.answers).double().mean().item()


def label_mistakes(examples: Examples) -> dict[str, int]:
    """Count examples by the mistake in their answer (`mistakes.Mistake`)."""
    truth = truth_of(examples.problems)
    return mistakes.tally(truth.answer_mistakes(examples.problems, examples.answers))


def frontier_mistakes(sampler: Sampler, layout: Layout, problems: Batch) -> dict[str, dict[str, int]]:
    """Count the outputs of the `fast` and the `slow` policy by mistake, on problems of N >= 2 digits, greedily.

    Both are sampled as branches of one prefix, as in the improved policy. If the problems are too long to be answered
    at once, the fast policy runs on its own.
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
    """Classify the mistake in each fast answer, ids `[B, T]`."""
    answers, valid = layout.parse_answers(ids, problems.size)
    kinds = truth_of(problems).answer_mistakes(problems, answers)
    return mistakes.where_parsed(kinds, valid, layout.is_well_formed(ids, Mode.ANSWER))


def simplification_mistakes(ids: Tensor, problems: Batch, layout: Layout) -> list[Mistake]:
    """Classify the mistake in each simplification, ids `[B, T]`."""
    steps = layout.parse_simplifications(ids, problems.size)
    kinds = truth_of(problems).simplification_mistakes(problems, steps)
    return mistakes.where_parsed(kinds, steps.valid, layout.is_well_formed(ids, Mode.THINK))


@dataclass(frozen=True, slots=True)
class Gate:
    """Counts of right and wrong candidates of one round, by the decision of the filter.

    They show how well agreement, which needs no labels, separates right from wrong answers.

    Each pair is (candidates whose voted answer is right, all candidates).

    accepted: pair of the accepted candidates.
    rejected: pair of the rejected candidates.
    """

    accepted: tuple[int, int]
    rejected: tuple[int, int]

    @property
    def tried(self) -> int:
        """Count of candidates."""
        return self.accepted[1] + self.rejected[1]

    @property
    def agreement(self) -> float:
        """Share of candidates accepted. It needs no label, so the loop knows it."""
        return self.accepted[1] / self.tried

    @property
    def accuracy(self) -> float:
        """Share of candidates whose voted answer is right. It needs labels, so the loop does not know it."""
        return (self.accepted[0] + self.rejected[0]) / self.tried


def gate(problems: Batch, answers: Tensor, accepted: Tensor) -> Gate:
    """Count right and wrong candidates.

    answers: `[B, W]` voted answers.
    accepted: `[B]` bool.
    """
    right = answers_correct(problems, answers)

    def pair(rows: Tensor) -> tuple[int, int]:
        return int(right[rows].sum()), int(rows.sum())

    return Gate(pair(accepted), pair(~accepted))


def score(solver: Solver, name: str, problems: Batch) -> Score:
    """Measure the accuracy of a solver on problems; `name` is their kind."""
    correct = sum(int(outputs_correct(solver, batch).sum()) for batch in batches(problems, EVAL_BATCH))
    return Score(name, problems.digits, correct, len(problems))


@dataclass(frozen=True, slots=True)
class Exam:
    """Problems of one length with uniform digits, and the policy that is to solve them; an engine is its argument.

    task, layout: task of the problems, and token layout of the weights.
    policy: as in `Solver`.
    settings: vote and checks of the improved policy.
    seed: seed of the problems and of sampling.
    digits: digits per operand.
    samples: count of the problems.
    """

    task: Task
    layout: Layout
    policy: str
    settings: Filter
    seed: int
    digits: int
    samples: int

    def __call__(self, sampler: Sampler) -> Score:
        """Measure the accuracy."""
        solver = Solver(sampler, self.layout, self.policy, self.settings, self.seed)
        return score_length(solver, self.task, self.digits, self.samples, self.seed)


def score_length(solver: Solver, task: Task, digits: int, samples: int, seed: int) -> Score:
    """Measure the accuracy on `samples` problems of one length with uniform digits."""
    return score(solver, "uniform", task.draw(digits, samples, generator(seed, "eval", digits), hard_share=0.0))
