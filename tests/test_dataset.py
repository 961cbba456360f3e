"""Examples on disk: files are read as they were written, and files of other programs are refused."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sector.engine.config import FILTERS
from sector.engine.errors import InputError
from sector.engine.language.examples import Examples
from sector.engine.language.operands import Problems, draw_problems
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.models.sector import new_model
from sector.engine.policy.improve import Verdict, improve
from sector.engine.samplers import make_sampler
from sector.engine.samplers.protocol import Sampling
from sector.engine.training.dataset import (
    PREVIEW_ROWS,
    Provenance,
    candidates_table,
    improved_table,
    labelled_table,
    read_candidates,
    read_examples,
    read_missed,
    read_votes,
    write_examples,
    write_table,
)
from sector.engine.training.supervised import label

OURS = Provenance(7, 2**63, "native", "ab" * 32)


def labelled(digits: int, count: int) -> Examples:
    return label(draw_problems(digits, count, torch.Generator().manual_seed(digits), hard_share=0.5))


def same(first: Examples, second: Examples) -> bool:
    pairs = [(first.answers, second.answers), (first.digit, second.digit)]
    for name in ("problems", "rest"):
        one, other = getattr(first, name), getattr(second, name)
        pairs += [(one.a, other.a), (one.b, other.b), (one.carry, other.carry)]
    return all(torch.equal(one, other) for one, other in pairs)


def test_lengths_come_back_apart_and_whole(tmp_path: Path) -> None:
    sets = {digits: labelled(digits, 30) for digits in (1, 2, 9)}
    tables = [labelled_table(examples, PlaceLayout(), OURS) for examples in sets.values()]
    write_examples(tmp_path / "some.parquet", pa.concat_tables(tables))
    back = read_examples(tmp_path / "some.parquet")
    assert list(back) == [1, 2, 9]
    assert all(same(back[digits], sets[digits]) for digits in sets)
    preview = (tmp_path / "some.preview.jsonl").read_text().splitlines()
    assert len(preview) == PREVIEW_ROWS and json.loads(preview[0])["engine"] == "native"
    assert not list(tmp_path.glob(".*"))


def test_answers_without_a_simplification_come_back_without_one(tmp_path: Path) -> None:
    thought = labelled(4, 12)
    empty = thought.problems.a[:, :0]
    rest = Problems(empty, empty, torch.zeros_like(thought.problems.carry))
    at_once = Examples(thought.problems, thought.answers, rest, thought.answers[:, -1])
    write_examples(tmp_path / "some.parquet", labelled_table(at_once, PlaceLayout(), OURS))
    assert same(read_examples(tmp_path / "some.parquet")[4], at_once)


def test_a_row_says_where_it_comes_from(tmp_path: Path) -> None:
    """Every column of the contract, on answers of a real (untrained) engine that the filter was told to believe."""
    sampler = make_sampler("native", new_model("tiny", 0))
    rows = torch.arange(40) + 1000
    problems = draw_problems(3, 40, torch.Generator().manual_seed(0))
    improved = improve(sampler, problems, FILTERS["none"], PlaceLayout(), Sampling(0.0, 0, rows, 0))
    improved.verdict[:] = torch.where(torch.arange(40) % 2 == 0, Verdict.ACCEPTED, Verdict.OUTVOTED)
    table = improved_table(improved, rows, PlaceLayout(), OURS)
    promised = (
        "problem answer prompt_ids answer_ids simplification guesses votes digits round seed engine weights_sha256"
    )
    assert set(promised.split()) <= set(table.column_names)
    assert table.num_rows == 20 and table.column("index").to_pylist() == list(range(1000, 1040, 2))
    write_table(tmp_path / "candidates.parquet", candidates_table(improved))
    read, direct = read_candidates(tmp_path / "candidates.parquet", 3)
    assert torch.equal(read.a, problems.a) and direct.shape == (40, 4)
    again, answers, votes, accepted = read_votes(tmp_path / "candidates.parquet", 3)
    assert torch.equal(again.b, problems.b) and torch.equal(answers, improved.ballot.answers)
    assert torch.equal(votes, improved.ballot.votes) and torch.equal(accepted, improved.accepted)


def test_what_the_fast_policy_missed_can_be_read_alone(tmp_path: Path) -> None:
    """A scripted engine gives the direct answer to every other problem only."""
    sampler, rows = make_sampler("native", new_model("tiny", 0)), torch.arange(12)
    problems = draw_problems(3, 12, torch.Generator().manual_seed(0))
    improved = improve(sampler, problems, FILTERS["none"], PlaceLayout(), Sampling(0.0, 0, rows, 0))
    improved.verdict[:] = 0
    truth = label(problems)
    improved.ballot.answers[:], improved.ballot.direct[:] = truth.answers, truth.answers
    improved.ballot.rest.a[:], improved.ballot.rest.b[:] = truth.rest.a, truth.rest.b
    improved.ballot.rest.carry[:], improved.ballot.digit[:] = truth.rest.carry, truth.digit
    improved.ballot.direct[::2, -1] = (truth.answers[::2, -1] + 1) % 10
    write_examples(tmp_path / "some.parquet", improved_table(improved, rows, PlaceLayout(), OURS))
    assert same(read_examples(tmp_path / "some.parquet")[3], truth)
    ((examples, missed),) = read_missed(tmp_path / "some.parquet")
    assert same(examples, truth) and missed.tolist() == list(range(0, 12, 2))
    write_examples(tmp_path / "labelled.parquet", labelled_table(truth, PlaceLayout(), OURS))
    assert [missed.tolist() for _, missed in read_missed(tmp_path / "labelled.parquet")] == [[]]


@pytest.mark.parametrize(
    "columns",
    [
        {"problem": ["1+2"], "answer": ["3"], "votes": [1]},
        {"problem": ["<b>"], "answer": ["3"], "votes": [1], "verdict": ["accepted"]},
        {"problem": ["1+2"], "answer": ["333"], "votes": [1], "verdict": ["accepted"]},
        {"problem": ["1+2"], "answer": ["3"], "votes": [None], "verdict": ["accepted"]},
    ],
    ids=["a column less", "no problem", "long answer", "no votes"],
)
def test_candidates_that_are_none_are_refused_in_one_line(tmp_path: Path, columns: dict) -> None:
    path = tmp_path / "candidates.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(InputError) as caught:
        read_votes(path, 1)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [
        ("answer", "", "answer '' to a problem"),
        ("digits", -1, "no problems of -1 digits exist"),
        ("digits", 2**31 - 1, "no problems of 2147483647 digits exist"),
        ("simplification", "123+456|10", r"simplification '123\+456\|10' splits no digit off"),
        ("simplification", "123+456|-1", r"simplification '123\+456\|-1' splits no digit off"),
    ],
    ids=["no answer", "negative digits", "too many digits", "two digits split off", "a sign split off"],
)
def test_a_value_out_of_range_is_named_before_it_is_trained_on(
    tmp_path: Path, column: str, value: object, named: str
) -> None:
    path, table = tmp_path / "some.parquet", labelled_table(labelled(4, 5), PlaceLayout(), OURS)
    place, values = table.column_names.index(column), table[column].to_pylist()
    values[3] = value
    changed = pa.array(values, table.schema.field(column).type)
    pq.write_table(table.set_column(place, column, changed), path)
    with pytest.raises(InputError, match=f"holds a row that is no example .*{named}"):
        read_examples(path)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda path: path.write_bytes(b"not parquet"),
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: pq.write_table(pa.table({"text": ["1+1"]}), path),
        lambda path: pq.write_table(pq.read_table(path).drop_columns(["answer"]), path),
        lambda path: pq.write_table(pq.read_table(path).set_column(1, "answer", [["x"] * 5]), path),
        lambda path: pq.write_table(pq.read_table(path).set_column(0, "problem", [["1+2+3"] * 5]), path),
        lambda path: path.unlink(),
    ],
    ids=["garbage", "truncated", "other columns", "a column less", "bad answer", "bad problem", "missing"],
)
def test_what_is_not_ours_is_refused_in_one_line(tmp_path: Path, break_it) -> None:
    path = tmp_path / "some.parquet"
    write_examples(path, labelled_table(labelled(4, 5), PlaceLayout(), OURS))
    break_it(path)
    with pytest.raises(InputError) as caught:
        read_examples(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
