"""Independence of checks: which pairs miss the same wrong answers, and what label error independent checks would give.

In a run each candidate takes checks until one fails. Here all candidates of a round take all checks, by the weights
that tried them. A check misses a wrong answer if it does not contradict it. Truth comes from the audit; nothing here
reaches a loop. Rounds of unlike difficulty, measured together, make checks look more alike than they are in each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import prod

import numpy as np
import torch
from torch import Tensor

from sector.engine.config import RunConfig
from sector.engine.models.checkpoint import task_and_layout
from sector.engine.policy.ballot import hold_vote
from sector.engine.policy.checks import checks_of
from sector.engine.policy.improve import take_check
from sector.engine.run import audit
from sector.engine.run.directory import RunDir
from sector.engine.run.phase import Phase
from sector.engine.run.teacher import load_teacher
from sector.engine.samplers import make_sampler
from sector.engine.samplers.protocol import Sampling
from sector.engine.seeding import stream_seed
from sector.engine.shares import wilson
from sector.engine.training.dataset import read_candidates

# The vote counts as a check, which passes candidates on which enough guesses agree.
VOTE = "vote"
# Checks of addition that differ in what they ask of the model.
ALL_CHECKS = ("direct", "complement", "remainder", "commutative", "through")
# Draws of the posterior of a phi, and their seed.
_DRAWS, _SEED = 4000, 0


@dataclass(frozen=True, slots=True)
class Looks:
    """Verdicts of all checks on all candidates.

    names: names of the checks, the vote first.
    passes: `[B, C]` bool, candidates that a check does not contradict.
    right: `[B]` bool, candidates whose voted answer is right.
    """

    names: tuple[str, ...]
    passes: Tensor
    right: Tensor


@dataclass(frozen=True, slots=True)
class Rate:
    """A share with its Wilson 95 % interval.

    count: candidates that count.
    of: all candidates.
    """

    count: int
    of: int

    @property
    def share(self) -> float | None:
        """The share; None without candidates."""
        return self.count / self.of if self.of else None

    def as_json(self) -> dict[str, object]:
        """Return share and interval as a JSON object; None where there are no candidates."""
        low = high = None
        if self.of:
            low, high = wilson(self.count, self.of)
        return {**asdict(self), "share": self.share, "low": low, "high": high}


@dataclass(frozen=True, slots=True)
class Pair:
    """Counts of wrong answers that two checks miss, together and alone.

    first, second: names of the checks.
    both, only_first, only_second, neither: wrong answers that they miss.
    phi: correlation of missing: 0 if the checks are independent, 1 if they miss the same answers; None if one of them
        misses all or none.
    low, high: 95 % credible interval of phi, by Jeffreys' prior.
    """

    first: str
    second: str
    both: int
    only_first: int
    only_second: int
    neither: int
    phi: float | None
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Independence:
    """Independence of checks on some candidates.

    tried: count of candidates.
    wrong: candidates whose voted answer is wrong.
    misses: by check, wrong answers that it does not contradict.
    passes_right: by check, right answers that it does not contradict.
    pairs: pairs of checks, the most alike first.
    seen: label error of the candidates that pass all checks.
    independent: label error if the checks erred independently of each other, with the same rates; None if nothing
        would pass.
    without: label error of the candidates that pass all checks but one, by that check.
    """

    tried: int
    wrong: int
    misses: dict[str, Rate]
    passes_right: dict[str, Rate]
    pairs: list[Pair]
    seen: Rate
    independent: float | None
    without: dict[str, Rate]

    def as_json(self) -> dict[str, object]:
        """Return the fields as a JSON object."""
        return {
            "tried": self.tried,
            "wrong": self.wrong,
            "misses": {name: rate.as_json() for name, rate in self.misses.items()},
            "passes_right": {name: rate.as_json() for name, rate in self.passes_right.items()},
            "pairs": [asdict(pair) for pair in self.pairs],
            "label_error": {"seen": self.seen.as_json(), "independent": self.independent},
            "label_error_without": {name: rate.as_json() for name, rate in self.without.items()},
        }


def look_at_round(run: RunDir, config: RunConfig, phase: Phase, names: Sequence[str] = ALL_CHECKS) -> Looks:
    """Let all candidates of a round take all checks, by the weights that tried them.

    names: names of checks; those that the task does not have, or that pose no problem here, are left out.
    """
    model = load_teacher(config.round, run.before(phase, config.supervised.max_digits))
    sampler, (task, layout) = make_sampler(config.engine, model, config.vllm), task_and_layout(model)
    problems, _ = read_candidates(phase.candidates, phase.digits)
    settings = config.filter.model_copy(update={"checks": tuple(names)})
    rows = torch.arange(len(problems))

    def stream(name: str) -> Sampling:
        return Sampling(settings.temperature, stream_seed(config.seed, "looks", name), rows, stage=0)

    ballot = hold_vote(sampler, problems, settings, layout, stream(VOTE))
    looks = {VOTE: ballot.decided & ballot.parsed}
    for check in checks_of(settings, task):
        taken = take_check(sampler, check, problems, ballot, rows, settings, layout, stream(check.name))
        if taken is not None:
            looks[check.name] = taken[1]
    right = audit.answers_correct(problems, ballot.answers)
    return Looks(tuple(looks), torch.stack(list(looks.values()), dim=1), right)


def independence_of(rounds: Sequence[Looks]) -> Independence:
    """Measure the independence of checks on the candidates of some rounds, by the checks that all rounds have."""
    names = tuple(name for name in rounds[0].names if all(name in looks.names for looks in rounds))
    passes = torch.cat([looks.passes[:, [looks.names.index(name) for name in names]] for looks in rounds])
    right = torch.cat([looks.right for looks in rounds])
    misses = {name: _rate(column, ~right) for name, column in zip(names, passes.T, strict=True)}
    passes_right = {name: _rate(column, right) for name, column in zip(names, passes.T, strict=True)}
    return Independence(
        tried=len(right),
        wrong=int((~right).sum()),
        misses=misses,
        passes_right=passes_right,
        pairs=sorted(_pairs(names, passes[~right]), key=lambda pair: -2.0 if pair.phi is None else pair.phi)[::-1],
        seen=_rate(~right, passes.all(dim=1)),
        independent=_product(Rate(int((~right).sum()), len(right)), misses, passes_right),
        without={
            name: _rate(~right, _without(passes, column).all(dim=1))
            for column, name in enumerate(names)
            if len(names) > 1
        },
    )


def _rate(counts: Tensor, among: Tensor) -> Rate:
    """Return the share of the rows `among [B]` that count, `[B]` bool."""
    return Rate(int((counts & among).sum()), int(among.sum()))


def _without(passes: Tensor, column: int) -> Tensor:
    return torch.cat([passes[:, :column], passes[:, column + 1 :]], dim=1)


def _product(wrong: Rate, misses: dict[str, Rate], passes_right: dict[str, Rate]) -> float | None:
    """Return the label error of checks that err independently; None if nothing would pass."""
    if not wrong.of:
        return None
    share = wrong.count / wrong.of
    wrong_pass = share * prod(rate.share or 0.0 for rate in misses.values()) if share else 0.0
    right_pass = (1 - share) * prod(rate.share or 0.0 for rate in passes_right.values()) if share < 1 else 0.0
    return wrong_pass / (wrong_pass + right_pass) if wrong_pass + right_pass else None


def _pairs(names: Sequence[str], missed: Tensor) -> Iterator[Pair]:
    """Yield the pairs of checks; `missed [W, C]` bool are the wrong answers that each check misses."""
    for (first, one), (second, other) in combinations(zip(names, missed.T, strict=True), 2):
        parts = (one & other, one & ~other, ~one & other, ~one & ~other)
        counts = np.array([int(part.sum()) for part in parts])
        phi = float(_phi(counts / max(1, counts.sum())))
        low, high = np.quantile(_posterior(counts), [0.025, 0.975])
        both, only_first, only_second, neither = counts.tolist()
        known = None if np.isnan(phi) else phi
        yield Pair(first, second, both, only_first, only_second, neither, known, float(low), float(high))


def _posterior(counts: np.ndarray) -> np.ndarray:
    """Return draws of phi, by the counts of a table of two by two and Jeffreys' prior."""
    return _phi(np.random.default_rng(_SEED).dirichlet(counts + 0.5, size=_DRAWS).T)


def _phi(shares: np.ndarray) -> np.ndarray:
    """Return phi of shares `[4, ...]`: both, the first alone, the second alone, neither; NaN if one never varies."""
    both, first, second, neither = shares
    scale = np.sqrt((both + first) * (second + neither) * (both + second) * (first + neither))
    with np.errstate(invalid="ignore"):
        return np.where(scale > 0, (both * neither - first * second) / scale, np.nan)
