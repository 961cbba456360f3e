"""The comparison of policies on the same problems."""

from pathlib import Path

import pytest
import torch

from sector.benchmarks import policy_gap
from sector.benchmarks.policy_gap import WAYS, gaps, row
from sector.engine.shares import wilson


def test_all_ways_answer_the_same_problems_and_a_filter_leaves_some_out(supervised_run: Path) -> None:
    rows = {found["way"]: found for found in gaps(supervised_run, [13], 60, seed=1)}
    assert list(rows) == ["simplification", *WAYS]
    assert all(found["tried"] == 60 and found["digits"] == 13 for found in rows.values())
    assert rows["simplify, then guess"]["accepted"] == rows["simplification"]["accepted"] == 60
    assert 0 < rows["filter strict"]["accepted"] < 60
    assert rows["filter strict"]["label_error"] < rows["fast answer"]["label_error"]


def test_wrong_answers_are_counted_among_the_accepted(supervised_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the truth is that nothing is right, all accepted answers are wrong."""
    monkeypatch.setattr(policy_gap, "answers_correct", lambda problems, answers: torch.zeros(len(problems)).bool())
    for found in gaps(supervised_run, [7], 20, seed=1):
        if found["way"] in WAYS:
            assert found["wrong"] == found["accepted"]


def test_a_share_of_nothing_is_left_out() -> None:
    assert "label_error" not in row(Path("runs/a"), 7, "fast answer", 10, 0, 0)
    found = row(Path("runs/a"), 7, "fast answer", 10, 8, 2)
    assert found["model"] == "a" and found["label_error"] == 0.25 and found["interval"] == wilson(2, 8)
