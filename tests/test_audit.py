"""The audit: correctness, intervals, and the families of problems that users type."""

import pytest
import torch
from scripted import Scripted

from sector.engine.config import Filter
from sector.engine.language.operands import Problems, draw_problems
from sector.engine.models.sector import new_model
from sector.engine.policy.solver import Solver
from sector.engine.run.audit import (
    Score,
    answers_correct,
    frontier_mistakes,
    gate,
    label_error,
    label_mistakes,
    score_length,
    simplification_correct,
)
from sector.engine.samplers import make_sampler
from sector.engine.tasks.addition import TASK as ADDITION
from sector.engine.tasks.addition import carry_chains, carry_runs, short_operands
from sector.engine.training.supervised import label


def test_label_error_is_the_share_of_wrong_answers() -> None:
    examples = label(draw_problems(5, 40, torch.Generator().manual_seed(0)))
    assert label_error(examples) == 0
    examples.answers[:3, 2] = (examples.answers[:3, 2] + 1) % 10
    assert label_error(examples) == pytest.approx(3 / 40)
    assert answers_correct(examples.problems, examples.answers).tolist() == [False] * 3 + [True] * 37
    assert label_error(examples[:0]) is None


@pytest.mark.parametrize("part", ["a", "b", "carry", "digit"], ids=str)
def test_every_part_of_a_simplification_counts(part: str) -> None:
    examples = label(draw_problems(4, 10, torch.Generator().manual_seed(1)))
    rest = Problems(examples.rest.a.clone(), examples.rest.b.clone(), examples.rest.carry.clone())
    digit = examples.digit.clone()
    assert simplification_correct(examples.problems, rest, digit).all()
    target = digit if part == "digit" else getattr(rest, part)
    target[7] = 1 - target[7] if part == "carry" else (target[7] + 1) % 10
    assert simplification_correct(examples.problems, rest, digit).tolist() == [row != 7 for row in range(10)]


# Newcombe 1998, table I: the score interval of 81/263, 15/148, 0/20 and 1/29.
@pytest.mark.parametrize(
    ("correct", "samples", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
    ids=str,
)
def test_intervals_are_wilson(correct: int, samples: int, low: float, high: float) -> None:
    assert Score("uniform", 5, correct, samples).interval == pytest.approx((low, high), abs=5e-5)


def test_carry_chains_run_through_the_whole_number() -> None:
    problems = carry_chains(12, 50, seed=3)
    nines = (problems.a == 9).all(dim=1)
    assert 20 <= int(nines.sum()) <= 30 and (problems.b[nines, :-1] == 0).all()
    rest = problems[~nines]
    assert (rest.a + rest.b == 9).all() and (rest.carry == 1).all()
    assert (label(problems).answers[:, 0] == 1).all()


def test_carry_runs_are_of_any_length_and_anywhere() -> None:
    problems = carry_runs(12, 400, seed=3)
    nines = (problems.a + problems.b == 9).long()
    longest = torch.tensor([max(map(len, "".join(map(str, row)).split("0"))) for row in nines.tolist()])
    # All lengths alike: a sixth has eleven columns or twelve. By chance columns add up to nine too, so fewer are short.
    assert 40 < int((longest >= 11).sum()) < 100 and int((longest <= 3).sum()) > 60
    assert 0 < int(problems.carry.sum()) < 400 and nines[:, 0].any() and nines[:, -1].any()
    # A carry comes out of a run of uniform digits or it does not.
    assert 100 < int(label(problems).answers[:, 0].sum()) < 300


def test_short_operands_have_leading_zeros_on_either_side() -> None:
    problems = short_operands(9, 200, seed=3)
    short_a, short_b = (problems.a[:, 0] == 0), (problems.b[:, 0] == 0)
    assert short_a.any() and short_b.any() and (short_a | short_b).all()


@pytest.mark.parametrize("policy", ["fast", "slow", "improved"], ids=str)
def test_an_untrained_model_scores_nothing_and_the_same_twice(policy: str) -> None:
    sampler = make_sampler("native", new_model("tiny", 0))
    solver = Solver(sampler, ADDITION.layout("msd"), policy, Filter(), seed=0)
    first = score_length(solver, ADDITION, 5, 30, seed=1)
    assert (first.correct, first.samples, first.digits) == (0, 30, 5)
    assert first == score_length(solver, ADDITION, 5, 30, seed=1)


def test_problems_of_an_evaluation_depend_on_seed_and_length_alone() -> None:
    seen: list[Problems] = []

    class Recorder(Solver):
        def answer_fast(self, problems: Problems) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
            seen.append(problems)
            return label(problems).answers, torch.ones(len(problems), dtype=torch.bool)

    solver = Recorder(Scripted(), ADDITION.layout("msd"), "fast", Filter())
    for seed in (1, 1, 2):
        score_length(solver, ADDITION, 6, 20, seed)
    assert torch.equal(seen[0].a, seen[1].a) and not torch.equal(seen[0].a, seen[2].a)


def test_mistakes_of_labels_and_at_the_frontier_are_counted() -> None:
    problems = draw_problems(6, 30, torch.Generator().manual_seed(5))
    examples = label(problems)
    assert label_mistakes(examples)["right"] == 30
    # A leading digit that is off by one is a carry out of the first column, missed or not there.
    examples.answers[:4, 0] = 1 - examples.answers[:4, 0]
    counts = label_mistakes(examples)
    assert counts["carry_missed"] + counts["carry_invented"] == 4 and counts["right"] == 26
    texts = problems.texts()
    found = frontier_mistakes(Scripted({texts[0]: 5}, {texts[1], texts[2]}), ADDITION.layout("msd"), problems)
    assert (found["fast"]["right"], found["fast"]["added"]) == (29, 1)
    assert (found["slow"]["right"], found["slow"]["unparsable"]) == (28, 2)


def test_the_gate_is_counted_by_verdict() -> None:
    problems = draw_problems(3, 6, torch.Generator().manual_seed(5))
    answers = label(problems).answers
    answers[[1, 4], 2] = (answers[[1, 4], 2] + 1) % 10
    accepted = torch.tensor([True, True, False, True, False, False])
    found = gate(problems, answers, accepted)
    assert (found.accepted, found.rejected) == ((2, 3), (2, 3))
    assert (found.agreement, found.accuracy) == (0.5, pytest.approx(4 / 6))
