"""Events of a run, one frozen dataclass a kind; `as_json` gives the object that `--json` prints."""

from dataclasses import asdict, dataclass
from typing import ClassVar

from sector.engine.run.records import RoundMetrics


@dataclass(frozen=True, slots=True)
class _Event:
    """Base of the events."""

    kind: ClassVar[str]
    """Value of the key `event`."""

    def as_json(self) -> dict[str, object]:
        """Return the event as a JSON object, its kind first."""
        return {"event": self.kind, **asdict(self)}


@dataclass(frozen=True, slots=True)
class FileMended(_Event):
    """A damaged or missing file was removed; its phase makes it again.

    file: path in the run directory.
    """

    kind = "mended"
    file: str


@dataclass(frozen=True, slots=True)
class Generated(_Event):
    """A block of candidates was tried.

    digits: digits of the round.
    tried: candidates tried so far.
    of: candidates of the round.
    accepted: candidates accepted so far.
    tokens_per_s: tokens generated per second.
    """

    kind = "generate"
    digits: int
    tried: int
    of: int
    accepted: int
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class TrainingStep(_Event):
    """A training step is done, and saved if it was due.

    digits: digits of the round; 0 in the supervised phase.
    cycle: number of the cycle, from 1.
    step: steps done in the cycle.
    of: steps of the cycle.
    loss: mean loss of the step.
    tokens_per_s: tokens trained on per second.
    """

    kind = "train"
    digits: int
    cycle: int
    step: int
    of: int
    loss: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class GoalMeasured(_Event):
    """The goal was measured at the end of a cycle.

    digits: digits of the round; 0 in the supervised phase.
    cycle: number of the cycle, from 1.
    met: whether the goal is met, which ends the training.
    agreement: agreement one digit further.
    accuracy: lowest accuracy at a supervised length; None in a round.
    trained: lowest agreement at a trained length; None if the settings do not ask for it.
    """

    kind = "goal"
    digits: int
    cycle: int
    met: bool
    agreement: float
    accuracy: float | None
    trained: float | None


@dataclass(frozen=True, slots=True)
class RolledBack(_Event):
    """A round was rolled back, and starts again with new problems.

    digits: digits of the round.
    failed: attempts rolled back so far.
    before: highest agreement at trained lengths after an earlier phase.
    trained: lowest agreement at a trained length after this attempt.
    """

    kind = "rollback"
    digits: int
    failed: int
    before: float
    trained: float | None


@dataclass(frozen=True, slots=True)
class PhaseAudited(_Event):
    """The audit of the supervised phase or of a round is done.

    metrics: its line of metrics.jsonl.
    """

    kind = "round"
    metrics: RoundMetrics

    def as_json(self) -> dict[str, object]:
        """Return the event as a JSON object: its kind, then the keys of the metrics."""
        return {"event": self.kind, **self.metrics.as_json()}


@dataclass(frozen=True, slots=True)
class FrontierMoved(_Event):
    """The model agrees with itself one digit further, so the round counts.

    digits: digits of the round.
    """

    kind = "frontier"
    digits: int


Event = FileMended | Generated | TrainingStep | GoalMeasured | RolledBack | PhaseAudited | FrontierMoved
