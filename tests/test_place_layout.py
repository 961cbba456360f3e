"""Prompt layout and parsing: the ids that the policies write and read, without a model."""

import pytest
import torch
from torch import Tensor

from sector.engine.language import place_layout, tokens
from sector.engine.language.operands import Problems, draw_problems
from sector.engine.language.place_ids import DigitOrder
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.training import supervised

ORDERS = pytest.mark.parametrize("order", list(DigitOrder), ids=str)
VARIANTS = pytest.mark.parametrize("variant", range(tokens.NUM_SHIFTS), ids="variant{}".format)
DIGITS = pytest.mark.parametrize("digits", [1, 2, 6, 63, 256], ids="digits{}".format)


def _mixed(digits: int, draws: torch.Generator) -> tuple[Problems, Tensor]:
    """Problems and a variant for each row, all different, so that one row's leak into another shows."""
    problems = draw_problems(digits, 12, draws, hard_share=0.5)
    return problems, torch.arange(12) % tokens.NUM_SHIFTS


GOLDEN = [
    pytest.param("12+34", DigitOrder.MSD, 0, [0, 17, 34, 42, 9, 19, 36, 42, 43, 3], id="msd"),
    pytest.param("12+34+1", DigitOrder.LSD, 0, [0, 18, 33, 42, 9, 20, 35, 42, 44, 3], id="lsd_carry"),
    pytest.param("12+34", DigitOrder.MSD, 1, [1, 113, 130, 138, 10, 115, 132, 138, 139, 4], id="msd_shifted"),
    pytest.param("7+8+1", DigitOrder.MSD, 2, [2, 263, 266, 11, 264, 266, 268, 5], id="one_digit_shifted"),
]


@pytest.mark.parametrize(("text", "order", "variant", "ids"), GOLDEN)
def test_prompt_golden(text: str, order: DigitOrder, variant: int, ids: list[int]) -> None:
    """Frozen: a change here makes every checkpoint useless."""
    assert PlaceLayout(order, variant).prompt_ids(Problems.parse([text]), tokens.ANSWER).tolist() == [ids]


def test_completions_golden() -> None:
    """58+67: the answer 125, and the simplification 5+6+1|5."""
    examples = supervised.label(Problems.parse(["58+67"]))
    assert PlaceLayout().answer_ids(examples.answers).tolist() == [[17, 34, 53, 61]]
    written = PlaceLayout().simplification_ids(examples.rest, examples.digit)
    assert written.tolist() == [[21, 26, 12, 22, 26, 28, 37, 45]]
    shifted = PlaceLayout(variant=1).simplification_ids(examples.rest, examples.digit)
    assert shifted.tolist() == [[117, 122, 13, 118, 122, 124, 133, 141]]


@ORDERS
@DIGITS
def test_lengths(order: DigitOrder, digits: int, draws: torch.Generator) -> None:
    problems, variant = _mixed(digits, draws)
    layout = PlaceLayout(order, variant)
    prompt = layout.prompt_ids(problems, tokens.THINK)
    assert prompt.shape == (12, 2 * digits + 6)
    assert torch.equal(prompt[:, :-1], layout.prefix_ids(problems))
    examples = supervised.label(problems)
    assert layout.answer_ids(examples.answers).shape[1] == place_layout.PlaceLayout().answer_length(digits)
    if digits > 1:
        written = layout.simplification_ids(examples.rest, examples.digit)
        assert written.shape[1] == place_layout.PlaceLayout().simplification_length(digits)


@ORDERS
@DIGITS
def test_sequences_obey_the_place_rule_and_the_legal_table(
    order: DigitOrder, digits: int, draws: torch.Generator
) -> None:
    problems, variant = _mixed(digits, draws)
    layout, examples = PlaceLayout(order, variant), supervised.label(problems)
    completions = {tokens.ANSWER: layout.answer_ids(examples.answers)}
    if digits > 1:
        completions[tokens.THINK] = layout.simplification_ids(examples.rest, examples.digit)
    for mode, completion in completions.items():
        prompt = layout.prompt_ids(problems, mode)
        ids = torch.cat([prompt, completion], dim=1)
        assert torch.equal(tokens.next_ids(ids[:, :-1], tokens.class_of(ids[:, 1:])), ids[:, 1:])
        generated = ids[:, prompt.shape[1] - 1 :]
        legal = tokens.legal_table()[tokens.class_of(generated[:, :-1]), tokens.class_of(generated[:, 1:])]
        assert bool(legal.all())


