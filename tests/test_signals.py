"""Signals of published label-free methods, as settings of the same loop: votes, views, remainders, slow teachers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted import Scripted
from small_run import SMALL, SUPERVISED, start
from torch import Tensor

from sector.engine.config import Filter, run_config
from sector.engine.errors import InputError
from sector.engine.language.operands import Problems, draw_problems
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.models.checkpoint import load_checkpoint
from sector.engine.policy.ballot import entropies, harmonic
from sector.engine.policy.improve import Improved, improve
from sector.engine.run.teacher import load_teacher
from sector.engine.samplers import make_sampler
from sector.engine.samplers.protocol import Sampling
from sector.engine.selfplay import self_play
from sector.engine.tasks import find_task, true_answers
from sector.engine.tasks.addition import same_places, same_remainder

FAST: dict[str, Any] = {"use_chain": False, "think_through": False, "checks": ()}
ONE_PROMPT = FAST | {"views": False, "temperature": 1.0}
CHECKS = {check.name: check for check in find_task("addition").checks}


def ask(sampler: Any, problems: Problems, **settings: Any) -> Improved:
    sampling = Sampling(settings.get("temperature", 0.0), 3, torch.arange(len(problems)), 0)
    return improve(sampler, problems, Filter(**settings), PlaceLayout(), sampling)


@pytest.fixture
def problems() -> Problems:
    return draw_problems(8, 16, torch.Generator().manual_seed(3), hard_share=0.5)


def guesses(*rows: str) -> tuple[Tensor, Tensor]:
    """Rows of guesses, a letter each; `-` did not parse."""
    letters = torch.tensor([[ord(letter) for letter in row] for row in rows])
    return letters.unsqueeze(2), letters != ord("-")


@pytest.mark.parametrize(
    ("row", "answer", "count"),
    [
        # Guesses at even places are of one view, those at odd places of the other.
        ("ababab", None, 0),
        ("aabbba", "a", 3),
        ("acacacbb", "b", 2),
        ("a-a-aa", "a", 4),
        ("------", None, 0),
        ("aab", "a", 2),
        ("abacbb", "b", 3),
    ],
)
def test_the_harmonic_vote_takes_what_both_views_say(row: str, answer: str | None, count: int) -> None:
    answers, counts = harmonic(*guesses(row))
    assert (answers.item(), counts.item()) == (ord(answer) if answer else 0, count)


def test_the_harmonic_vote_differs_from_a_majority(problems: Problems) -> None:
    """One operand order errs always alike: the majority of five of its guesses is outvoted by none."""
    wrong = Scripted({problems.texts()[0]: 1})
    majority = ask(wrong, problems, **FAST, vote="majority", k=5)
    harmony = ask(wrong, problems, **FAST, vote="harmonic", k=5)
    truth = true_answers(problems)
    assert majority.accepted.all() and not torch.equal(majority.ballot.answers[0], truth[0])
    assert harmony.verdicts == ["unparsable"] + ["accepted"] * 15
    assert torch.equal(harmony.ballot.answers[1:], truth[1:])


def test_entropy_of_guesses_in_bits() -> None:
    expected = torch.tensor([0.0, 1.0, 2.0, 0.8113, 0.0])
    assert torch.allclose(entropies(*guesses("aaaa", "abab", "abcd", "abaa", "----")).float(), expected, atol=1e-4)


def test_samples_of_one_prompt_ask_one_prompt(problems: Problems) -> None:
    sampler = Scripted()
    ask(sampler, problems, **ONE_PROMPT, vote="majority", k=4)
    assert set(sampler.asked) == set(problems.texts()) and len(sampler.asked) == 4 * len(problems)
    turns = Scripted()
    ask(turns, problems, **FAST, vote="majority", k=4)
    assert set(turns.asked) == {*problems.texts(), *problems.swapped().texts()}


def test_samples_of_one_prompt_differ_and_repeat(problems: Problems) -> None:
    sampler = make_sampler("native", load_checkpoint(SUPERVISED))
    first, again = (ask(sampler, problems, **ONE_PROMPT, vote="majority", k=4) for _ in range(2))
    assert torch.equal(first.ballot.guesses, again.ballot.guesses) and first.vote_entropy > 0
    assert not torch.equal(first.ballot.guesses[:, 0], first.ballot.guesses[:, 1])


def test_the_other_view_is_voted_on_its_own_prompt(problems: Problems) -> None:
    swapped = problems.swapped().texts()[3]
    improved = ask(Scripted({swapped: 1}), problems, **ONE_PROMPT | {"checks": ("commutative",)}, vote="majority", k=3)
    assert [row for row, name in enumerate(improved.verdicts) if name == "not_commutative"] == [3]


@pytest.mark.parametrize("digits", range(1, 12), ids=str)
def test_digits_change_places_and_keep_the_remainder(digits: int) -> None:
    order = same_places(digits)
    assert sorted(order) == list(range(digits)) and all((place - at) % 2 == 0 for at, place in enumerate(order))
    num_stay = sum(place == at for at, place in enumerate(order))
    assert num_stay <= 2 and (digits < 3 or num_stay < digits)
    problems = draw_problems(digits, 40, torch.Generator().manual_seed(digits), hard_share=0.5)
    truth = true_answers(problems)
    posed, expected = CHECKS["remainder"].pose(problems, truth) or (None, None)
    assert posed is not None and same_remainder(true_answers(posed), expected).all()


def test_a_wrong_carry_changes_the_remainder(problems: Problems) -> None:
    truth = true_answers(problems)
    values = [int("".join(map(str, row))) for row in truth.tolist()]
    for place in range(8):
        off = torch.tensor([[int(digit) for digit in str(value + 10**place).zfill(9)] for value in values])
        assert not same_remainder(off, truth).any()
    off = torch.tensor([[int(digit) for digit in str(value + 99 * 7).zfill(9)] for value in values])
    assert same_remainder(off, truth).all()


def test_the_remainder_finds_what_every_operand_order_misses(problems: Problems) -> None:
    row = problems[2:3]
    wrong = Scripted({row.texts()[0]: 1, row.swapped().texts()[0]: 1})
    blind = ask(wrong, problems, **FAST, vote="majority", k=6)
    seen = ask(wrong, problems, **FAST | {"checks": ("remainder",)}, vote="majority", k=6)
    assert blind.accepted.all()
    assert [at for at, name in enumerate(seen.verdicts) if name == "not_remainder"] == [2]
    assert seen.rejected()["not_remainder"] == 1 and "not_remainder" not in blind.rejected()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"vote": "harmonic"}, "set use_chain to false"),
        ({"views": False}, "set use_chain to false"),
        ({**FAST, "views": False, "vote": "majority"}, "give a temperature"),
        ({**FAST, "vote": "harmonic", "k": 1}, "choose a k of 2 or more"),
        ({**ONE_PROMPT, "vote": "harmonic"}, "leave views on"),
        ({**FAST, "checks": ("commutative",)}, "set views to false"),
        ({"leak": 1.5}, "it takes 0 to 1"),
    ],
    ids=str,
)
def test_signals_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        run_config({"filter": settings})


def test_a_slow_teacher_is_a_moving_average_of_the_weights(fresh_run: Path) -> None:
    rounds = {**SMALL["round"], "teacher": "slow", "teacher_decay": 0.25, "max_cycles": 1}
    run, config = start(fresh_run, until=8, round=rounds)
    for _ in self_play(run, config):
        pass
    teachers = [json.loads((run.round(digits).folder / "generation.json").read_text()) for digits in (7, 8)]
    before = [run.supervised(6), run.round(7)]
    first, last = (phase.load_checkpoint().weights() for phase in before)
    teacher = load_teacher(config.round, before)
    for name, weight in teacher.weights().items():
        assert torch.allclose(weight, 0.25 * first[name] + 0.75 * last[name], atol=1e-6)
    sampler = make_sampler("native", teacher)
    assert teachers[1]["weights_sha256"] == sampler.weights_sha256
    assert teachers[0]["weights_sha256"] not in {sampler.weights_sha256, ""}
