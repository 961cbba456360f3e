"""The trainer: the layout of a row, the tokens that carry loss, and equal steps however they are computed."""

import pytest
import torch

from sector.engine.config import TrainerConfig
from sector.engine.errors import Diverged
from sector.engine.language import tokens
from sector.engine.language.examples import Examples
from sector.engine.language.operands import Problems, draw_problems
from sector.engine.language.place_ids import DigitOrder
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.models.sector import new_model
from sector.engine.seeding import generator
from sector.engine.training import distill
from sector.engine.training.batches import mixed_batches
from sector.engine.training.distill import schedule, start_training, train_cycle
from sector.engine.training.fused_model import branch_states
from sector.engine.training.laid_out_steps import laid_out_steps
from sector.engine.training.place_rows import Rows, lay_out
from sector.engine.training.supervised import label

PLAIN = TrainerConfig(gap_share=0.0)


def examples(digits: int, count: int, seed: int = 0):
    return label(draw_problems(digits, count, generator(seed, "test", digits), hard_share=0.3))


@pytest.mark.parametrize("order", list(DigitOrder), ids=str)
@pytest.mark.parametrize("digits", [1, 2, 7], ids=str)
def test_a_row_is_the_prompts_and_completions_of_both_policies(order: DigitOrder, digits: int) -> None:
    some = examples(digits, 9)
    rows = lay_out(some, order, PLAIN, generator(1))
    variant = rows.ids[:, 0]
    layout = PlaceLayout(order, variant)
    fast = torch.cat([layout.prompt_ids(some.problems, tokens.ANSWER), layout.answer_ids(some.answers)], 1)
    length = fast.shape[1] - 1
    assert torch.equal(rows.ids[:, :length], fast[:, :-1])
    assert torch.equal(rows.targets[:, : digits + 2], tokens.class_of(fast[:, 2 * digits + 6 :]))
    assert torch.equal(rows.places, tokens.place_of(rows.ids))
    if digits > 1:
        thought = layout.simplification_ids(some.rest, some.digit)
        assert torch.equal(rows.ids[:, length + 1 :], thought[:, :-1])
        assert torch.equal(rows.targets[:, digits + 2 :], tokens.class_of(thought))
    assert set(variant.tolist()) == set(range(tokens.NUM_SHIFTS))


def test_without_a_simplification_a_row_is_the_fast_answer_alone() -> None:
    some = examples(5, 8)
    empty = some.problems.a[:, :0]
    at_once = Examples(some.problems, some.answers, Problems(empty, empty, some.problems.carry), some.digit)
    both, fast = (lay_out(each, DigitOrder.MSD, PLAIN, generator(1)) for each in (some, at_once))
    length = fast.ids.shape[1]
    assert torch.equal(fast.ids, both.ids[:, :length]) and length == 5 * 3 + 7
    assert torch.equal(fast.targets, both.targets[:, : both.answer_length])


def test_branches_do_not_see_each_other() -> None:
    """Both continuations in one row give the states that each gives alone."""
    some = examples(5, 8)
    model = new_model("tiny", 3)
    rows = lay_out(some, DigitOrder.MSD, PLAIN, generator(1))
    layout = PlaceLayout(DigitOrder.MSD, rows.ids[:, 0])
    thought = layout.simplification_ids(some.rest, some.digit)
    alone = torch.cat([layout.prompt_ids(some.problems, tokens.THINK), thought[:, :-1]], 1)
    together = branch_states(model, rows.ids, rows.places, rows.lengths)[:, -thought.shape[1] :]
    torch.testing.assert_close(together, model.hidden_states(alone)[:, -thought.shape[1] :], rtol=0, atol=1e-5)


@pytest.mark.parametrize("widest", [3, 30, tokens.MAX_DIGITS], ids=str)
def test_gaps_move_columns_together_and_carry_no_loss_across(widest: int) -> None:
    some = examples(6, 64)
    rows = lay_out(some, DigitOrder.MSD, TrainerConfig(gap_share=1.0, max_gap=widest), generator(2))
    moved = rows.places - tokens.place_of(rows.ids)
    # The chance that none of 64 gaps is wider than half of the widest is below 1e-13.
    assert (moved >= 0).all() and widest / 2 < moved.max() <= widest
    assert (moved[tokens.place_of(rows.ids) == 0] == 0).all()
    for places, ids, shifts in zip(rows.places, rows.ids, moved, strict=True):
        by_place = {}
        for place, own, shift in zip(places.tolist(), tokens.place_of(ids).tolist(), shifts.tolist(), strict=True):
            assert by_place.setdefault(own, shift) == shift, f"place {own} moved apart at {place}"
    assert (rows.targets == -100).any()
    plain = lay_out(some, DigitOrder.MSD, PLAIN, generator(2))
    kept = rows.targets != -100
    assert torch.equal(rows.targets[kept], plain.targets[kept])


