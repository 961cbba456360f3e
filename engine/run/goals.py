"""The goals of training, and how far the next round leaps: by agreement of the model with itself on small probes.

Nothing here sees a true answer, except the goal of the supervised phase.
"""

from dataclasses import dataclass

import torch

from sector.engine.config import CheckName, Filter, RunConfig
from sector.engine.language.layout import Layout
from sector.engine.language.rows import cat
from sector.engine.policy.generate import Assignment, generate
from sector.engine.policy.solver import Solver
from sector.engine.run import audit
from sector.engine.run.phase import Phase
from sector.engine.samplers.protocol import Sampler
from sector.engine.seeding import generator, stream_seed
from sector.engine.tasks.task import Task

GOAL_SAMPLES = 300


@dataclass(frozen=True, slots=True)
class Goal:
    """How far training has come.

    met: whether that is far enough.
    agreement: one digit further.
    accuracy: lowest of the supervised lengths; None in a round.
    trained: lowest agreement at a trained length; None where the settings do not ask for it.
    """

    met: bool
    agreement: float
    accuracy: float | None = None
    trained: float | None = None


class Goals:
    """Measure goals of a run; `tokens` counts the tokens that probes have generated."""

    def __init__(self, config: RunConfig, task: Task, layout: Layout) -> None:
        self._config, self._task, self._layout = config, task, layout
        self.tokens = 0

    def measure(self, phase: Phase, sampler: Sampler, cycle: int) -> Goal:
        """Measure how far a cycle of a phase has come."""
        return self._round(phase, sampler, cycle) if phase.is_round else self._supervised(phase, sampler, cycle)

    def leap(self, sampler: Sampler, digits: int) -> int:
        """Return how many digits further the next round is: as far as the model agrees with itself."""
        settings = self._config.round
        leap, furthest = 1, min(settings.max_leap, self._config.until - digits)
        while leap < furthest:
            further = min(2 * leap, furthest)
            if self.agreement(sampler, digits + further) < settings.leap_agreement:
                break
            leap = further
        return leap

    def agreement(self, sampler: Sampler, digits: int) -> float:
        """Return the agreement by the run's own filter, at a length not trained yet."""
        # Agreement is of vote and checks; what they reject need not be thought through to know it.
        checks = tuple(name for name in self._config.filter.checks if name != "through")
        looks = self._config.filter.model_copy(update={"checks": checks, "think_through": False})
        return self._agreement_of(sampler, digits, self._config.round.probe, looks)

    def _supervised(self, phase: Phase, sampler: Sampler, cycle: int) -> Goal:
        """Ask for right answers to short problems, fast and slow, and for agreement one digit further."""
        settings, seed = self._config.supervised, self._config.seed
        lowest = min(
            audit.score_length(
                Solver(sampler, self._layout, policy, self._config.filter, seed), self._task, digits, GOAL_SAMPLES, seed
            ).accuracy
            for policy in ("fast", "slow")
            for digits in range(1, phase.digits + 1)
        )
        agreement = self.agreement(sampler, phase.digits + 1)
        met = lowest >= settings.target_accuracy and agreement >= settings.target_agreement
        return Goal(met, agreement, lowest, self._trained_agreement(sampler, phase.digits, cycle))

    def _round(self, phase: Phase, sampler: Sampler, cycle: int) -> Goal:
        """Ask for agreement one digit past the round, and at every length up to it: nothing is to be forgotten."""
        settings = self._config.round
        agreement = self.agreement(sampler, phase.digits + 1)
        trained = self._trained_agreement(sampler, phase.digits, cycle)
        met = agreement >= settings.target_agreement and (trained is None or trained >= settings.target_trained)
        return Goal(met, agreement, trained=trained)

    def _trained_agreement(self, sampler: Sampler, digits: int, cycle: int) -> float | None:
        """Return the lowest agreement at a length up to `digits`; None if the settings do not ask for it.

        A few lengths stand for all, unless one of them is in doubt: nearer to the target than to certainty.
        """
        settings = self._config.round
        if not settings.probe_trained:
            return None
        count = settings.probe_lengths or digits
        draws = generator(self._config.seed, "probed lengths", digits, cycle)
        order = (torch.randperm(digits, generator=draws) + 1).tolist()
        lowest = min(self._quick_agreement(sampler, length) for length in order[:count])
        if lowest >= (1 + settings.target_trained) / 2:
            return lowest
        return min([lowest, *(self._quick_agreement(sampler, length) for length in order[count:])])

    def _quick_agreement(self, sampler: Sampler, digits: int) -> float:
        """Return the agreement at a trained length by the cheapest checks that show forgetting."""
        use_chain = self._config.filter.use_chain
        checks: list[CheckName] = ["direct"]
        if "complement" in self._config.filter.checks:
            checks.append("complement")
        if self._task.at_once is not None:
            # Where nothing is answered at once, only another problem tells.
            checks.append("commutative")
        quick = Filter(
            vote="off" if use_chain else "unanimous",
            checks=tuple(checks),
            k=2,
            use_chain=use_chain,
            think_through=False,
        )
        return self._agreement_of(sampler, digits, self._config.round.probe_trained, quick)

    def _agreement_of(self, sampler: Sampler, digits: int, count: int, settings: Filter) -> float:
        """Return the share of probe problems on which vote and checks agree."""
        seed = stream_seed(self._config.seed, "probe")
        probe = Assignment(self._task, self._layout, digits, count, settings, seed, self._config.hard_share)
        improved = cat([block for _, block in generate(sampler, probe)])
        self.tokens += improved.tokens
        return improved.agreement
