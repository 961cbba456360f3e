"""True sums, and the door before them."""

import ast
import contextlib
from pathlib import Path

import pytest
import torch

from sector.engine.language.operands import Problems, digit_strings, draw_problems
from sector.engine.tasks import oracle, true_answers, truth_of
from sector.engine.training import supervised

ENGINE = Path(oracle.__file__).parent
MAY_KNOW_SUMS = {"oracle.py", "supervised.py", "audit.py"}


def _sums(problems: Problems) -> list[str]:
    """Python's own sums, zero-padded to N+1 digits."""
    return [
        str(int(a) + int(b) + carry).zfill(problems.digits + 1)
        for a, b, carry in zip(
            digit_strings(problems.a), digit_strings(problems.b), problems.carry.tolist(), strict=True
        )
    ]


@pytest.mark.parametrize("digits", [1, 2, 7, 63, 256], ids="digits{}".format)
def test_sums_are_those_of_python(digits: int, draws: torch.Generator) -> None:
    problems = draw_problems(digits, 200, draws, hard_share=0.5)
    assert digit_strings(true_answers(problems)) == _sums(problems)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("9" * 256 + "+" + "0" * 256 + "+1", id="carry_runs_through"),
        pytest.param("9" * 256 + "+" + "9" * 256 + "+1", id="every_column_overflows"),
        pytest.param("0+0", id="zero"),
    ],
)
def test_sums_at_the_edges(text: str) -> None:
    problems = Problems.parse([text])
    assert digit_strings(true_answers(problems)) == _sums(problems)


def test_carries_are_those_into_each_column() -> None:
    problems = Problems.parse(["0958+0047+1", "0958+0047", "5555+5555"])
    assert truth_of(problems).carries(problems)[:, 1:].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0]]


@pytest.mark.parametrize("digits", [2, 9], ids="digits{}".format)
def test_labels_simplify_to_the_same_sum(digits: int, draws: torch.Generator) -> None:
    examples = supervised.label(draw_problems(digits, 100, draws, hard_share=0.5))
    assert examples.rest.digits == digits - 1
    joined = torch.cat([true_answers(examples.rest), examples.digit.unsqueeze(1)], dim=1)
    assert torch.equal(joined, examples.answers)


def test_labels_of_one_digit_have_an_empty_rest() -> None:
    examples = supervised.label(Problems.parse(["9+9+1", "3+4"]))
    assert examples.rest.digits == 0
    assert examples.answers.tolist() == [[1, 9], [0, 7]]


@pytest.mark.parametrize("ask", [true_answers, supervised.label], ids=["answers", "label"])
def test_sealed_sums_raise(ask: object) -> None:
    problems = Problems.parse(["1+2"])
    with oracle.sealed(), pytest.raises(oracle.OracleSealed):
        ask(problems)  # type: ignore[operator]


def test_seals_nest_and_open_after_an_error() -> None:
    problems = Problems.parse(["1+2"])
    with oracle.sealed():
        with contextlib.suppress(KeyError), oracle.sealed():
            raise KeyError
        with pytest.raises(oracle.OracleSealed):
            true_answers(problems)
    assert true_answers(problems).tolist() == [[0, 3]]


def test_only_supervision_and_audit_import_the_oracle() -> None:
    """Rule 1. The loop may name it to seal it, tasks may bring truths to it; nothing else may ask."""
    for path in sorted(ENGINE.rglob("*.py")):
        if path.name in MAY_KNOW_SUMS:
            continue
        brings_truth = path.name == "task.py" or path.parent.name == "tasks"
        for node in ast.walk(ast.parse(path.read_text())):
            is_oracle = (
                isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "oracle"
            )
            assert not is_oracle or node.attr == "sealed", f"{path.name}:{node.lineno} uses oracle.{node.attr}"  # type: ignore[attr-defined]
            asks = isinstance(node, ast.Attribute) and node.attr == "truth"
            assert not asks or path.parent.name == "tasks", f"{path.name}:{node.lineno} goes around the oracle"  # type: ignore[attr-defined]
            if isinstance(node, ast.ImportFrom) and node.module == "sector.engine.tasks":
                assert not {"truth_of", "true_answers"} & {alias.name for alias in node.names}, path.name
            if isinstance(node, ast.ImportFrom) and node.module == "sector.engine.tasks.oracle":
                names = {alias.name for alias in node.names}
                assert names <= ({"Truth", "guard"} if brings_truth else {"sealed", "OracleSealed"}), path.name