@pytest.mark.parametrize("longest", [6, 250], ids=str)
def test_zeros_in_front_make_examples_of_all_lengths_up_to_the_longest_legal(longest: int) -> None:
    some = examples(longest, 16)
    model = new_model("tiny", 0)
    config = TrainerConfig(gap_share=0.0, zeros=8)
    counts = set()
    for step in laid_out_steps(model, lambda step: [some], range(100), config, seed=3):
        shard = step[0]
        assert isinstance(shard, Rows)
        digits = shard.targets[:, : shard.answer_length - 1]
        count = digits.shape[1] - some.problems.answer_width
        assert torch.equal(digits, torch.nn.functional.pad(some.answers, (count, 0)))
        counts.add(count)
    assert counts == set(range(min(8, tokens.MAX_DIGITS - longest) + 1))


def weights(shards: int, threads: int) -> torch.Tensor:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    config = TrainerConfig(num_shards=shards, shard_rows=8, warmup_steps=2)
    model = new_model("tiny", 0)
    batches = mixed_batches([examples(4, 50)], [examples(2, 50)], shards, 8, 0.5, seed=5)
    losses = [loss for _, loss in train_cycle(start_training(model, config), batches, config, 12, seed=7)]
    torch.set_num_threads(before)
    assert losses[-1] < losses[0]
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_training_does_not_depend_on_threads_or_the_global_stream() -> None:
    torch.manual_seed(1)
    first = weights(4, threads=1)
    torch.manual_seed(2)
    assert torch.equal(first, weights(4, threads=2))


@pytest.mark.parametrize("cores", [1, 2, 8, 16], ids="cores{}".format)
def test_training_does_not_depend_on_cores(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight shards on fewer cores, as many, and more."""
    expected = weights(8, threads=1)
    monkeypatch.setattr(distill, "num_cores", lambda: cores)
    assert torch.equal(weights(8, threads=1), expected)


def test_a_loss_that_is_no_number_stops_before_the_weights_change() -> None:
    config = TrainerConfig(num_shards=1, shard_rows=8)
    model = new_model("tiny", 0)
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    before = model.embed.weight.detach().clone()
    with pytest.raises(Diverged, match="step 0"):
        next(train_cycle(start_training(model, config), lambda _: [examples(3, 8)], config, 1, seed=7))
    assert torch.equal(before, model.embed.weight)


def test_the_schedule_warms_up_and_decays() -> None:
    config = TrainerConfig(warmup_steps=10, final_rate=0.05)
    rates = [schedule(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9]
    assert rates[9:] == sorted(rates[9:], reverse=True) and rates[-1] == pytest.approx(0.05, abs=0.01)


def test_replay_has_its_share_and_steps_draw_apart() -> None:
    batches = mixed_batches([examples(5, 40)], [examples(2, 40), examples(3, 40)], 4, 8, 0.5, seed=1)
    for step in range(5):
        lengths = [shard.digits for shard in batches(step)]
        assert lengths[:2] == [5, 5] and all(length in (2, 3) for length in lengths[2:])
    # Eleven sets take turns, whatever the steps: none is seen twice before all were seen once.
    sets = [examples(length, 40) for length in range(2, 13)]
    turns = mixed_batches([examples(13, 40)], sets, 4, 8, 0.5, seed=1)
    seen = [shard.digits for step in range(22) for shard in turns(step)[2:]]
    rounds = [seen[start : start + 11] for start in range(0, 44, 11)]
    assert all(sorted(each) == list(range(2, 13)) for each in rounds) and rounds[0] != rounds[1]
    assert not torch.equal(batches(0)[0].answers, batches(1)[0].answers)
    assert torch.equal(batches(3)[0].answers, batches(3)[0].answers)
