"""Layout on the device: kernels and plain torch both against the rule of places (`tokens.next_ids`), token by token."""

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from sector.engine.language import tokens
from sector.engine.language.operands import Problems, draw_problems
from sector.engine.language.place_ids import DigitOrder
from sector.engine.training.supervised import label
from sector.kernels import layout
from sector.kernels.layout import (
    Simplified,
    parse_answers,
    parse_answers_kernel,
    parse_answers_reference,
    parse_simplifications,
    parse_simplifications_kernel,
    parse_simplifications_reference,
    prompt_ids,
    prompt_ids_kernel,
    prompt_ids_reference,
)
from sector.kernels.simplification import (
    simplification_ids,
    simplification_ids_kernel,
    simplification_ids_reference,
)

ORDERS = pytest.mark.parametrize("order", list(DigitOrder), ids=str)
# Widths on both sides of powers of two, one row to several programs of them, and the longest problem.
SIZES = pytest.mark.parametrize(
    ("count", "digits"), [(1, 2), (33, 13), (31, 14), (257, 5), (255, 29), (300, 30), (5, 256)], ids=str
)


def _problems(count: int, digits: int) -> tuple[Problems, Tensor]:
    draws = torch.Generator().manual_seed(count + digits)
    variants = torch.randint(0, tokens.NUM_SHIFTS, (count,), generator=draws)
    return draw_problems(digits, count, draws, hard_share=0.5), variants


def _by_rule(mark: int, classes: Tensor, variants: Tensor) -> Tensor:
    """Ids `[B, T]` of classes `[B, T]` that follow a mark, each id by the one before it."""
    previous, ids = mark + variants - tokens.NUM_LOCAL, []
    for column in classes.unbind(dim=1):
        previous = tokens.next_ids(previous, column)
        ids.append(previous)
    return torch.stack(ids, dim=1)


def _classes(problems: Problems, sign: int, variants: Tensor, order: DigitOrder) -> Tensor:
    """Classes of `a ) + b ) c`, where `sign` is the first variant of the mark between the operands."""
    a, b = (digits.flip(1) if order is DigitOrder.LSD else digits for digits in (problems.a, problems.b))
    end, carry = torch.full((len(a), 1), tokens.END), tokens.CARRY_0 + problems.carry
    return torch.cat([a, end, (sign + variants).unsqueeze(1), b, end, carry.unsqueeze(1)], dim=1)


def _prompts(problems: Problems, variants: Tensor, order: DigitOrder) -> Tensor:
    classes = _classes(problems, tokens.PLUS, variants, order)
    first = (tokens.START + variants - tokens.NUM_LOCAL).unsqueeze(1)
    return torch.cat([first, _by_rule(tokens.START, classes, variants)], dim=1)


def _steps(rest: Problems, digit: Tensor, variants: Tensor, order: DigitOrder) -> Tensor:
    end = torch.stack([digit, torch.full_like(digit, tokens.EOS)], dim=1)
    return _by_rule(tokens.THINK, torch.cat([_classes(rest, tokens.JOIN, variants, order), end], dim=1), variants)


def _answers(answers: Tensor, variants: Tensor, order: DigitOrder) -> Tensor:
    digits = answers.flip(1) if order is DigitOrder.LSD else answers
    return _by_rule(tokens.ANSWER, torch.cat([digits, torch.full((len(answers), 1), tokens.EOS)], dim=1), variants)


def _digits(ids: Tensor, order: DigitOrder) -> Tensor:
    """Digits of ids, 0 for another token, most significant first."""
    classes = tokens.class_of(ids)
    digits = torch.where(classes < tokens.NUM_DIGITS, classes, 0)
    return digits.flip(1) if order is DigitOrder.LSD else digits


