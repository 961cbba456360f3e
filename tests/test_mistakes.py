"""Kinds of mistakes: each one made on purpose, and recognised."""

import pytest
import torch

from sector.engine.language import tokens
from sector.engine.language.operands import Problems, draw_problems
from sector.engine.language.place_ids import DigitOrder
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.language.products import Products
from sector.engine.run.audit import answer_mistakes, simplification_mistakes
from sector.engine.tasks import find_task
from sector.engine.tasks.addition import Sums
from sector.engine.tasks.mistakes import Mistake, tally
from sector.engine.training.supervised import label

# 1 + 9 carries into the tens, where 4 + 5 hands it on; nothing carries out of 2 + 3.
TEXT, SUM = "241+359", "0600"


def digits_of(text: str) -> torch.Tensor:
    return torch.tensor([[int(digit) for digit in text]])


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (SUM, Mistake.RIGHT),
        ("0590", Mistake.CARRY_MISSED),
        ("0500", Mistake.CARRY_MISSED),
        ("0601", Mistake.CARRY_INVENTED),
        ("1600", Mistake.CARRY_INVENTED),
        ("0610", Mistake.ADDED),
        ("0602", Mistake.ADDED),
        ("0609", Mistake.ADDED),
        # The first one, as one adds, names it.
        ("0501", Mistake.CARRY_INVENTED),
        ("1590", Mistake.CARRY_MISSED),
    ],
    ids=str,
)
def test_the_last_wrong_column_says_what_happened(answer: str, kind: Mistake) -> None:
    problems = Problems.parse([TEXT])
    assert Sums().answer_mistakes(problems, digits_of(answer)) == [kind]


def test_a_missed_leading_carry_is_a_missed_carry() -> None:
    problems = Problems.parse(["60+50", "60+50+1"])
    assert Sums().answer_mistakes(problems, torch.tensor([[0, 1, 0], [1, 1, 0]])) == [Mistake.CARRY_MISSED] * 2


@pytest.mark.parametrize("order", list(DigitOrder), ids=str)
def test_what_does_not_parse_is_too_long_too_short_or_nothing_at_all(order: DigitOrder) -> None:
    problems = draw_problems(4, 4, torch.Generator().manual_seed(2))
    layout = PlaceLayout(order)
    ids = layout.answer_ids(label(problems).answers)
    short = layout.answer_ids(label(problems).answers[:, :4])
    ids[1] = torch.cat([short[1], torch.tensor([tokens.PAD_ID])])
    # A sixth digit where the end should stand.
    ids[2, 5] = tokens.NUM_LOCAL * 6 + 3
    ids[3, 0] = tokens.PAD_ID
    kinds = answer_mistakes(ids, problems, layout)
    assert kinds == [Mistake.RIGHT, Mistake.WRONG_LENGTH, Mistake.WRONG_LENGTH, Mistake.UNPARSABLE]


def test_simplifications_are_judged_in_the_order_they_are_written() -> None:
    problems = Problems.parse(["241+359"] * 8)
    truth = label(problems)
    a, carry, digit = truth.rest.a.clone(), truth.rest.carry.clone(), truth.digit.clone()
    a[1, 0], carry[2], digit[3] = 9, 0, 7
    # Several at once: the copy comes first, then the carry.
    a[4, 1], carry[4] = 0, 0
    carry[5], digit[5] = 0, 1
    layout = PlaceLayout()
    ids = layout.simplification_ids(Problems(a, truth.rest.b, carry), digit)
    shorter = layout.simplification_ids(Problems(a[:, :1], truth.rest.b[:, :1], carry), digit)
    ids[6] = torch.cat([shorter[6], torch.full((2,), tokens.PAD_ID)])
    ids[7, 3] = tokens.PAD_ID
    kinds = simplification_mistakes(ids, problems, layout)
    assert kinds == [
        Mistake.RIGHT,
        Mistake.COPIED,
        Mistake.CARRY_MISSED,
        Mistake.ADDED,
        Mistake.COPIED,
        Mistake.CARRY_MISSED,
        Mistake.WRONG_LENGTH,
        Mistake.UNPARSABLE,
    ]


def test_a_carry_that_is_not_there_is_invented() -> None:
    problems = Problems.parse(["241+352"])
    truth = label(problems)
    rest = Problems(truth.rest.a, truth.rest.b, 1 - truth.rest.carry)
    ids = PlaceLayout().simplification_ids(rest, truth.digit)
    assert simplification_mistakes(ids, problems, PlaceLayout()) == [Mistake.CARRY_INVENTED]


def test_a_step_of_a_product_is_judged_in_the_order_it_is_worked_out() -> None:
    task = find_task("multiplication")
    problems = task.parse(["47*63+88"] * 7)
    truth = label(problems)
    assert truth.rest.texts()[0] == "47*6+22~12,21,00,141,10" and truth.digit[0] == 9
    work, c, a = truth.rest.work.clone(), truth.rest.c.clone(), truth.rest.a.clone()
    # A digit of the tens, a carry of the first sum, one of the second, a digit of the sum, a copy; and two at once.
    work[1, 0], work[2, 5], work[3, 9], c[4, 1], a[5, 0] = 2, 1, 0, 3, 5
    a[6, 0], work[6, 9] = 5, 0
    layout = task.layout("lsd")
    ids = layout.simplification_ids(Products(a, truth.rest.b, c, work), truth.digit)
    assert simplification_mistakes(ids, problems, layout) == [
        Mistake.RIGHT,
        Mistake.ADDED,
        Mistake.CARRY_INVENTED,
        Mistake.CARRY_MISSED,
        Mistake.ADDED,
        Mistake.COPIED,
        Mistake.CARRY_MISSED,
    ]


def test_a_tally_names_every_kind() -> None:
    counts = tally([Mistake.RIGHT, Mistake.RIGHT, Mistake.COPIED])
    assert counts == {**dict.fromkeys(map(str, Mistake), 0), "right": 2, "copied": 1}
