"""Parts that `sector run` and `sector sft` share: the view of a run under way.

There are three views: JSON lines with --json, the live view on a terminal, and plain lines elsewhere.
"""

import shlex
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import typer

from sector.cli._errors import Interrupted
from sector.cli._options import task_words
from sector.cli._output import SILENCE_SECONDS, Output, clock, every
from sector.cli._streams import Unwritable, printable
from sector.cli._tally import Tally
from sector.engine.api.loop import open_loop
from sector.engine.config import RunConfig, Values
from sector.engine.errors import NoAgreement
from sector.engine.run.events import Event, FileMended, Generated, GoalMeasured, PhaseAudited, RolledBack, TrainingStep
from sector.engine.shares import percent

if TYPE_CHECKING:
    from sector.engine.run.directory import RunDir
    from sector.engine.run.records import RoundMetrics
    from sector.engine.run.stop_signals import Stopping

# Shortest time between training steps in the JSON output.
JSON_SECONDS = 1.0


def play(
    root: Path,
    values: Values,
    source: str,
    as_json: bool,
    trackers: Sequence[str],
    workers: int | None = None,
    supervised_only: bool = False,
) -> None:
    """Start or resume a run, show it until it ends, and print the next steps. A follower under torchrun only trains.

    values: settings from options and files, nested.
    source: origin of the settings, for messages.
    trackers: names of trackers besides TensorBoard.
    workers: count of workers that generate; None for this process.
    supervised_only: whether to end after the supervised phase.
    """
    from sector.engine.run.stop_signals import stop_on_signals

    # Before workers redirect stdout.
    output = Output(as_json)
    with open_loop(
        root, values, source, trackers=trackers, workers=workers, supervised_only=supervised_only, stop=stop_on_signals
    ) as opened:
        if opened is None:
            return
        follow(opened.events, opened.run, opened.config, output, opened.stopping)
    next_steps(opened.run, opened.config, output)


def follow(events: Iterable[Event], run: "RunDir", config: RunConfig, output: Output, stopping: "Stopping") -> None:
    """Show the events of a run until it ends. With --json, the last line is the event `done` in any case.

    On a request to stop, end once the current step is saved: raise typer.Exit with code 0, or Interrupted after Ctrl-C.
    If stdout cannot be written, save the current step as well, and raise Unwritable.
    """
    from sector.engine.run.stop_signals import Terminated

    tally = Tally(config, run.metrics(), run.frontier)
    stopped_because = "interrupted"
    try:
        with _view(run, tally, output, stopping) as view:
            unwritable: Unwritable | None = None
            for event in events:
                tally.take(event)
                try:
                    view.show(event)
                except Unwritable as error:
                    # A terminal that is closed also sends SIGHUP, which is a request to stop. Then that is the reason
                    # for the end, and not this error.
                    unwritable = unwritable or (None if stopping.asked else error)
                    stopping.asked = True
                if stopping.ends_after(event):
                    tally.saved(event)
                    raise unwritable or Terminated
        stopped_because = "reached"
    except (Terminated, KeyboardInterrupt) as error:
        resumes = f"the same command resumes {run.root}{tally.lost}"
        if stopping.interrupted or isinstance(error, KeyboardInterrupt):
            stopped_because = "interrupted"
            raise Interrupted(f"interrupted; {resumes}") from error
        stopped_because = "terminated"
        output.say(f"sector: stopped by a signal; {resumes}")
        raise typer.Exit from error
    except NoAgreement as error:
        stopped_because = f"no agreement: {error}"
        raise NoAgreement(f"{error}; the last good weights are in {run.root / 'checkpoints' / 'best'}") from error
    except Exception as error:
        stopped_because = f"error: {error}"
        raise
    finally:
        if output.as_json:
            done = {"frontier": tally.frontier, "seconds": tally.seconds_here, "stopped_because": stopped_because}
            output.line({"event": "done", **done})


def next_steps(run: "RunDir", config: RunConfig, output: Output) -> None:
    """Print where the results are, and commands to try next. Print nothing with --json."""
    from sector.engine.tasks import find_task

    if output.as_json:
        return
    example, task = find_task(config.task).example, "".join(f" {shlex.quote(word)}" for word in task_words(config.task))
    frontier, root = run.frontier, shlex.quote(printable(str(run.root)))
    output.text("")
    output.text(f"Done: {frontier} digits.")
    output.text(f"Everything is in {run.root}, plots are in {run.plots()}.")
    output.text("")
    output.text("Next:")
    output.text("")
    output.text(f"  sector eval --model {root}{task} --digits 1-{frontier}")
    output.text(f'  sector solve --model {root}{task} "{example}" --policy improved --show')


class View(Protocol):
    """Display of a run under way."""

    def show(self, event: Event) -> None:
        """Show an event. The tally has been updated by it."""
        ...


def _view(run: "RunDir", tally: Tally, output: Output, stopping: "Stopping") -> AbstractContextManager[View]:
    if output.as_json:
        return nullcontext(_JsonView(output))
    if output.is_live:
        from sector.cli._live import LiveView

        return LiveView(output.console, str(run.root), tally, stopping)
    return _PlainView(output, tally)


class _JsonView:
    """JSON view: one event per line; training steps at most once per JSON_SECONDS."""

    def __init__(self, output: Output) -> None:
        self._output, self._last = output, 0.0

    def show(self, event: Event) -> None:
        if isinstance(event, TrainingStep) and event.step < event.of:
            if time.perf_counter() - self._last < JSON_SECONDS:
                return
            self._last = time.perf_counter()
        self._output.line(event.as_json())


class _PlainView:
    """Plain view: a line per round, and a progress line after each SILENCE_SECONDS without output."""

    def __init__(self, output: Output, tally: Tally) -> None:
        self._output, self._tally, self._last = output, tally, time.perf_counter()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._timer = every(1.0, self._print_if_silent)
        self._timer.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.__exit__(None, None, None)

    def _print_if_silent(self) -> None:
        """Print a progress line if no event did so for a second more than SILENCE_SECONDS."""
        if time.perf_counter() - self._last > SILENCE_SECONDS + 1:
            # If stdout cannot be written, the next event fails in the same way and reports it.
            with suppress(Unwritable):
                self._say(f"{self._tally.phase}: {self._tally.note or 'no result yet'}")

    def show(self, event: Event) -> None:
        tally = self._tally
        match event:
            case PhaseAudited(metrics):
                self._say(_round_line(metrics))
            case GoalMeasured(digits=0):
                self._say(f"{tally.phase}: {tally.note}")
            case RolledBack() | FileMended():
                self._say(tally.note)
            case TrainingStep() | Generated() if time.perf_counter() - self._last > SILENCE_SECONDS:
                self._say(f"{tally.phase}: {tally.note}  {event.tokens_per_s:,.0f} tokens/s")

    def _say(self, text: str) -> None:
        with self._lock:
            left = self._tally.seconds_left()
            self._output.text(f"[{clock(self._tally.seconds)}] {text}" + (f"  ({clock(left)} left)" if left else ""))
            self._last = time.perf_counter()


def _round_line(line: "RoundMetrics") -> str:
    lowest = min(line.trained_accuracies)
    accuracy = f"lowest accuracy {percent(lowest)} on 1 to {line.digits} digits"
    if line.leap > 1:
        accuracy += f", next round at {line.digits + line.leap} digits"
    if not line.is_round:
        return f"Supervised phase done: {accuracy}"
    return (
        f"Round at {line.digits} digits: accepted {line.accepted} of {line.tried}, "
        f"label error {percent(line.label_error, 2)} (fast policy {percent(line.fast_label_error)}), {accuracy}"
    )