def _damaged(ids: Tensor, seed: int) -> Tensor:
    """Two rows in three with one id that another could be mistaken for: a neighbour's, another place's, a mark's."""
    draws = torch.Generator().manual_seed(seed)
    count, length = ids.shape
    column = torch.randint(0, length, (count,), generator=draws)
    rows = torch.arange(count)
    old = ids[rows, column]
    steps = torch.tensor([1, -1, 16, -16, 10, -10])
    near = (old + steps[torch.randint(0, 6, (count,), generator=draws)]).clamp(min=0)
    far = torch.randint(0, tokens.VOCAB_SIZE, (count,), generator=draws)
    marks = torch.randint(0, 16, (count,), generator=draws)
    kind = torch.randint(0, 6, (count,), generator=draws)
    new = torch.stack([near, near, far, marks, old, old])[kind, rows]
    return ids.index_put((rows, column), new)


def _simplifications(count: int, digits: int, order: DigitOrder) -> tuple[Tensor, Tensor]:
    """Completions, true but for damage, in a longer tensor (only the beginning is theirs), and their variants."""
    problems, variants = _problems(count, digits)
    truth = label(problems)
    ids = _steps(truth.rest, truth.digit, variants, order)
    return torch.cat([_damaged(ids, digits), torch.full((count, 3), tokens.PAD_ID)], dim=1), variants


def _check_simplified(simplified: Simplified, ids: Tensor, digits: int, variants: Tensor, order: DigitOrder) -> None:
    """Assert that rows are valid if the rule writes the same of their digits, and that others hold zeros."""
    ids, width = ids[:, : 2 * digits + 4], digits - 1
    carry = (tokens.class_of(ids[:, 2 * width + 3]) == tokens.CARRY_0 + 1).long()
    rest = Problems(_digits(ids[:, :width], order), _digits(ids[:, width + 2 : 2 * width + 2], order), carry)
    digit = _digits(ids[:, 2 * width + 4 : 2 * width + 5], order)[:, 0]
    valid = (_steps(rest, digit, variants, order) == ids).all(dim=1)
    expected = Simplified(rest.a * valid[:, None], rest.b * valid[:, None], carry * valid, digit * valid, valid)
    for field in fields(Simplified):
        assert torch.equal(getattr(simplified, field.name).cpu(), getattr(expected, field.name)), field.name


@SIZES
@ORDERS
@pytest.mark.parametrize("function", [prompt_ids_reference, prompt_ids_kernel], ids=["reference", "kernel"])
def test_prompts_are_the_policys(
    count: int, digits: int, order: DigitOrder, function: Callable[..., Tensor], kernel_device
) -> None:
    problems, variants = _problems(count, digits)
    given = (tensor.to(kernel_device) for tensor in (problems.a, problems.b, problems.carry, variants))
    laid_out = function(*given, tokens.kernel_table(kernel_device), order is DigitOrder.LSD)
    assert torch.equal(laid_out.cpu(), _prompts(problems, variants, order))


@SIZES
@ORDERS
@pytest.mark.parametrize(
    "function", [parse_simplifications_reference, parse_simplifications_kernel], ids=["reference", "kernel"]
)
def test_simplifications_say_what_the_policy_reads(
    count: int, digits: int, order: DigitOrder, function: Callable[..., Simplified], kernel_device
) -> None:
    ids, variants = _simplifications(count, digits, order)
    table = tokens.kernel_table(kernel_device)
    least_first = order is DigitOrder.LSD
    simplified = function(ids.to(kernel_device), digits, variants.to(kernel_device), table, least_first)
    _check_simplified(simplified, ids, digits, variants, order)
    if count > 100:
        assert 0.2 < simplified.valid.double().mean() < 0.8


