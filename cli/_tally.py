"""Tally of a run: its state, updated event by event, for every view."""

import time
from collections.abc import Sequence
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

# Number of past rounds that the estimate of the time left uses.
_RECENT = 4


class Tally:
    """State of a run, computed from its events.

    first: longest supervised length.
    until: length at which the run is done.
    rounds: lines of metrics.jsonl.
    frontier: longest length that the run has reached.
    phase: current phase, in words.
    done, of: steps or problems of the phase that are done, and their total.
    note: details of the phase, in words.
    generated_per_s, trained_per_s: tokens per second of the last generation and training.
    lost: work that would be repeated if the run ended now, in words; empty if there is none.
    """

    def __init__(self, config: RunConfig, rounds: "Sequence[RoundMetrics]", frontier: int = 0) -> None:
        """Start from the lines of metrics.jsonl and the frontier of earlier commands."""
        self.first, self.until = config.supervised.max_digits, config.until
        self.rounds = list(rounds)
        self.frontier, self.lost = frontier, ""
        self.phase, self.done, self.of, self.note = "Starting", 0, 1, ""
        self.generated_per_s: float | None = None
        self.trained_per_s: float | None = None
        self._start = time.perf_counter()
        self._before = self.rounds[-1].seconds_total if rounds else 0.0
        self._phase_start = self._last_event = self._start
        # Digits of the round under way, and the part of the round and of its phase that earlier commands did.
        self._digits, self._share_before, self._done_before = 0, 0.0, 0

    @property
    def seconds_here(self) -> float:
        """Seconds since this command started."""
        return time.perf_counter() - self._start

    @property
    def seconds(self) -> float:
        """Seconds of the whole run. Earlier commands count up to their last finished round."""
        return self._before + self.seconds_here

    def seconds_left(self) -> float | None:
        """Return the estimated seconds to `until`, from the last rounds.

        None before the first round is done, and before a resumed run comes to work that is not done yet.

        The time of a round grows with the square of its digits (measured): so do the tokens of a problem times the
        tokens that each attends to.
        """
        if len(self.rounds) < 2 or not self.done:
            return None
        ends = [line.seconds_total for line in self.rounds][-_RECENT - 1 :]
        rate = (ends[-1] - ends[0]) / sum(line.digits**2 for line in self.rounds[1 - len(ends) :])
        ahead = self._rounds_ahead()
        total = rate * sum(digits**2 for digits in ahead)
        if ahead:
            total -= self._share_before * rate * ahead[0] ** 2
        return max(self._phase_left(), total - max(0.0, self.seconds - ends[-1]))

    def _rounds_ahead(self) -> list[int]:
        """Return the lengths of the coming rounds, if each leaps as far as the last one."""
        before, last = self.rounds[-2:]
        if last.digits >= self.until:
            return []
        # The last leap of a run that had reached its goal was cut short by that goal.
        leap = max(last.leap, last.digits - before.digits)
        following = self._digits if self._digits > last.digits else last.digits + last.leap
        return [*range(following, self.until, leap), self.until]

    def _phase_left(self) -> float:
        """Return the estimated seconds to the end of the current phase, from the pace of this command."""
        done_here = self.done - self._done_before
        if done_here <= 0:
            return 0.0
        return (time.perf_counter() - self._phase_start) * (self.of - self.done) / done_here

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
                # A resumed run passes its finished rounds again.
                self.frontier = max(self.frontier, digits)
        # The work behind the first event of a phase began at the event before it.
        if self.phase != before[0] or self.done < before[1]:
            self._phase_start = self._last_event
            self._done_before = self.done - 1 if isinstance(event, TrainingStep) else 0
        self._last_event = now

    def saved(self, event: Event) -> None:
        """Record that the state after an event is saved; only states after training steps are."""
        if isinstance(event, TrainingStep):
            self.lost = ""

    def _train(self, event: TrainingStep) -> None:
        digits = event.digits
        self.phase = f"Distilling {digits} digits" if digits else f"Learning 1 to {self.first} digits"
        self.done, self.of = event.step, event.of
        self.note = f"cycle {event.cycle}  step {self.done}/{self.of}  loss {event.loss:.4f}"
        self.trained_per_s = event.tokens_per_s
        if digits > self._digits:
            self._digits, self._share_before = digits, self._share_done(event)
        unsaved = 0 if self.done == self.of else self.done % snapshot_steps()
        self.lost = f"; {unsaved} steps of training are done again" if unsaved else ""

    def _share_done(self, event: TrainingStep) -> float:
        """Return the share of a round that is done at the first training step seen, by the times of the last round."""
        if len(self.rounds) < 2:
            return 0.0
        before, last = self.rounds[-2:]
        cycles = event.cycle - 1 + (event.step - 1) / event.of
        seconds = last.seconds_generate + last.seconds_train * cycles / last.cycles
        duration = last.seconds_total - before.seconds_total
        return min(1.0, seconds / duration) if duration else 0.0

    def _goal(self, event: GoalMeasured) -> None:
        self.note = f"agreement {percent(event.agreement)} at {(event.digits or self.first) + 1} digits"
        if event.trained is not None:
            self.note += f", lowest at trained lengths {percent(event.trained)}"
        if event.accuracy is not None:
            self.note += f"; lowest accuracy {percent(event.accuracy)}"

    def _generate(self, event: Generated) -> None:
        self.phase = f"Generating {event.digits} digits"
        self.done, self.of = event.tried, event.of
        self.note = f"tried {self.done}/{self.of}  accepted {percent(event.accepted / event.tried)}"
        self.generated_per_s = event.tokens_per_s
        if event.digits > self._digits:
            self._digits, self._share_before = event.digits, 0.0
        self.lost = f"; {self.done} problems of {event.digits} digits are tried again"

    def _round(self, metrics: "RoundMetrics") -> None:
        self.rounds.append(metrics)
        self._share_before = 0.0
        if not metrics.is_round:
            self.frontier = metrics.digits

    def _rollback(self, event: RolledBack) -> None:
        self.note = (
            f"round at {event.digits} digits rolled back, attempt {event.failed}: agreement at trained lengths "
            f"fell from {percent(event.before)} to {percent(event.trained)}; again with other problems"
        )


def snapshot_steps() -> int:
    """Return the number of training steps between snapshots."""
    # Imported here, because it imports torch.
    from sector.engine.run.phases import SNAPSHOT_STEPS

    return SNAPSHOT_STEPS
