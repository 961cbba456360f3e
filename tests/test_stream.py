"""A data set in parts as sets for training: in memory if it is small, in windows if it is not."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from sector.engine.language.examples import Examples
from sector.engine.seeding import generator
from sector.engine.tasks import find_task
from sector.engine.training import stream as module
from sector.engine.training.batches import mixed_batches
from sector.engine.training.dataset import Provenance, labelled_table, read_sets, write_table
from sector.engine.training.stream import ExampleStream, read_parts
from sector.engine.training.supervised import label

# Rows by part; the last parts make a window that is not full.
COUNTS = [30, 20, 45, 5, 12]
WINDOWS = [[0, 1], [2, 3], [4]]
WINDOW_ROWS = 50
ROWS = 8


def labelled(count: int, seed: int, digits: int = 6) -> Examples:
    return label(find_task("addition").draw(digits, count, generator(seed, "stream"), 0.3))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("parts")
    paths = [folder / f"part-{number}.parquet" for number in range(len(COUNTS))]
    layout = find_task("addition").layout("msd")
    for number, (path, count) in enumerate(zip(paths, COUNTS, strict=True)):
        write_table(path, labelled_table(labelled(count, number), layout, Provenance(0, 0, "oracle", "")))
    return paths


@pytest.fixture
def stream(parts: list[Path]) -> ExampleStream:
    [one] = read_parts(parts, WINDOW_ROWS)
    assert isinstance(one, ExampleStream)
    return one


def texts(examples: Examples) -> list[str]:
    return list(examples.problems.texts())


def same(some: Examples, others: Examples) -> bool:
    members = [(some.answers, others.answers), (some.digit, others.digit)]
    return texts(some) == texts(others) and all(torch.equal(one, other) for one, other in members)


def test_a_small_set_is_in_memory_in_the_order_of_its_parts(parts: list[Path]) -> None:
    [examples] = read_parts(parts, sum(COUNTS))
    assert isinstance(examples, Examples)
    assert same(examples, Examples.cat(labelled(count, number) for number, count in enumerate(COUNTS)))


def test_each_row_of_a_window_comes_once_a_pass_in_random_order(stream: ExampleStream) -> None:
    assert (len(stream), stream.digits, stream.task) == (sum(COUNTS), 6, "addition")
    turn = 0
    orders = []
    for _ in range(2):
        for window in WINDOWS:
            expected = [text for part in window for text in texts(labelled(COUNTS[part], part))]
            turns = -(-len(expected) // ROWS)
            drawn = [text for at in range(turn, turn + turns) for text in texts(stream.shard(at, ROWS, seed=3))]
            turn += turns
            assert Counter(drawn[: len(expected)]) == Counter(expected) and drawn[: len(expected)] != expected
            # The last turn is full: it begins again.
            assert drawn[len(expected) :] == drawn[: len(drawn) - len(expected)] and len(drawn) == turns * ROWS
            orders.append(drawn)
    assert orders[:3] != orders[3:]


def test_a_turn_depends_on_its_number_and_the_seed_alone(parts: list[Path], stream: ExampleStream) -> None:
    [other] = read_parts(parts, WINDOW_ROWS)
    assert isinstance(other, ExampleStream)
    in_order = [stream.shard(turn, ROWS, seed=3) for turn in range(40)]
    backwards = [other.shard(turn, ROWS, seed=3) for turn in reversed(range(40))]
    assert all(same(some, others) for some, others in zip(in_order, reversed(backwards), strict=True))
    assert not same(in_order[0], stream.shard(0, ROWS, seed=4))


def test_one_window_at_a_time_is_in_memory(parts: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns in order read each part once a pass."""
    [stream] = read_parts(parts, WINDOW_ROWS)
    assert isinstance(stream, ExampleStream)
    read: list[Path] = []

    def noting(path: Path) -> dict:
        read.append(path)
        return read_sets(path)

    monkeypatch.setattr(module, "read_sets", noting)
    turns = sum(-(-sum(COUNTS[part] for part in window) // ROWS) for window in WINDOWS)
    for turn in range(2 * turns):
        stream.shard(turn, ROWS, seed=3)
    assert read == parts * 2


def test_sets_of_several_sizes_are_apart(parts: list[Path], tmp_path: Path) -> None:
    short = tmp_path / "short.parquet"
    layout = find_task("addition").layout("msd")
    write_table(short, labelled_table(labelled(9, 5, digits=3), layout, Provenance(0, 0, "oracle", "")))
    few, many = read_parts([*parts[:2], short, *parts[2:]], WINDOW_ROWS)
    assert isinstance(few, Examples) and same(few, labelled(9, 5, digits=3))
    assert isinstance(many, ExampleStream) and len(many) == sum(COUNTS)


def test_streams_and_sets_take_turns(stream: ExampleStream) -> None:
    """A stream takes nothing from the draws of the others."""
    held = labelled(40, 7)
    alone, mixed = (mixed_batches(sets, [], 2, ROWS, 0.5, seed=5) for sets in ([held], [stream, held]))
    streamed = [text for step in range(10) for text in texts(mixed(step)[0])]
    assert len(set(streamed[:50])) == 50 and set(streamed[:50]) == set(texts(stream.read(0)))
    assert same(mixed(3)[1], alone(3)[0])
