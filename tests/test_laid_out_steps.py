"""Steps laid out ahead by processes: the same shards, in the same order."""

import multiprocessing
import time
from collections.abc import Sequence

import pytest
import torch

from sector.engine.config import TrainerConfig
from sector.engine.errors import InputError
from sector.engine.language.examples import Examples
from sector.engine.language.operands import draw_problems
from sector.engine.models.checkpoint import Model
from sector.engine.models.ordinary import new_text_model
from sector.engine.models.sector import new_model
from sector.engine.seeding import generator
from sector.engine.training.laid_out_steps import laid_out_steps
from sector.engine.training.place_rows import Rows
from sector.engine.training.shard import Shard
from sector.engine.training.supervised import label
from sector.engine.training.text_rows import TextRows

CONFIG = TrainerConfig(num_shards=2, shard_rows=4, zeros=3)


def _draw(step: int) -> list[Examples]:
    return [label(draw_problems(digits, 4, generator(digits, step), hard_share=0.5)) for digits in (2, 3 + step % 2)]


def _tensors(shard: Shard) -> list[torch.Tensor]:
    if isinstance(shard, Rows):
        return [shard.ids, shard.places, shard.targets]
    assert isinstance(shard, TextRows)
    return [tensor for part in (shard.fast, shard.slow) if part for tensor in (part.ids, part.targets)]


def _all(steps: Sequence[list[Shard]]) -> list[list[torch.Tensor]]:
    return [[tensor for shard in shards for tensor in _tensors(shard)] for shards in steps]


@pytest.fixture(params=["own", "text"])
def model(request: pytest.FixtureRequest) -> Model:
    if request.param == "own":
        return new_model("tiny", 0)
    text = new_text_model("text-tiny", 0, {})
    text.learns("addition", "hints", "lsd")
    return text


def test_processes_lay_out_the_same_shards_in_the_same_order(model: Model) -> None:
    expected = _all(list(laid_out_steps(model, _draw, range(3, 20), CONFIG, 7, processes=0)))
    before = torch.get_rng_state()
    found = _all(list(laid_out_steps(model, _draw, range(3, 20), CONFIG, 7, processes=2)))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(found) == 17
    for tensors, others in zip(found, expected, strict=True):
        assert all(torch.equal(tensor, other) for tensor, other in zip(tensors, others, strict=True))
    assert len({tensors[0].numpy().tobytes() for tensors in found}) == 17


def test_a_cycle_that_stops_leaves_no_process() -> None:
    steps = laid_out_steps(new_model("tiny", 0), _draw, range(100), CONFIG, 7, processes=2)
    next(steps)
    started = multiprocessing.active_children()
    assert len(started) == 2
    del steps
    end = time.monotonic() + 10
    while any(process.is_alive() for process in started) and time.monotonic() < end:
        time.sleep(0.01)
    assert not any(process.is_alive() for process in started)


def test_no_steps() -> None:
    assert not list(laid_out_steps(new_model("tiny", 0), _draw, range(5, 5), CONFIG, 7, processes=2))
    assert not multiprocessing.active_children()


def test_an_error_of_a_draw_reaches_the_trainer() -> None:
    def refuse(step: int) -> list[Examples]:
        raise InputError(f"nothing to draw at step {step}")

    with pytest.raises(InputError, match="nothing to draw at step 0"):
        next(laid_out_steps(new_model("tiny", 0), refuse, range(5), CONFIG, 7, processes=1))
