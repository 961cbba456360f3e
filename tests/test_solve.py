"""Typed problems: every policy, any lengths, in order, and the reasoning that is shown."""

import random

import pytest
from scripted import Scripted

from sector.engine.config import FILTERS
from sector.engine.errors import InputError
from sector.engine.policy.solve import Solution, check_problem, read_problems, solve
from sector.engine.policy.solver import Solver
from sector.engine.tasks import find_task
from sector.engine.tasks.addition import TASK as ADDITION
from sector.engine.testing.knowing import Knowing


def solved(
    texts: list[str],
    policy: str,
    sampler: Scripted | None = None,
    show: bool = True,
    name: str = "strict",
    k: int = 5,
    think_through: bool = True,
) -> list[Solution]:
    """Solutions of additions by a scripted model."""
    settings = FILTERS[name].model_copy(update={"k": k, "think_through": think_through})
    return solve(Solver(sampler or Scripted(), ADDITION.layout("msd"), policy, settings), ADDITION, texts, show)


@pytest.mark.parametrize("policy", ["fast", "slow", "improved"], ids=str)
def test_any_lengths_come_back_in_order(policy: str) -> None:
    draws = random.Random(1)
    lengths = [1, 9, 2, 2, 30, 9, 1, 5]
    operands = [(draws.randrange(10**length), draws.randrange(10**length)) for length in lengths]
    carries = [draws.randrange(2) for _ in lengths]
    texts = [f"{a} + {b}" + " + 1" * carry for (a, b), carry in zip(operands, carries, strict=True)]
    solutions = solved(texts, policy, show=False)
    assert [solution.problem for solution in solutions] == texts
    assert [solution.answer for solution in solutions] == [
        str(a + b + carry) for (a, b), carry in zip(operands, carries, strict=True)
    ]
    assert solutions[0].as_json() == {"problem": texts[0], "answer": solutions[0].answer, "policy": policy}


def test_a_line_that_is_no_problem_costs_only_itself() -> None:
    solutions = solved(["1+2", "12+x", "9" * 257 + "+1", "007+5"], "fast")
    assert [solution.answer for solution in solutions] == ["3", None, None, "12"]
    assert "12+x" in str(solutions[1].error)
    assert "257 digits" in str(solutions[2].error)
    assert solutions[1].as_json()["answer"] is None


def test_slow_shows_the_whole_chain() -> None:
    (solution,) = solved(["456+789"], "slow")
    assert solution.thought is not None
    assert [(step.rest, step.found) for step in solution.thought.steps] == [("45+78+1", "5"), ("4+7+1", "45")]
    assert solution.thought.guesses == ["1245"]


def test_a_broken_chain_gives_no_answer() -> None:
    (solution,) = solved(["456+789"], "slow", Scripted(broken_thoughts={"45+78+1"}))
    assert solution.answer is None
    assert "does not parse, after 1 steps" in str(solution.error)
    assert solution.thought is not None and len(solution.thought.steps) == 1


def test_improved_shows_guesses_votes_and_checks() -> None:
    (solution,) = solved(["456+789"], "improved")
    thought = solution.thought
    assert thought is not None
    assert [step.rest for step in thought.steps] == ["45+78+1", "4+7+1"]
    assert thought.guesses == ["1245", "1245"] and thought.votes == 2
    assert (thought.vote, thought.direct) == ("1245", "1245")
    assert [(check.problem, check.answer, check.agrees) for check in thought.checks] == [
        ("543+210+1", "754", True),
        ("789+456", "1245", True),
    ]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        pytest.param("456+789", "direct answer", id="direct"),
        pytest.param("45+78+1", "guesses differ", id="guess"),
        pytest.param("78+45+1", "swapped operands", id="swapped"),
        pytest.param("543+210+1", "nines' complement", id="complement"),
    ],
)
def test_checks_that_disagree_give_no_answer_but_show_the_votes(wrong: str, reason: str) -> None:
    (solution,) = solved(["456+789"], "improved", Scripted({wrong: 1}), think_through=False)
    assert solution.answer is None
    assert str(solution.error).startswith("the model disagrees with itself") and reason in str(solution.error)
    assert solution.thought is not None and solution.thought.guesses[-1] == "1245"
    assert [check.label for check in solution.thought.checks if not check.agrees] == [reason] * (
        reason in ("swapped operands", "nines' complement")
    )


def test_what_was_thought_through_shows_the_whole_chain() -> None:
    first, second = solved(["456+789", "111+222"], "improved", Scripted({"456+789": 1}), k=1)
    assert first.answer == "1245" and first.thought is not None and first.thought.through
    assert [step.rest for step in first.thought.steps] == ["45+78+1", "4+7+1"] and first.thought.guesses == ["1245"]
    assert (first.thought.vote, first.thought.direct) == ("1245", "2245")
    assert [check.answer for check in first.thought.checks] == ["754", "1245"]
    assert second.thought is not None and len(second.thought.steps) == 1 and not second.thought.through


def test_a_chain_that_guesses_only_at_its_end_is_shown_to_there() -> None:
    task = find_task("multiplication")
    engine = Knowing(task)
    solver = Solver(engine, engine.layout("lsd"), "improved", FILTERS["strict"])
    (solution,) = solve(solver, task, ["47*63"], show=True)
    thought = solution.thought
    assert solution.answer == "2961" and thought is not None
    assert [(step.rest.partition("~")[0], step.found) for step in thought.steps] == [("47*6+14", "1"), ("47*+29", "61")]
    assert (thought.guesses, thought.vote, thought.checks[0].answer) == (["2961"], "2961", "2961")


def test_one_digit_and_no_second_look() -> None:
    (solution,) = solved(["9+9+1"], "improved", name="none")
    assert solution.answer == "19"
    assert solution.thought is not None and solution.thought.steps == []
    assert solution.thought.checks == []


def test_reading_problems() -> None:
    assert read_problems("1+2\n\n  x\r\n3+4 \r5+6", "f") == ["1+2", "x", "3+4", "5+6"]
    # Characters that end a line for Python alone are part of what was typed.
    assert read_problems("1+2\x0c3+4\x1c\u20285\n", "f") == ["1+2\x0c3+4\x1c\u20285"]
    for text in ("", "\n \n", " "):
        with pytest.raises(InputError, match="f is empty"):
            read_problems(text, "f")


@pytest.mark.parametrize(
    "text", ["-5+3", "12+x", "1+2+3", "+1", "", "1.5+2", "9" * 257 + "+1"], ids=lambda text: text[:5]
)
def test_what_is_no_problem(text: str) -> None:
    with pytest.raises(InputError):
        check_problem(ADDITION, text)
