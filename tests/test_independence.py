"""Independence of checks: phi, the product of error rates, and looks at the candidates of a real round."""

from pathlib import Path

import pytest
import torch
from small_run import SMALL, start

from sector.benchmarks.independence import lines_of, looks_of
from sector.engine.report.independence import ALL_CHECKS, VOTE, Independence, Looks, independence_of, look_at_round
from sector.engine.run.directory import RunDir
from sector.engine.selfplay import self_play
from sector.engine.training.dataset import read_votes


def looks(passes: torch.Tensor, right: torch.Tensor) -> Independence:
    names = (VOTE, "a", "b", "c")[: passes.shape[1]]
    return independence_of([Looks(names, passes, right)])


def drawn(count: int, *shares: float) -> torch.Tensor:
    draws = torch.Generator().manual_seed(1)
    return torch.rand(count, len(shares), generator=draws) < torch.tensor(shares)


def test_checks_that_err_independently_have_no_phi_and_the_seen_error_is_the_product() -> None:
    """20,000 draws: phi is within 0.02 with a chance of 99 %, and the seed is fixed."""
    right = drawn(20_000, 0.5)[:, 0]
    passes = torch.where(right.unsqueeze(1), drawn(20_000, 0.9, 0.8, 0.95), drawn(20_000, 0.2, 0.3, 0.4))
    result = looks(passes, right)
    assert all(abs(pair.phi or 1.0) < 0.03 and pair.low < 0 < pair.high for pair in result.pairs)
    product = 0.2 * 0.3 * 0.4 / (0.2 * 0.3 * 0.4 + 0.9 * 0.8 * 0.95)
    assert result.independent == pytest.approx(product, rel=0.1)
    assert result.seen.share == pytest.approx(product, rel=0.2)
    # Without a check, more wrong answers pass.
    assert all((rate.share or 0.0) > (result.seen.share or 1.0) for rate in result.without.values())


def test_checks_that_miss_the_same_answers_are_named_first() -> None:
    right = torch.arange(200) < 100
    one, other = drawn(200, 0.5, 0.5).T
    wrong = torch.stack([one, other, other, ~other], dim=1)
    passes = torch.where(right.unsqueeze(1), True, wrong)
    result = looks(passes, right)
    twins, opposites = result.pairs[0], result.pairs[-1]
    assert {twins.first, twins.second} == {"a", "b"} and twins.phi == 1.0 and 0.9 < twins.low < twins.high <= 1
    assert "c" in (opposites.first, opposites.second) and opposites.phi == -1.0
    assert twins.both + twins.neither == result.wrong == 100 and twins.only_first == twins.only_second == 0


def test_phi_by_hand() -> None:
    """Both miss 30 wrong answers, the first alone 10, the second alone 20, neither 40."""
    wrong = [[True, True]] * 30 + [[True, False]] * 10 + [[False, True]] * 20 + [[False, False]] * 40
    (pair,) = looks(torch.tensor(wrong), torch.zeros(100, dtype=torch.bool)).pairs
    assert (pair.both, pair.only_first, pair.only_second, pair.neither) == (30, 10, 20, 40)
    assert pair.phi == pytest.approx((30 * 40 - 10 * 20) / (40 * 60 * 50 * 50) ** 0.5)
    # About 1.96 times the error of a phi of 100 answers.
    assert 0.2 < pair.low < 0.27 and 0.52 < pair.high < 0.6


def test_what_never_varies_has_an_interval_and_no_phi() -> None:
    right = torch.tensor([True] * 5 + [False] * 3)
    result = looks(torch.tensor([[True, True]] * 5 + [[True, False]] * 3), right)
    (pair,) = result.pairs
    assert pair.phi is None and pair.low < 0 < pair.high
    assert (result.seen.count, result.seen.of, result.independent) == (0, 5, 0.0)
    assert (result.without["a"].count, result.without["a"].of) == (3, 8)


@pytest.mark.parametrize("is_right", [True, False], ids=["all right", "all wrong"])
def test_one_kind_of_answers_alone(is_right: bool) -> None:
    result = looks(drawn(50, 0.5, 0.5), torch.full((50,), is_right))
    assert result.independent == (0.0 if is_right else 1.0)
    assert result.as_json()["label_error"]["seen"]["share"] == (0.0 if is_right else 1.0)


def test_candidates_of_a_run_take_every_check(fresh_run: Path) -> None:
    """What passes all checks of the run's filter is what the run accepted, since the same weights decide."""
    settings = {"vote": "unanimous", "checks": ["direct", "complement"], "think_through": False}
    run, config = start(fresh_run, until=7, filter=settings, round={**SMALL["round"], "max_cycles": 1})
    for _ in self_play(run, config):
        pass
    _, _, _, accepted = read_votes(run.round(7).candidates, 7)
    own = look_at_round(run, config, run.round(7), ["direct", "complement"])
    assert own.names == (VOTE, "direct", "complement")
    assert torch.equal(own.passes.all(dim=1), accepted) and 0 < int(accepted.sum()) < len(accepted)
    label_error = RunDir(run.root).metrics()[-1].label_error
    assert independence_of([own]).seen.share == pytest.approx(label_error, abs=1e-12)
    (every,) = looks_of([run.root], 1, list(ALL_CHECKS))
    assert every.names == (VOTE, *ALL_CHECKS)
    together = independence_of([own, every])
    assert together.tried == 2 * len(accepted) and list(together.misses) == [VOTE, "direct", "complement"]
    lines = list(lines_of(independence_of([every])))
    assert lines[0].startswith("260 candidates, ") and any(line.startswith("without remainder") for line in lines)
