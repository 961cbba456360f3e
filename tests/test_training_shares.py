"""Shares of a training step by named range: of wall time, with threads that overlap."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sector.benchmarks.training_shares import PHASES, Span, Watch, shares, wall_seconds
from sector.engine.config import TrainerConfig
from sector.engine.language.operands import draw_problems
from sector.engine.models.sector import new_model
from sector.engine.spans import recording, span
from sector.engine.training.distill import start_training, train_cycle
from sector.engine.training.supervised import label

MAIN, ONE, TWO = 1, 2, 3


@pytest.fixture(scope="module")
def trained() -> Watch:
    """Two steps of training."""
    watch, config = Watch(), TrainerConfig()
    shards = [label(draw_problems(2, 3, torch.Generator().manual_seed(seed))) for seed in range(2)]
    state = start_training(new_model("tiny", seed=1), config)
    with recording(watch.record):
        assert len(list(train_cycle(state, lambda _: shards, config, 2, seed=0))) == 2
    return watch


def seconds(*spans: Span) -> dict[str, float]:
    """Return the shares of the wall time that are not zero."""
    return {name: own for name, own in wall_seconds(spans).items() if own}


def test_one_thread_is_the_sum_of_its_spans() -> None:
    spans = [Span("lay_out", MAIN, 0, 1), Span("forward", MAIN, 1, 3), Span("lay_out", MAIN, 5, 6)]
    assert seconds(*spans) == {"lay_out": 2, "forward": 2}


def test_of_threads_that_overlap_the_slowest_counts() -> None:
    spans = [
        Span("forward", ONE, 0, 2),
        Span("backward", ONE, 2, 5),
        Span("forward", TWO, 0, 3),
        Span("backward", TWO, 3, 7),
        Span("exchange", MAIN, 7, 8),
        Span("optimizer", MAIN, 8, 10),
    ]
    assert seconds(*spans) == {"forward": 3, "backward": 4, "exchange": 1, "optimizer": 2}


def test_what_hides_behind_the_slowest_counts_where_it_does_not() -> None:
    """The next step is laid out from before the cores begin until while they work; then one core has nothing to do."""
    spans = [Span("lay_out", MAIN, 0, 3), Span("forward", ONE, 1, 4), Span("backward", TWO, 3.5, 6)]
    assert seconds(*spans) == {"lay_out": 1, "forward": 2.5, "backward": 2.5}
    # Where it takes longest itself, the cores wait for it.
    assert seconds(Span("forward", ONE, 0, 2), Span("lay_out", MAIN, 1, 9)) == {"forward": 1, "lay_out": 8}


def test_wall_time_is_the_length_of_what_the_spans_cover() -> None:
    """Any spans, also such as begin together, touch, or lie within each other."""
    spans = [Span("forward", index, (index * 7) % 11, (index * 7) % 11 + 1 + index % 3) for index in range(12)]
    covered = sum(any(span.start <= at < span.end for span in spans) for at in range(20))
    assert math.isclose(sum(wall_seconds(spans).values()), covered)


def test_shares_add_up_to_one() -> None:
    assert shares({"forward": 3.0, "backward": 1.0}) == {"forward": 0.75, "backward": 0.25}


def test_a_watch_notes_the_phases_of_all_threads_and_nothing_else() -> None:
    watch = Watch()
    with recording(watch.record), span("distill step"), ThreadPoolExecutor(1) as pool:
        with span("lay out"):
            pass
        pool.submit(_work).result()
    assert [span.name for span in watch.spans] == ["lay_out", "backward"]
    assert len({span.thread for span in watch.spans}) == 2
    assert all(span.seconds >= 0 for span in watch.spans)


def _work() -> None:
    with span("backward"):
        pass


@pytest.mark.parametrize("name", PHASES, ids=str)
def test_the_trainer_names_every_phase(name: str, trained: Watch) -> None:
    assert sum(span.name == PHASES[name] for span in trained.spans) >= 2