@ORDERS
@VARIANTS
@DIGITS
def test_answers_round_trip(order: DigitOrder, variant: int, digits: int, draws: torch.Generator) -> None:
    layout = PlaceLayout(order, variant)
    answers = torch.randint(0, 10, (9, digits + 1), generator=draws)
    ids = layout.answer_ids(answers)
    parsed, valid = layout.parse_answers(ids, digits)
    assert torch.equal(parsed, answers)
    assert bool(valid.all())
    padded = torch.nn.functional.pad(ids, (0, 3), value=tokens.PAD_ID)
    assert torch.equal(layout.parse_answers(padded, digits)[0], answers)


@ORDERS
@VARIANTS
@pytest.mark.parametrize("digits", [2, 6, 63, 256], ids="digits{}".format)
def test_simplifications_round_trip(order: DigitOrder, variant: int, digits: int, draws: torch.Generator) -> None:
    layout = PlaceLayout(order, variant)
    rest = draw_problems(digits - 1, 9, draws)
    digit = torch.randint(0, 10, (9,), generator=draws)
    parsed = layout.parse_simplifications(layout.simplification_ids(rest, digit), digits)
    assert bool(parsed.valid.all())
    assert parsed.rest.texts() == rest.texts()
    assert torch.equal(parsed.digit, digit)


@ORDERS
def test_layouts_of_one_variant_a_row(order: DigitOrder, draws: torch.Generator) -> None:
    problems, variant = _mixed(6, draws)
    layout = PlaceLayout(order, variant)
    together = layout.prompt_ids(problems, tokens.ANSWER)
    for row in range(len(problems)):
        rows = torch.tensor([row])
        alone = PlaceLayout(order, int(variant[row])).prompt_ids(problems[rows], tokens.ANSWER)
        assert torch.equal(together[rows], alone)
        assert torch.equal(together[rows], layout[rows].prompt_ids(problems[rows], tokens.ANSWER))


def test_one_variant_for_the_batch_stays_when_rows_are_taken() -> None:
    assert PlaceLayout(DigitOrder.LSD, 2)[torch.tensor([0])] == PlaceLayout(DigitOrder.LSD, 2)


def _corruptions(ids: Tensor, digits: tuple[int, ...]) -> list[tuple[str, Tensor]]:
    """Rows `[T]` that almost parse; `digits` are the indices that hold digits."""
    cases = []
    for index in range(len(ids)):
        for name, value in (
            ("padding", tokens.PAD_ID),
            ("moved", int(ids[index]) + tokens.NUM_LOCAL),
            ("mark", tokens.START - tokens.NUM_LOCAL),
            ("eos", tokens.NUM_LOCAL * int(tokens.place_of(ids[index])) + tokens.EOS),
        ):
            if value != int(ids[index]):
                changed = ids.clone()
                changed[index] = value
                cases.append((f"{name} at {index}", changed))
        if index not in digits:
            changed = ids.clone()
            changed[index] = tokens.NUM_LOCAL * int(tokens.place_of(ids[index])) + 3
            cases.append((f"digit at {index}", changed))
    return cases


@ORDERS
@VARIANTS
def test_malformed_answers_are_rejected_alone(order: DigitOrder, variant: int, draws: torch.Generator) -> None:
    layout = PlaceLayout(order, variant)
    good = torch.randint(1, 10, (1, 5), generator=draws)
    ids = layout.answer_ids(good)[0]
    cases = _corruptions(ids, digits=(0, 1, 2, 3, 4))
    assert len(cases) > 15
    # Good and bad rows alternate.
    batch = torch.stack([row for _, bad in cases for row in (ids, bad)])
    answers, valid = layout.parse_answers(batch, 4)
    assert valid.tolist() == [True, False] * len(cases)
    assert torch.equal(answers[::2], good.expand(len(cases), -1))
    assert not answers[1::2].any()


@ORDERS
@VARIANTS
def test_malformed_simplifications_are_rejected_alone(order: DigitOrder, variant: int, draws: torch.Generator) -> None:
    layout = PlaceLayout(order, variant)
    rest = draw_problems(3, 1, draws)
    ids = layout.simplification_ids(rest, torch.tensor([7]))[0]
    cases = _corruptions(ids, digits=(0, 1, 2, 5, 6, 7, 10))
    cases.append(
        ("another variant", PlaceLayout(order, 1 - min(variant, 1)).simplification_ids(rest, torch.tensor([7]))[0])
    )
    batch = torch.stack([row for _, bad in cases for row in (ids, bad)])
    parsed = layout.parse_simplifications(batch, 4)
    assert [name for (name, _), accepted in zip(cases, parsed.valid[1::2].tolist(), strict=True) if accepted] == []
    assert bool(parsed.valid[::2].all())
    assert parsed.rest.texts()[::2] == rest.texts() * len(cases)
    assert parsed.digit.tolist() == [7, 0] * len(cases)
    assert parsed.rest.texts()[1::2] == ["000+000"] * len(cases)
