"""The vote and the verdict: kernels against plain torch, and plain torch against the engine's improved policy."""

import pytest
import torch
from torch import Tensor

from sector.engine.policy.improve import Verdict
from sector.kernels import consistency
from sector.kernels.consistency import (
    Ballot,
    Single,
    judge,
    judge_kernel,
    judge_reference,
    majority,
    majority_kernel,
    majority_reference,
)


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


def _looks(count: int, num_guesses: int, length: int, device: torch.device) -> tuple[Ballot, Single, Single, Ballot]:
    """A first look, direct answers, answers to the complement and a second look, which agree in most rows."""
    guesses, valid = _guesses(count, num_guesses, length, device)
    draws = torch.Generator().manual_seed(count)
    unlike = (torch.rand(count, 3, generator=draws) < 0.3).to(device)
    easy = (torch.rand(count, generator=draws) < 0.6).to(device)
    guesses = torch.where(easy[:, None, None], guesses[:, :1], guesses)
    valid = valid | easy[:, None]
    answers, votes = majority_reference(guesses, valid)
    second = torch.where(unlike[:, :1], (answers + 1) % 10, answers)
    direct, complement = answers.clone(), answers.clone()
    # One digit, the last or the first, is enough.
    direct[:, -1] += unlike[:, 1].long()
    complement[:, 0] += unlike[:, 2].long()
    again = (torch.rand(count, num_guesses, generator=draws) < 0.9).to(device)
    votes_again = again.sum(dim=1)
    parsed = (torch.rand(2, count, generator=draws) < 0.8).to(device)
    return (
        Ballot(answers, votes, valid),
        Single(direct, parsed[0]),
        Single(complement, parsed[1]),
        Ballot(second, votes_again, again),
    )


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


@pytest.mark.parametrize("looks", ["vote", "direct", "complement", "second", "all"])
@pytest.mark.parametrize("unanimous", [False, True], ids=["majority", "unanimous"])
@pytest.mark.parametrize(("count", "num_guesses", "length"), [(1, 1, 1), (257, 5, 31), (300, 4, 33)], ids=str)
def test_the_judging_kernel_is_the_reference(
    count: int, num_guesses: int, length: int, unanimous: bool, looks: str, kernel_device: torch.device
) -> None:
    first, direct, complement, second = _looks(count, num_guesses, length, kernel_device)
    asked = (
        direct if looks in ("direct", "all") else None,
        complement if looks in ("complement", "all") else None,
        second if looks in ("second", "all") else None,
    )
    verdict, agrees = judge_kernel(first, unanimous, *asked)
    expected, expected_agrees = judge_reference(first, unanimous, *asked)
    assert torch.equal(verdict, expected)
    assert torch.equal(agrees, expected_agrees)
    if count > 1:
        # The rows are such that every verdict which these looks can reach is reached.
        reached = {Verdict.ACCEPTED, Verdict.UNPARSABLE} | ({Verdict.OUTVOTED} if unanimous else set())
        reasons = (Verdict.NOT_DIRECT, Verdict.NOT_COMPLEMENT, Verdict.NOT_COMMUTATIVE)
        reached |= {reason for reason, look in zip(reasons, asked, strict=True) if look is not None}
        assert set(verdict.tolist()) == reached


def test_verdicts_bear_the_numbers_of_the_engine() -> None:
    """Of the looks: whole chains of thought are judged where they are asked for."""
    for verdict in set(Verdict) - {Verdict.THOUGHT_THROUGH, Verdict.NOT_THROUGH}:
        assert getattr(consistency, verdict.name) == verdict


@pytest.mark.parametrize("function", [majority_reference, majority_kernel], ids=["reference", "kernel"])
def test_the_earliest_of_equally_frequent_answers_wins(function, kernel_device: torch.device) -> None:
    a, b, c = [1, 2], [3, 4], [5, 6]
    guesses = torch.tensor([[a, b, b, c], [a, b, a, b], [a, a, a, b], [a, b, c, c], [b, a, a, b]], device=kernel_device)
    valid = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]], device=kernel_device)
    answers, votes = function(guesses, valid.bool())
    assert answers.tolist() == [b, a, b, [0, 0], a]
    assert votes.tolist() == [2, 2, 1, 0, 1]


