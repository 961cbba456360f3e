"""The kernels that begin and advance the state of sequences, against plain torch; interpreted without a GPU."""

import pytest
import torch
from torch import Tensor

from sector.engine.language import tokens
from sector.kernels.sequences import (
    SequenceField,
    advance,
    advance_kernel,
    advance_reference,
    begin,
    begin_kernel,
    begin_reference,
)

PREFIX, STAGE = 15, 6


def _lengths(*lengths: int) -> Tensor:
    return torch.tensor([lengths, [sum(lengths[:branch]) for branch in range(len(lengths))]])


def _output(size: int, draws: torch.Generator) -> Tensor:
    """Digits of any place, and at some places ends and padding."""
    ids = torch.randint(tokens.NUM_LOCAL, 20 * tokens.NUM_LOCAL, (size,), generator=draws)
    ids[::5] = tokens.PAD_ID
    ids[1::5] += tokens.EOS - ids[1::5] % tokens.NUM_LOCAL
    return ids


@pytest.mark.parametrize(("batch", "lengths"), [(1, (1,)), (7, (9,)), (300, (14, 7)), (5, (3, 3, 8)), (0, (4, 2))])
def test_the_beginning_is_the_reference(
    batch: int, lengths: tuple[int, ...], draws: torch.Generator, kernel_device: torch.device
) -> None:
    table = tokens.kernel_table(kernel_device)
    output = _output(batch * sum(lengths) + 1, draws).to(kernel_device)
    counts = torch.stack([torch.randint(1, length + 1, (batch,), generator=draws) for length in lengths])
    rows = torch.randint(0, 1 << 40, (batch,), generator=draws).to(kernel_device)
    arguments = (_lengths(*lengths).to(kernel_device), PREFIX, counts.to(kernel_device), output, rows, STAGE, table)
    (state, unfinished), expected = begin_kernel(*arguments), begin_reference(*arguments)
    assert torch.equal(state, expected[0]) and torch.equal(unfinished, expected[1])
    if batch == 300:
        assert 0 < int(unfinished.sum()) < unfinished.numel()


def test_each_sequence_goes_on_after_its_own_tokens() -> None:
    """Two rows and branches of 3 and 2 tokens: the output is `aaa bbb` of the first branch, then `cc dd`."""
    digit, end = tokens.NUM_LOCAL * 4 + 1, tokens.NUM_LOCAL * 4 + tokens.EOS
    output = torch.tensor([10, digit, 12, end, 14, 15, 16, 17, 18, 19, 0]) + torch.tensor([32] * 3 + [0] + [32] * 7)
    output[1], output[3] = digit, end
    counts, rows = torch.tensor([[2, 1], [2, 1]]), torch.tensor([70, 71])
    state, unfinished = begin(_lengths(3, 2), PREFIX, counts, output, rows, STAGE, tokens.kernel_table())
    assert state[SequenceField.ID].tolist() == [digit, end, int(output[7]), int(output[8])]
    assert state[SequenceField.OUT].tolist() == [2, 4, 8, 9]
    assert state[SequenceField.ROW].tolist() == [0, 1, 0, 1] and state[SequenceField.COUNTER].tolist() == [
        70,
        71,
        70,
        71,
    ]
    assert state[SequenceField.START].tolist() == [15, 15, 18, 18] and state[SequenceField.SLOT].tolist() == [
        17,
        16,
        20,
        19,
    ]
    assert state[SequenceField.STAGE].tolist() == [6, 6, 7, 7] and state[SequenceField.LIMIT].tolist() == [3, 3, 2, 2]
    # The second has ended, the third has all its tokens.
    assert unfinished.tolist() == [True, False, False, True]


def _state(count: int, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences, some at their limits and some idle, with outputs of their own; which stop; and the output."""
    state = torch.randint(0, 90, (len(SequenceField), count), generator=draws)
    state[SequenceField.OUT] = torch.randperm(count + 9, generator=draws)[:count]
    state[SequenceField.STEP] = torch.randint(0, 4, (count,), generator=draws)
    state[SequenceField.LIMIT] = 4
    stopped = torch.rand(count, generator=draws) < 0.3
    spare = count + 9
    idle = torch.rand(count, generator=draws) < 0.2
    state[SequenceField.ROW, idle], state[SequenceField.OUT, idle], state[SequenceField.ID, idle] = (
        -1,
        spare,
        tokens.PAD_ID,
    )
    return state, stopped, torch.full((spare + 1,), -7)


@pytest.mark.parametrize("count", [1, 33, 300, 0])
def test_the_advance_is_the_reference(count: int, draws: torch.Generator, kernel_device: torch.device) -> None:
    state, stopped, output = (tensor.to(kernel_device) for tensor in _state(count, draws))
    expected_state, expected_output = state.clone(), output.clone()
    advance_kernel(state, stopped, output)
    advance_reference(expected_state, stopped, expected_output)
    assert torch.equal(state, expected_state) and torch.equal(output, expected_output)


def test_a_sequence_ends_at_its_end_and_at_its_limit() -> None:
    state, output = torch.zeros(len(SequenceField), 3, dtype=torch.int64), torch.full((9,), -7)
    state[SequenceField.ID], state[SequenceField.OUT] = torch.tensor([40, 41, 42]), torch.tensor([1, 3, 5])
    state[SequenceField.STEP], state[SequenceField.LIMIT] = torch.tensor([0, 0, 1]), 2
    advance(state, torch.tensor([False, True, False]), output)
    assert output.tolist() == [-7, 40, -7, 41, -7, 42, -7, -7, -7]
    assert state[SequenceField.ROW].tolist() == [0, -1, -1] and state[SequenceField.OUT].tolist() == [2, 8, 8]
    assert state[SequenceField.STEP].tolist() == [1, 1, 2] and state[SequenceField.SLOT].tolist() == [1, 1, 1]


def test_arguments_are_checked() -> None:
    state, stopped, output = (
        torch.zeros(len(SequenceField), 3, dtype=torch.int64),
        torch.zeros(3, dtype=torch.bool),
        torch.ones(4),
    )
    with pytest.raises(ValueError, match="output must be"):
        advance(state, stopped, output)
    with pytest.raises(ValueError, match="state must be"):
        advance(state[1:], stopped, output.long())
    counts, rows = torch.ones(2, 3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="lengths must be"):
        begin(_lengths(4), PREFIX, counts, output.long(), rows, STAGE, tokens.kernel_table())
