"""Prompt layout and parsing: what the policies write and read, without a model."""

import pytest
import torch
from torch import Tensor

from sector.engine import policy, supervised, tokens
from sector.engine.policy import DigitOrder, Layout
from sector.engine.problem import Problems, draw_problems

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
    assert policy.prompt_ids(Problems.parse([text]), tokens.ANSWER, Layout(order, variant)).tolist() == [ids]


def test_completions_golden() -> None:
    """58+67: the answer 125, and the simplification 5+6+1|5."""
    examples = supervised.label(Problems.parse(["58+67"]))
    assert policy.answer_ids(examples.answers, Layout()).tolist() == [[17, 34, 53, 61]]
    written = policy.simplification_ids(examples.rest, examples.digit, Layout())
    assert written.tolist() == [[21, 26, 12, 22, 26, 28, 37, 45]]
    shifted = policy.simplification_ids(examples.rest, examples.digit, Layout(variant=1))
    assert shifted.tolist() == [[117, 122, 13, 118, 122, 124, 133, 141]]


@ORDERS
@DIGITS
def test_lengths(order: DigitOrder, digits: int, draws: torch.Generator) -> None:
    problems, variant = _mixed(digits, draws)
    layout = Layout(order, variant)
    prompt = policy.prompt_ids(problems, tokens.THINK, layout)
    assert prompt.shape == (12, 2 * digits + 6)
    assert torch.equal(prompt[:, :-1], policy.prefix_ids(problems, layout))
    examples = supervised.label(problems)
    assert policy.answer_ids(examples.answers, layout).shape[1] == policy.answer_length(digits)
    if digits > 1:
        written = policy.simplification_ids(examples.rest, examples.digit, layout)
        assert written.shape[1] == policy.simplification_length(digits)


@ORDERS
@DIGITS
def test_sequences_obey_the_place_rule_and_the_legal_table(
    order: DigitOrder, digits: int, draws: torch.Generator
) -> None:
    problems, variant = _mixed(digits, draws)
    layout, examples = Layout(order, variant), supervised.label(problems)
    completions = {tokens.ANSWER: policy.answer_ids(examples.answers, layout)}
    if digits > 1:
        completions[tokens.THINK] = policy.simplification_ids(examples.rest, examples.digit, layout)
    for mode, completion in completions.items():
        prompt = policy.prompt_ids(problems, mode, layout)
        ids = torch.cat([prompt, completion], dim=1)
        assert torch.equal(tokens.next_ids(ids[:, :-1], tokens.class_of(ids[:, 1:])), ids[:, 1:])
        generated = ids[:, prompt.shape[1] - 1 :]
        legal = tokens.legal_table()[tokens.class_of(generated[:, :-1]), tokens.class_of(generated[:, 1:])]
        assert bool(legal.all())


@ORDERS
@VARIANTS
@DIGITS
def test_answers_round_trip(order: DigitOrder, variant: int, digits: int, draws: torch.Generator) -> None:
    layout = Layout(order, variant)
    answers = torch.randint(0, 10, (9, digits + 1), generator=draws)
    ids = policy.answer_ids(answers, layout)
    parsed, valid = policy.parse_answers(ids, digits, layout)
    assert torch.equal(parsed, answers)
    assert bool(valid.all())
    padded = torch.nn.functional.pad(ids, (0, 3), value=tokens.PAD_ID)
    assert torch.equal(policy.parse_answers(padded, digits, layout)[0], answers)


@ORDERS
@VARIANTS
@pytest.mark.parametrize("digits", [2, 6, 63, 256], ids="digits{}".format)
def test_simplifications_round_trip(order: DigitOrder, variant: int, digits: int, draws: torch.Generator) -> None:
    layout = Layout(order, variant)
    rest = draw_problems(digits - 1, 9, draws)
    digit = torch.randint(0, 10, (9,), generator=draws)
    parsed = policy.parse_simplifications(policy.simplification_ids(rest, digit, layout), digits, layout)
    assert bool(parsed.valid.all())
    assert parsed.rest.texts() == rest.texts()
    assert torch.equal(parsed.digit, digit)


@ORDERS
def test_layouts_of_one_variant_a_row(order: DigitOrder, draws: torch.Generator) -> None:
    problems, variant = _mixed(6, draws)
    layout = Layout(order, variant)
    together = policy.prompt_ids(problems, tokens.ANSWER, layout)
    for row in range(len(problems)):
        rows = torch.tensor([row])
        alone = policy.prompt_ids(problems[rows], tokens.ANSWER, Layout(order, int(variant[row])))
        assert torch.equal(together[rows], alone)
        assert torch.equal(together[rows], policy.prompt_ids(problems[rows], tokens.ANSWER, layout[rows]))


def test_one_variant_for_the_batch_stays_when_rows_are_taken() -> None:
    assert Layout(DigitOrder.LSD, 2)[torch.tensor([0])] == Layout(DigitOrder.LSD, 2)


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
    layout = Layout(order, variant)
    good = torch.randint(1, 10, (1, 5), generator=draws)
    ids = policy.answer_ids(good, layout)[0]
    cases = _corruptions(ids, digits=(0, 1, 2, 3, 4))
    assert len(cases) > 15
    # Good and bad rows alternate.
    batch = torch.stack([row for _, bad in cases for row in (ids, bad)])
    answers, valid = policy.parse_answers(batch, 4, layout)
    assert valid.tolist() == [True, False] * len(cases)
    assert torch.equal(answers[::2], good.expand(len(cases), -1))
    assert not answers[1::2].any()


@ORDERS
@VARIANTS
def test_malformed_simplifications_are_rejected_alone(order: DigitOrder, variant: int, draws: torch.Generator) -> None:
    layout = Layout(order, variant)
    rest = draw_problems(3, 1, draws)
    ids = policy.simplification_ids(rest, torch.tensor([7]), layout)[0]
    cases = _corruptions(ids, digits=(0, 1, 2, 5, 6, 7, 10))
    cases.append(
        ("another variant", policy.simplification_ids(rest, torch.tensor([7]), Layout(order, 1 - min(variant, 1)))[0])
    )
    batch = torch.stack([row for _, bad in cases for row in (ids, bad)])
    parsed = policy.parse_simplifications(batch, 4, layout)
    assert [name for (name, _), accepted in zip(cases, parsed.valid[1::2].tolist(), strict=True) if accepted] == []
    assert bool(parsed.valid[::2].all())
    assert parsed.rest.texts()[::2] == rest.texts() * len(cases)
    assert parsed.digit.tolist() == [7, 0] * len(cases)
    assert parsed.rest.texts()[1::2] == ["000+000"] * len(cases)
