"""The vote: the kernel against plain torch."""

import pytest
import torch
from torch import Tensor

from sector.kernels import consistency
from sector.kernels.consistency import majority, majority_kernel, majority_reference


def _guesses(count: int, num_guesses: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Guesses of which many agree, some differ in one digit (the first and the last among them), some do not count."""
    draws = torch.Generator().manual_seed(count + 1000 * num_guesses + length)
    truth = torch.randint(0, 10, (count, 1, length), generator=draws)
    guesses = truth.repeat(1, num_guesses, 1)
    wrong = torch.rand(count, num_guesses, generator=draws) < 0.5
    where = torch.randint(0, 3, (count, num_guesses), generator=draws) * (length - 1) // 2
    flipped = guesses.scatter(2, where.unsqueeze(2), (guesses.gather(2, where.unsqueeze(2)) + 1) % 10)
    guesses = torch.where(wrong.unsqueeze(2), flipped, guesses)
    share = torch.rand(count, 1, generator=draws) * 1.5
    valid = torch.rand(count, num_guesses, generator=draws) < share
    return guesses.to(device), valid.to(device)


@pytest.mark.parametrize(
    ("count", "num_guesses", "length"),
    [(1, 1, 1), (3, 5, 2), (31, 5, 31), (33, 4, 32), (255, 3, 33), (257, 5, 8), (64, 9, 257), (20, 33, 7)],
    ids=str,
)
def test_the_kernel_is_the_reference(count: int, num_guesses: int, length: int, kernel_device: torch.device) -> None:
    guesses, valid = _guesses(count, num_guesses, length, kernel_device)
    answers, votes = majority_kernel(guesses, valid)
    expected_answers, expected_votes = majority_reference(guesses, valid)
    assert torch.equal(votes, expected_votes)
    assert torch.equal(answers, expected_answers)


@pytest.mark.parametrize("function", [majority_reference, majority_kernel], ids=["reference", "kernel"])
def test_the_earliest_of_equally_frequent_answers_wins(function, kernel_device: torch.device) -> None:
    a, b, c = [1, 2], [3, 4], [5, 6]
    guesses = torch.tensor([[a, b, b, c], [a, b, a, b], [a, a, a, b], [a, b, c, c], [b, a, a, b]], device=kernel_device)
    valid = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]], device=kernel_device)
    answers, votes = function(guesses, valid.bool())
    assert answers.tolist() == [b, a, b, [0, 0], a]
    assert votes.tolist() == [2, 2, 1, 0, 1]


def test_a_row_does_not_depend_on_its_batch(kernel_device: torch.device) -> None:
    guesses, valid = _guesses(300, 5, 12, kernel_device)
    together = majority_kernel(guesses, valid)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0)).to(kernel_device)
    for rows in (order[:1], order[1:30], order[30:]):
        answers, votes = majority_kernel(guesses[rows], valid[rows])
        assert torch.equal(answers, together[0][rows]) and torch.equal(votes, together[1][rows])


def test_no_rows(kernel_device: torch.device) -> None:
    guesses, valid = _guesses(0, 5, 4, kernel_device)
    answers, votes = majority_kernel(guesses, valid)
    assert answers.shape == (0, 4) and votes.shape == (0,)


@pytest.mark.parametrize("kernel_runs", [True, False], ids=["kernel", "reference"])
def test_which_one_runs(kernel_runs: bool, kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    for name in ("majority_kernel", "majority_reference"):
        inner = getattr(consistency, name)
        monkeypatch.setattr(consistency, name, lambda *a, name=name, inner=inner: ran.append(name) or inner(*a))
    monkeypatch.setattr(consistency, "runs_kernel", lambda tensor: kernel_runs)
    guesses, valid = _guesses(9, 5, 4, kernel_device)
    # Strided guesses are taken as they come.
    majority(guesses.transpose(0, 1).contiguous().transpose(0, 1), valid)
    kind = "kernel" if kernel_runs else "reference"
    assert ran == [f"majority_{kind}"]


@pytest.mark.parametrize(
    ("guesses", "valid", "message"),
    [
        pytest.param(torch.zeros(3, 5, 4), torch.ones(3, 5).bool(), "guesses must be torch.int64", id="dtype"),
        pytest.param(torch.zeros(3, 5, 4).long(), torch.ones(3, 4).bool(), r"valid must be \[3, 5\]", id="shape"),
        pytest.param(torch.zeros(3, 0, 4).long(), torch.ones(3, 0).bool(), "at least one guess", id="none"),
    ],
)
def test_what_no_vote_is_held_over(guesses: Tensor, valid: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        majority(guesses, valid)