@SIZES
@ORDERS
@pytest.mark.parametrize(
    "function", [simplification_ids_reference, simplification_ids_kernel], ids=["reference", "kernel"]
)
def test_written_simplifications_are_the_policys(
    count: int, digits: int, order: DigitOrder, function: Callable[..., Tensor], kernel_device
) -> None:
    problems, variants = _problems(count, digits)
    digit = torch.arange(count) % 10
    # Without their last digits, as drafts have them: rows are not side by side.
    rest = Problems(problems.a[:, :-1], problems.b[:, :-1], problems.carry)
    expected = _steps(rest, digit, variants, order)
    a, b = problems.a.to(kernel_device)[:, :-1], problems.b.to(kernel_device)[:, :-1]
    given = (tensor.to(kernel_device) for tensor in (problems.carry, digit, variants))
    written = function(a, b, *given, tokens.kernel_table(kernel_device), order is DigitOrder.LSD)
    assert torch.equal(written.cpu(), expected)


@SIZES
@ORDERS
@pytest.mark.parametrize("function", [parse_answers_reference, parse_answers_kernel], ids=["reference", "kernel"])
def test_answers_say_what_the_policy_reads(
    count: int, digits: int, order: DigitOrder, function: Callable[..., tuple[Tensor, Tensor]], kernel_device
) -> None:
    problems, variants = _problems(count, digits)
    ids = _damaged(_answers(label(problems).answers, variants, order), digits)
    ids = torch.cat([ids, torch.full((count, 2), tokens.PAD_ID)], dim=1)
    table = tokens.kernel_table(kernel_device)
    answers, valid = function(ids.to(kernel_device), digits, variants.to(kernel_device), table, order is DigitOrder.LSD)
    expected = _digits(ids[:, : digits + 1], order)
    expected_valid = (_answers(expected, variants, order) == ids[:, : digits + 2]).all(dim=1)
    assert torch.equal(valid.cpu(), expected_valid)
    assert torch.equal(answers.cpu(), expected * expected_valid.unsqueeze(1))


@pytest.mark.parametrize(
    "function", [parse_simplifications_reference, parse_simplifications_kernel], ids=["reference", "kernel"]
)
def test_every_id_in_every_column(function: Callable[..., Simplified], kernel_device: torch.device) -> None:
    """One simplification of two digits, with each id of the low places in each of its columns."""
    ids = _steps(*_one_rest(), torch.ones(1, dtype=torch.int64), DigitOrder.MSD)
    length, low = ids.shape[1], 16 * 10
    every = ids.repeat(length * low, 1)
    every[torch.arange(length * low), torch.arange(length).repeat_interleave(low)] = torch.arange(low).repeat(length)
    variants = torch.ones(len(every), dtype=torch.int64)
    simplified = function(every.to(kernel_device), 2, variants.to(kernel_device), tokens.kernel_table(kernel_device))
    _check_simplified(simplified, every, 2, variants, DigitOrder.MSD)
    # Ten digits in three columns, two carry marks in one, and each of the other columns as it was.
    assert int(simplified.valid.sum()) == 3 * 10 + 2 + (length - 4)


def _one_rest() -> tuple[Problems, Tensor]:
    return Problems(torch.tensor([[4]]), torch.tensor([[7]]), torch.tensor([1])), torch.tensor([2])


def test_a_chain_of_thought_never_meets_the_host(kernel_device: torch.device) -> None:
    """Each simplification is the next prompt's problem as it comes out of the kernel, down to one digit."""
    problems, variants = _problems(40, 6)
    table = tokens.kernel_table(kernel_device)
    held = variants.to(kernel_device)
    for digits in range(6, 1, -1):
        truth = label(problems)
        ids = _steps(truth.rest, truth.digit, variants, DigitOrder.MSD).to(kernel_device)
        step = parse_simplifications(ids, digits, held, table)
        assert step.valid.all()
        prompts = prompt_ids(step.a, step.b, step.carry, held, table)
        assert torch.equal(prompts.cpu(), _prompts(truth.rest, variants, DigitOrder.MSD))
        problems = truth.rest


