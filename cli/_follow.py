"""What `sector run` and `sector sft` share: settings asked for, and the view of a run under way.

A view is shown every event after the tally has taken it: as JSON lines for machines, live on a terminal, and as plain
lines elsewhere.
"""

import shlex
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import typer

from sector.cli._errors import Interrupted
from sector.cli._options import DEFAULTS
from sector.cli._output import SILENCE_SECONDS, Output, clock, every
from sector.cli._streams import Unwritable, printable
from sector.cli._tally import Tally
from sector.engine.config import FILTERS, RunConfig, merged, parse_settings, read_config
from sector.engine.errors import InputError, NoAgreement
from sector.engine.run.events import Event, FileMended, Generated, GoalMeasured, PhaseAudited, RolledBack, TrainingStep
from sector.engine.shares import percent
from sector.engine.training.torchrun import num_processes

if TYPE_CHECKING:
    from sector.engine.run.directory import RunDir
    from sector.engine.run.records import RoundMetrics
    from sector.engine.run.stopping import Stopping

JSON_SECONDS = 1.0


def asked_for(
    config: Path | None,
    settings: Sequence[str] | None,
    filter_name: str | None,
    pretrained: Path | None = None,
    **options: Any,
) -> tuple[dict[str, Any], str]:
    """Settings given in a file and on the command line, which wins; and what to call their source.

    settings: one by one, as `--set` takes them.
    """
    given = merged(read_config(config) if config else {}, parse_settings(settings or ()))
    if pretrained:
        given["pretrained"] = _as_text(pretrained)
    given |= {key: value for key, value in options.items() if value is not None}
    if filter_name:
        # Imported here: torch comes with it.

        table = given.get("filter", {})
        given["filter"] = (table if isinstance(table, dict) else {}) | FILTERS[filter_name].model_dump(
            exclude={"k", "temperature"}
        )
    return given, str(config) if config else "command line"


def _as_text(path: Path) -> str:
    """A path as config.toml can hold it. InputError if it is bytes and no text."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the name {path} is not UTF-8, so that config.toml cannot hold it; rename it") from error
    return str(path)


def check_alone(root: Path, given: dict[str, Any], source: str) -> None:
    """InputError, before torch is waited for, if the run is refused at once.

    Under torchrun the first process says so once it has met the others, which end with it then.
    """
    from sector.engine.run.open import check_run

    if num_processes() == 1:
        check_run(root, given, source)


def default_out(given: dict[str, Any]) -> Path:
    """`runs/<preset>-seed<seed>`, or what is pretrained for the preset; the task in front if not the default."""
    task = given.get("task", DEFAULTS.task)
    start = Path(str(given.get("pretrained", ""))).stem or given.get("preset", DEFAULTS.preset)
    name = f"{start}-seed{given.get('seed', DEFAULTS.seed)}"
    return Path("runs") / (name if task == DEFAULTS.task else f"{task}-{name}")


def follow(events: Iterable[Event], run: "RunDir", config: RunConfig, output: Output, stopping: "Stopping") -> None:
    """Go through the events of a run and show them; however that ends, machines get a last word.

    Asked to stop, it ends once the step at hand is saved: with exit code 0, or as interrupted where Ctrl-C asked.
    Where stdout cannot be written it ends so too, and fails.
    """
    from sector.engine.run.stopping import Terminated

    tally = Tally(config, run.metrics(), run.frontier)
    stopped_because = "interrupted"
    try:
        with _view(run, tally, output) as view:
            unwritable: Unwritable | None = None
            for event in events:
                tally.take(event)
                try:
                    view.show(event)
                except Unwritable as error:
                    # Of a terminal that is gone, SIGHUP tells too; there is no use in more words then.
                    unwritable = unwritable or (None if stopping.asked else error)
                    stopping.asked = True
                if stopping.ends_after(event):
                    tally.saved(event)
                    raise unwritable or Terminated
        stopped_because = "reached"
    except (Terminated, KeyboardInterrupt) as error:
        asked = isinstance(error, Terminated) and not stopping.interrupted
        stopped_because = "terminated" if asked else "interrupted"
        said = f"{'stopped as asked' if asked else 'interrupted'}; the same command resumes {run.root}{tally.lost}"
        if not asked:
            raise Interrupted(said) from error
        output.say(f"sector: {said}")
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
    """Where things are, and what one may do with them."""
    from sector.engine.tasks import find_task

    if output.as_json:
        return
    example = find_task(config.task).example
    frontier, root = run.frontier, shlex.quote(printable(str(run.root)))
    output.text("")
    output.text(f"Done: {frontier} digits. Everything is in {run.root}, pictures in {run.plots()}. Next:")
    output.text("")
    output.text(f"  sector eval --model {root} --digits 1-{frontier}")
    output.text(f'  sector solve --model {root} "{example}" --policy improved --show')


class View(Protocol):
    """Shows a run under way."""

    def show(self, event: Event) -> None:
        """Called after the tally took the event."""
        ...


def _view(run: "RunDir", tally: Tally, output: Output) -> AbstractContextManager[View]:
    if output.as_json:
        return nullcontext(_JsonView(output))
    if output.is_live:
        from sector.cli._live import LiveView

        return LiveView(output.console, str(run.root), tally)
    return _PlainView(output, tally)


class _JsonView:
    """One event a line; training steps once a second."""

    def __init__(self, output: Output) -> None:
        self._output, self._last = output, 0.0

    def show(self, event: Event) -> None:
        if isinstance(event, TrainingStep) and event.step < event.of:
            if time.perf_counter() - self._last < JSON_SECONDS:
                return
            self._last = time.perf_counter()
        self._output.line(event.as_json())


class _PlainView:
    """A line a round, and one now and then in between, however long nothing happens."""

    def __init__(self, output: Output, tally: Tally) -> None:
        self._output, self._tally, self._last = output, tally, time.perf_counter()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._beat = every(1.0, self._beat_once)
        self._beat.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._beat.__exit__(None, None, None)

    def _beat_once(self) -> None:
        """Of what goes on, if nothing has been said for long: its events are the usual occasion."""
        if time.perf_counter() - self._last > SILENCE_SECONDS + 1:
            # The next event will meet what is wrong with stdout again, and says so.
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
    accuracy = f"accuracy on 1 to {line.digits} digits {percent(lowest)} or more"
    if line.leap > 1:
        accuracy += f", next {line.digits + line.leap} digits"
    if not line.is_round:
        return f"Supervised phase done: {accuracy}"
    return (
        f"Round at {line.digits} digits: accepted {line.accepted} of {line.tried}, "
        f"label error {percent(line.label_error, 2)} (fast policy {percent(line.fast_label_error)}), {accuracy}"
    )
