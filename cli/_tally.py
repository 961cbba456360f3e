"""The tally of a run: what its events add up to, for any view."""

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from sector.engine.config import RunConfig
from sector.engine.run.events import (
    Event,
    FileMended,
    FrontierMoved,
    Generated,
    GoalMeasured,
    PhaseAudited,
    RolledBack,
    TrainingStep,
)
from sector.engine.shares import percent

if TYPE_CHECKING:
    from sector.engine.run.records import RoundMetrics

# The estimate of the time left looks back on so many rounds.
_RECENT = 4


class Tally:
    """Where a run stands, from its events.

    rounds: lines of metrics.jsonl. phase: what is going on, in words. done, of: how far it is. note: its details.
    generated_per_s, trained_per_s: tokens, of the last time. lost: what would be done again if it ended now, in words.
    """

    def __init__(self, config: RunConfig, rounds: "Sequence[RoundMetrics]", frontier: int = 0) -> None:
        """frontier: digits that the run has reached before."""
        self.first, self.until = config.supervised.max_digits, config.until
        self.rounds = list(rounds)
        self.frontier, self.lost = frontier, ""
        self.phase, self.done, self.of, self.note = "Starting", 0, 1, ""
        self.generated_per_s: float | None = None
        self.trained_per_s: float | None = None
        self._start = time.perf_counter()
        self._before = self.rounds[-1].seconds_total if rounds else 0.0
        self._phase_start = self._last_event = self._start

    @property
    def seconds_here(self) -> float:
        """Since this command started."""
        return time.perf_counter() - self._start

    @property
    def seconds(self) -> float:
        """Of the whole run, earlier commands included up to their last round."""
        return self._before + self.seconds_here

    def seconds_left(self) -> float | None:
        """To `until`, from what the last rounds took. None before the first round is done.

        Measured: a round takes about as long as the square of its digits (tokens a problem, and what each attends to).
        """
        ends = [line.seconds_total for line in self.rounds]
        taken = [end - start for start, end in pairwise(ends)][-_RECENT:]
        if not taken:
            return None
        reached = self.rounds[-1].digits
        rate = sum(taken) / sum(line.digits**2 for line in self.rounds[-len(taken) :])
        leap = self.rounds[-1].leap
        ahead = [*range(reached + leap, self.until, leap), self.until] if reached < self.until else []
        total = rate * sum(digits**2 for digits in ahead)
        return max(self._phase_left(), total - max(0.0, self.seconds - ends[-1]))

    def _phase_left(self) -> float:
        """Seconds until what is going on is done, by how far it is."""
        if not self.done:
            return 0.0
        return (time.perf_counter() - self._phase_start) * (self.of - self.done) / self.done

    def take(self, event: Event) -> None:
        """Update by one event."""
        now, before = time.perf_counter(), (self.phase, self.done)
        self.lost = ""
        match event:
            case TrainingStep():
                self._train(event)
            case GoalMeasured():
                self._goal(event)
            case Generated():
                self._generate(event)
            case PhaseAudited(metrics):
                self._round(metrics)
            case RolledBack():
                self._rollback(event)
            case FileMended(file):
                self.note = f"made again, because it was damaged or gone: {file}"
            case FrontierMoved(digits):
                self.frontier = digits
        # What is told first of a phase has taken the time since the event before.
        if self.phase != before[0] or self.done < before[1]:
            self._phase_start = self._last_event
        self._last_event = now

    def saved(self, event: Event) -> None:
        """This event is known to be saved, if its kind can be."""
        if isinstance(event, TrainingStep):
            self.lost = ""

    def _train(self, event: TrainingStep) -> None:
        digits = event.digits
        self.phase = f"Distilling {digits} digits" if digits else f"Learning 1 to {self.first} digits"
        self.done, self.of = event.step, event.of
        self.note = f"cycle {event.cycle}  step {self.done}/{self.of}  loss {event.loss:.4f}"
        self.trained_per_s = event.tokens_per_s
        unsaved = 0 if self.done == self.of else self.done % snapshot_steps()
        self.lost = f"; {unsaved} steps of training are done again" if unsaved else ""

    def _goal(self, event: GoalMeasured) -> None:
        self.note = f"agrees with itself on {percent(event.agreement)} at {(event.digits or self.first) + 1} digits"
        if event.trained is not None:
            self.note += f", on {percent(event.trained)} or more at trained lengths"
        if event.accuracy is not None:
            self.note += f", lowest accuracy {percent(event.accuracy)}"

    def _generate(self, event: Generated) -> None:
        self.phase = f"Generating {event.digits} digits"
        self.done, self.of = event.tried, event.of
        self.note = f"tried {self.done}/{self.of}  accepted {percent(event.accepted / event.tried)}"
        self.generated_per_s = event.tokens_per_s
        self.lost = f"; {self.done} problems of {event.digits} digits are tried again"

    def _round(self, metrics: "RoundMetrics") -> None:
        self.rounds.append(metrics)
        if not metrics.is_round:
            self.frontier = metrics.digits

    def _rollback(self, event: RolledBack) -> None:
        self.note = (
            f"round at {event.digits} digits taken back, attempt {event.failed}: agreement at trained lengths "
            f"fell from {percent(event.before)} to {percent(event.trained)}; again with other problems"
        )


def snapshot_steps() -> int:
    """After so many steps of training one is saved."""
    # Imported here: torch comes with it.
    from sector.engine.run.phases import SNAPSHOT_STEPS

    return SNAPSHOT_STEPS