@pytest.mark.parametrize("function", [judge_reference, judge_kernel], ids=["reference", "kernel"])
def test_the_look_that_fails_first_names_the_reason(function, kernel_device: torch.device) -> None:
    """Rows: all well; no valid guess; outvoted; direct unlike; direct unparsable; second unlike; undecided; all ill;
    complement unlike; complement unparsable, and second unlike."""
    answers = torch.tensor([[1, 2]] * 10, device=kernel_device)
    votes = torch.tensor([3, 0, 2, 3, 3, 3, 3, 0, 3, 3], device=kernel_device)
    valid = torch.ones(10, 3, dtype=torch.bool, device=kernel_device)
    valid[[1, 7]] = False
    direct, complement, second = answers.clone(), answers.clone(), answers.clone()
    direct[3, 1], direct[7, 0], second[5, 0], second[7, 0] = 9, 9, 9, 9
    complement[7, 0], complement[8, 1], complement[3, 0], second[9, 0] = 9, 9, 9, 9
    direct_valid, complement_valid = torch.ones(2, 10, dtype=torch.bool, device=kernel_device)
    direct_valid[4], complement_valid[9] = False, False
    again = torch.tensor([3, 3, 3, 3, 3, 3, 2, 3, 3, 3], device=kernel_device)
    looks = (
        Single(direct, direct_valid),
        Single(complement, complement_valid),
        Ballot(second, again, torch.ones_like(valid)),
    )
    verdict, agrees = function(Ballot(answers, votes, valid), True, *looks)
    assert verdict.tolist() == [
        Verdict.ACCEPTED,
        Verdict.UNPARSABLE,
        Verdict.OUTVOTED,
        Verdict.NOT_DIRECT,
        Verdict.NOT_DIRECT,
        Verdict.NOT_COMMUTATIVE,
        Verdict.NOT_COMMUTATIVE,
        Verdict.UNPARSABLE,
        Verdict.NOT_COMPLEMENT,
        Verdict.NOT_COMPLEMENT,
    ]
    assert agrees.tolist() == [True] + [False] * 9
    verdict, agrees = function(Ballot(answers, votes, valid), False)
    assert verdict.tolist() == [0, 1, 0, 0, 0, 0, 0, 1, 0, 0]
    assert not agrees.any()


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
    assert judge_kernel(Ballot(answers, votes, valid), True)[0].shape == (0,)


@pytest.mark.parametrize("kernel_runs", [True, False], ids=["kernel", "reference"])
def test_which_one_runs(kernel_runs: bool, kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    for name in ("majority_kernel", "majority_reference", "judge_kernel", "judge_reference"):
        inner = getattr(consistency, name)
        monkeypatch.setattr(consistency, name, lambda *a, name=name, inner=inner: ran.append(name) or inner(*a))
    monkeypatch.setattr(consistency, "runs_kernel", lambda tensor: kernel_runs)
    guesses, valid = _guesses(9, 5, 4, kernel_device)
    # Strided guesses are taken as they come.
    answers, votes = majority(guesses.transpose(0, 1).contiguous().transpose(0, 1), valid)
    judge(Ballot(answers, votes, valid), True)
    kind = "kernel" if kernel_runs else "reference"
    assert ran == [f"majority_{kind}", f"judge_{kind}"]


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


def test_what_cannot_be_judged() -> None:
    first, direct, _, second = _looks(3, 5, 4, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"second.answers must be \[3, 4\]"):
        judge(first, True, second=Ballot(second.answers[:, :3], second.votes, second.valid))
    with pytest.raises(ValueError, match=r"direct.valid must be torch\.bool"):
        judge(first, True, Single(direct.answers, torch.ones(3)))
    with pytest.raises(ValueError, match=r"complement.answers must be \[3, 4\]"):
        judge(first, True, complement=Single(direct.answers[:, :2], direct.valid))
