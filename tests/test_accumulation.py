"""Gradient accumulation: the gradients of one large step from pieces of it, a few held at a time."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from small_text import small_text_model
from two_ranks import curve, curves_of_two, labelled

from sector.engine.config import TrainerConfig, run_config
from sector.engine.errors import InputError
from sector.engine.models.checkpoint import task_and_layout, trained_parameters, weights_sha256
from sector.engine.models.loss import IGNORED
from sector.engine.models.text import TextModel
from sector.engine.seeding import generator
from sector.engine.training import distill
from sector.engine.training.accumulation import MeanGradient, added_up
from sector.engine.training.batches import mixed_batches
from sector.engine.training.data_parallel import Gradient
from sector.engine.training.distill import _gradient_of, _parts_of, start_training, train_cycle
from sector.engine.training.text_rows import TextRows, lay_out


def _shard(model: TextModel, digits: int) -> TextRows:
    """Twelve rows, some of which take much less loss than others."""
    shard = lay_out(labelled(digits)[:12], task_and_layout(model)[1], generator(1))
    assert shard.fast is not None
    targets = shard.fast.targets.clone()
    takes_loss = targets[2:7] != IGNORED
    # The end alone.
    targets[2:7] = targets[2:7].masked_fill(takes_loss.cumsum(1) < takes_loss.sum(1, keepdim=True), IGNORED)
    return replace(shard, fast=replace(shard.fast, targets=targets))


@pytest.mark.parametrize("taught", ["answers", "steps", "both"])
@pytest.mark.parametrize("rows", [1, 5, 12, 40], ids=str)
def test_pieces_have_the_gradient_of_the_shard(rows: int, taught: str) -> None:
    model = small_text_model()
    shard, parameters = _shard(model, 1 if taught == "answers" else 4), trained_parameters(model)
    if taught == "steps":
        shard = replace(shard, fast=None)
    whole = _gradient_of(model, parameters, shard, 0.7)
    pieces = list(shard.pieces(rows, 0.7))
    assert len(pieces) == -(-12 // rows) and sum(share for _, share, _ in pieces) == pytest.approx(1)
    found = added_up(iter(pieces), parameters, partial(_parts_of, model, parameters))
    torch.testing.assert_close(found.loss, whole.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.flat, whole.flat, rtol=1e-4, atol=1e-6 * float(whole.flat.abs().max()))


def _trained(micro_batch: int, steps: int = 8) -> tuple[list[float], str]:
    """Losses, and the digest of the weights; seven shards are no multiple of cores."""
    config = TrainerConfig(num_shards=7, shard_rows=8, warmup_steps=2, learning_rate=5e-4, micro_batch=micro_batch)
    model = small_text_model()
    batches = mixed_batches([labelled(4)], [labelled(2)], 7, 8, 0.5, seed=5)
    losses = [loss for _, loss in train_cycle(start_training(model, config), batches, config, steps, seed=7)]
    return losses, weights_sha256(model)


def test_a_training_in_pieces_has_the_losses_of_one_in_whole_steps() -> None:
    whole, pieces = _trained(0)[0], _trained(3)[0]
    assert whole != pieces
    assert pieces == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("cores", [1, 2, 8], ids="cores{}".format)
def test_the_bits_do_not_depend_on_cores(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _trained(3, steps=4)
    monkeypatch.setattr(distill, "num_cores", lambda: cores)
    assert _trained(3, steps=4) == expected


def test_two_processes_have_the_loss_curve_of_one() -> None:
    """Tolerance: none. With three shards the last wave has one of them."""
    assert curves_of_two([2, 3], micro_batch=3) == [[curve(2, micro_batch=3), curve(3, micro_batch=3)]] * 2


@pytest.mark.parametrize(("wave", "sizes"), [(None, [5]), (2, [2, 2, 1]), (9, [5])], ids=["all", "two", "more"])
def test_a_wave_of_gradients_is_held_at_a_time(wave: int | None, sizes: list[int]) -> None:
    seen: list[int] = []

    def compute(shards: Sequence[Any]) -> list[Gradient]:
        seen.append(len(shards))
        return [Gradient(torch.tensor(float(shard)), torch.tensor([shard, 2.0 * shard])) for shard in shards]

    mean, turns = MeanGradient(torch.full((2,), 7.0), 5, wave, None), []
    for _ in range(2):
        assert mean.take([1, 2, 3, 4, 5], compute, lambda: turns.append(len(seen))) == 3
        assert mean.target.tolist() == [3, 6]
    assert seen == sizes * 2 and turns == [1, 1 + len(sizes)]


def test_it_is_for_models_of_text() -> None:
    with pytest.raises(InputError, match=r"trainer.micro_batch is for models of text; lower trainer.shard_rows"):
        run_config({"round": {"trainer": {"micro_batch": 4}}})
    assert run_config({"preset": "text-tiny", "round": {"trainer": {"micro_batch": 4}}}).round.trainer.micro_batch == 4