def test_a_row_does_not_depend_on_its_batch(kernel_device: torch.device) -> None:
    ids, variants = (tensor.to(kernel_device) for tensor in _simplifications(300, 7, DigitOrder.MSD))
    table = tokens.kernel_table(kernel_device)
    together = parse_simplifications_kernel(ids, 7, variants, table)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(6)).to(kernel_device)
    for rows in (order[:1], order[1:40], order[40:]):
        apart = parse_simplifications_kernel(ids[rows], 7, variants[rows], table)
        for field in fields(Simplified):
            assert torch.equal(getattr(apart, field.name), getattr(together, field.name)[rows]), field.name


def test_no_rows(kernel_device: torch.device) -> None:
    nobody = torch.zeros(0, dtype=torch.int64, device=kernel_device)
    table = tokens.kernel_table(kernel_device)
    assert prompt_ids_kernel(nobody.view(0, 4), nobody.view(0, 4), nobody, nobody, table).shape == (0, 13)
    assert parse_answers_kernel(nobody.view(0, 6), 4, nobody, table)[0].shape == (0, 5)
    assert parse_simplifications_kernel(nobody.view(0, 12), 4, nobody, table).a.shape == (0, 3)


@pytest.mark.parametrize("kernel_runs", [True, False], ids=["kernel", "reference"])
def test_which_one_runs(kernel_runs: bool, kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    kind, other = ("kernel", "reference") if kernel_runs else ("reference", "kernel")
    operations = ["prompt_ids", "parse_simplifications", "parse_answers"]
    for operation in operations:
        inner = getattr(layout, f"{operation}_{kind}")
        monkeypatch.setattr(
            layout, f"{operation}_{kind}", lambda *a, name=operation, inner=inner: ran.append(name) or inner(*a)
        )
        monkeypatch.setattr(layout, f"{operation}_{other}", None)
    monkeypatch.setattr(layout, "runs_kernel", lambda tensor: kernel_runs)
    problems, variants = _problems(3, 4)
    table = tokens.kernel_table(kernel_device)
    given = [tensor.to(kernel_device) for tensor in (problems.a, problems.b, problems.carry, variants)]
    prompt_ids(*given, table)
    assert ran == ["prompt_ids"]
    parse_answers(torch.zeros(3, 6, dtype=torch.int64, device=kernel_device), 4, given[3], table)
    assert ran[1:] == ["parse_answers"]
    parse_simplifications(torch.zeros(3, 12, dtype=torch.int64, device=kernel_device), 4, given[3], table)
    assert ran[2] == "parse_simplifications"


def test_what_the_kernels_would_misread_is_refused() -> None:
    table, row = tokens.kernel_table(), torch.zeros(3, dtype=torch.int64)
    operand, ids = torch.zeros(3, 4, dtype=torch.int64), torch.zeros(3, 11, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"b must be \[3, 4\], not \[3, 3\]"):
        prompt_ids(operand, operand[:, :3], row, row, table)
    with pytest.raises(ValueError, match=r"carry must be torch\.int64"):
        prompt_ids(operand, operand, row.int(), row, table)
    with pytest.raises(ValueError, match="0 digits"):
        prompt_ids(operand[:, :0], operand[:, :0], row, row, table)
    with pytest.raises(ValueError, match="at least 12"):
        parse_simplifications(ids, 4, row, table)
    with pytest.raises(ValueError, match="1 digits cannot be simplified"):
        parse_simplifications(ids, 1, row, table)
    with pytest.raises(ValueError, match="adjacent ids"):
        parse_answers(ids.T, 1, torch.zeros(11, dtype=torch.int64), table)
    with pytest.raises(ValueError, match=r"variants must be \[3\]"):
        parse_answers(ids, 4, row[:2], table)
    with pytest.raises(ValueError, match="a must have digits, adjacent"):
        simplification_ids(torch.zeros(4, 3, dtype=torch.int64).T, operand, row, row, row, table)
    with pytest.raises(ValueError, match=r"digit must be \[3\]"):
        simplification_ids(operand, operand, row, row[:2], row, table)
    with pytest.raises(ValueError, match="no problem of 0 digits"):
        parse_answers(ids, 0, row, table)
