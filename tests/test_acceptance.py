"""The kernel that accepts drafts against plain torch; interpreted where there is no GPU."""

import pytest
import torch

from sector.kernels.acceptance import accept, accept_kernel, accept_reference

PAD = 77


@pytest.mark.parametrize("drafted", [False, True], ids=["plain", "drafted"])
@pytest.mark.parametrize(("count", "length", "width"), [(1, 1, 1), (33, 24, 20), (300, 44, 44), (5, 100, 3), (0, 5, 3)])
def test_the_kernel_is_the_reference(
    count: int, length: int, width: int, drafted: bool, draws: torch.Generator, kernel_device: torch.device
) -> None:
    # A part of a larger tensor, as branches are of the choices of a pass.
    chosen = torch.randint(0, 50, (count, width + 7), generator=draws).to(kernel_device)[:, 3 : width + 3]
    draft = None
    if drafted:
        # Right up to a random token, and often to the end.
        wrong_from = torch.randint(0, 2 * width, (count, 1), generator=draws).to(kernel_device)
        draft = chosen + (torch.arange(width, device=kernel_device) == wrong_from)
        draft = torch.cat([draft, draft[:, :1]], dim=1)
    outputs = [torch.full((count, length), -1, device=kernel_device) for _ in range(2)]
    counts = accept_kernel(outputs[0], chosen, draft, PAD)
    given = torch.full_like(counts, -7)
    assert accept_reference(outputs[1], chosen, draft, PAD, given) is given
    assert torch.equal(counts, given)
    assert torch.equal(*outputs)


def test_a_wrong_token_costs_those_behind_it() -> None:
    chosen, draft = torch.tensor([[5, 6, 7], [5, 6, 7]]), torch.tensor([[5, 9], [5, 6]])
    output = torch.zeros(2, 4, dtype=torch.int64)
    assert accept(output, chosen, draft, PAD).tolist() == [2, 3]
    assert output.tolist() == [[5, 6, PAD, PAD], [5, 6, 7, PAD]]


def test_arguments_are_checked() -> None:
    chosen, output = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="draft must have 2 tokens"):
        accept(output, chosen, chosen[:, :1], PAD)
    with pytest.raises(ValueError, match="counts must be"):
        accept(output, chosen, None, PAD, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="room for 3 choices"):
        accept(output[:, :2].contiguous(), chosen, None, PAD)
