"""Problems of Reasoning Gym as an evaluation: real generators, shipped weights, two scorers."""

import json
import sys
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import sector
from sector.cli.app import app
from sector.engine.api import gym
from sector.engine.errors import InputError

pytest.importorskip("reasoning_gym")


def evaluated(*words: object) -> Result:
    return CliRunner().invoke(app, ["eval", "--model", "addition", *map(str, words)], prog_name="sector")


def test_sums_are_scored_twice_and_other_problems_are_counted() -> None:
    report = sector.evaluate_gym("chain_sum", "addition", 60, options={"max_terms": 2}, seed=3)
    assert report.asked == 60 == report.unread + sum(length.samples for length in report.lengths)
    assert 10 < report.unread < 50 and report.first_unread is not None and " - " in report.first_unread
    assert [length.digits for length in report.lengths] == [1, 2, 3, 4]
    assert all(length.correct == length.scored == length.samples for length in report.lengths)
    assert not report.differing
    again = sector.evaluate_gym("chain_sum", "addition", 60, options={"max_terms": 2}, seed=3)
    assert again.as_json() == report.as_json()


def test_products_are_problems_of_multiplication() -> None:
    report = sector.evaluate_gym("products", "multiplication", 20, options={"max_digits": 3})
    assert report.unread == 0 and {length.digits for length in report.lengths} <= {1, 2, 3}
    assert sum(length.correct for length in report.lengths) == 20


def test_the_command_prints_what_the_function_counts() -> None:
    options = ("--gym", "chain_sum", "--gym-set", "max_terms=2", "--samples", 30)
    values = json.loads(evaluated(*options, "--json").stdout)
    assert values == sector.evaluate_gym("chain_sum", "addition", 30, options={"max_terms": 2}).as_json()
    shown = evaluated(*options).stdout
    assert f"{values['unread']} of 30 problems are not of the task addition, as {values['first_unread']}" in shown


def test_answers_on_which_scorer_and_truth_differ_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scorer that is wrong about each answer."""
    make = gym._dataset

    class Wrong:
        def __init__(self, *arguments: Any) -> None:
            self._dataset = make(*arguments)

        def __len__(self) -> int:
            return len(self._dataset)

        def __getitem__(self, index: int) -> Any:
            return self._dataset[index]

        def score_answer(self, answer: str, entry: Any) -> float:
            return 0.0

    monkeypatch.setattr(gym, "_dataset", Wrong)
    report = sector.evaluate_gym("chain_sum", "addition", 20, options={"max_terms": 2})
    assert len(report.differing) == 3 and all(" + " in text and " = " in text for text in report.differing)
    assert all(length.scored == 0 and length.correct == length.samples for length in report.lengths)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--gym", "chain"), "unknown generator 'chain'; choose one of basic_arithmetic"),
        (("--gym", "chain_sum", "--gym-set", "terms=2"), "chain_sum does not take these options"),
        (("--gym", "chain_sum", "--gym-set", "min_terms=9"), "chain_sum does not take these options"),
        (("--gym", "chain_sum", "--digits", "3"), "--digits does not go with --gym"),
        (("--gym", "chain_sum", "--no-suite"), "--suite does not go with --gym"),
        (("--gym-set", "max_terms=2"), "name it with --gym"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line(words: tuple[str, ...], named: str) -> None:
    result = evaluated(*words)
    assert result.exit_code == 2 and not result.stdout and result.stderr.count("\n") == 1 and named in result.stderr


def test_without_the_library_the_mend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(InputError, match=r"pip install 'sector-lm\[gym\]'"):
        sector.evaluate_gym("chain_sum", "addition", 5)
