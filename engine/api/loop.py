"""A run as an iterator of events: `sector.run`, and the parts that `sector run` and `sector sft` share with it."""

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self
from weakref import WeakValueDictionary

from sector.engine.api.settings import chosen_settings, default_out
from sector.engine.config import Filter, RunConfig, Values
from sector.engine.run.directory import RunDir
from sector.engine.run.events import Event, TrainingStep
from sector.engine.run.open import check_run
from sector.engine.run.stop_signals import Stopping
from sector.engine.training.torchrun import num_processes

if TYPE_CHECKING:
    from sector.engine.run.records import RoundMetrics


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that is open: locked by this process, with its engine ready.

    run: its directory.
    config: its settings.
    stopping: request to save the current step.
    events: its events, which also go to the trackers.
    """

    run: RunDir
    config: RunConfig
    stopping: Stopping
    events: Generator[Event, None, None]


@contextmanager
def open_loop(
    root: Path,
    values: Values,
    source: str,
    *,
    trackers: Sequence[str] = (),
    workers: int | None = None,
    supervised_only: bool = False,
    stop: Callable[[], AbstractContextManager[Stopping]] = lambda: nullcontext(Stopping()),
) -> Iterator[OpenRun | None]:
    """Start or resume a run. A follower under torchrun only trains; it yields None when the run is over.

    root: run directory, new or old.
    values: settings, nested as in the config file.
    source: origin of the settings, for messages.
    trackers: names of trackers besides TensorBoard.
    workers: count of workers that generate; None for this process.
    supervised_only: whether to end after the supervised phase.
    stop: context that turns signals into requests to stop; by default none does.

    Raise InputError as `check_loop`, and if a tracker, an engine or workers cannot be started.
    """
    check_loop(root, values, source)
    # Imported here: torch comes with them.
    from sector.engine.policy.workers import start_workers
    from sector.engine.report.trackers import log_to_trackers
    from sector.engine.run.followers import follow_leader, lead_ranks
    from sector.engine.run.open import open_run
    from sector.engine.run.phases import Phases
    from sector.engine.selfplay import self_play

    if follow_leader():
        yield None
        return
    with (
        lead_ranks() as ranks,
        stop() as stopping,
        open_run(root, values, source) as (run, config),
        start_workers(workers, config.engine, config.vllm) as pool,
    ):
        parts = (run, config, pool, stopping, ranks)
        events = Phases(*parts).supervise() if supervised_only else self_play(*parts)
        with closing(log_to_trackers(events, run, config, trackers)) as logged:
            yield OpenRun(run, config, stopping, logged)


def check_loop(root: Path, values: Values, source: str) -> None:
    """Raise InputError, before torch is imported, if the run cannot be started or resumed with these settings.

    Under torchrun do nothing: rank 0 checks the run when all ranks are connected, so that they all end together.
    """
    if num_processes() == 1:
        check_run(root, values, source)


def run(
    out: str | os.PathLike[str] | None = None,
    *,
    until: int | None = None,
    task: str | None = None,
    preset: str | None = None,
    pretrained: str | os.PathLike[str] | None = None,
    seed: int | None = None,
    engine: str | None = None,
    filter: str | Filter | Values | None = None,
    config: str | os.PathLike[str] | None = None,
    track: Sequence[str] = (),
    workers: int | None = None,
    **settings: object,
) -> "Run":
    """Return the whole loop as an iterator of its events: the supervised phase, then rounds of self-play.

    Settings are checked at once. The work starts with the first event, and only goes on while events are taken. To
    resume a run, repeat the call; `until` may be raised.

    out: run directory, to be created or resumed; by default `runs/PRESET-seedSEED`.
    until: digits at which the run is done.
    task: kind of problem to learn.
    preset: size of a new model.
    pretrained: pretrained model to start from.
    seed: seed of all random draws.
    engine: engine that generates: a name, FILE.py:NAME or MODULE:NAME.
    filter: checks that an answer must pass: a name, a `Filter`, or a table of settings.
    config: TOML file of settings; keywords win.
    track: trackers besides TensorBoard.
    workers: processes that generate. While they run, the output of this process goes to stderr.
    settings: further settings as in the config file, as `round={"candidates": 200}`.

    Raise InputError for bad input. The iterator raises NoAgreement if the model no longer agrees with itself.
    """
    name = filter if isinstance(filter, str) else None
    values, source = chosen_settings(
        None if config is None else Path(config), (), name, None if pretrained is None else Path(pretrained),
        until=until, task=task, preset=preset, seed=seed, engine=engine,
        filter=None if name else _as_table(filter), **settings,
    )  # fmt: skip
    root, source = default_out(values) if out is None else Path(out), source if config else "settings"
    check_loop(root, values, source)
    return Run(root, values, source, trackers=track, workers=workers)


def _as_table(chosen: str | Filter | Values | None) -> Values | None:
    """Return the settings of a filter as a table; None for a name, or if there are none."""
    if isinstance(chosen, Filter):
        return chosen.model_dump()
    return chosen if isinstance(chosen, Mapping) else None


class Run(Iterator[Event]):
    """A run of the loop, as an iterator of its events.

    A run that is not exhausted stays open, and locked, until it is closed: by `close`, by the end of a `with`, when it
    is garbage, or when this process runs the same directory again. After Ctrl-C, or without `close`, at most
    `SNAPSHOT_STEPS` steps of training are done again when it is resumed. The weights at the end are the same.

    root: its directory.
    """

    def __init__(
        self, root: Path, values: Values, source: str, trackers: Sequence[str] = (), workers: int | None = None
    ) -> None:
        """Prepare a run; nothing is read or written before the first event. Arguments are those of `open_loop`."""
        self.root = root
        self._stopping = Stopping()
        self._events = _play(root, values, source, self._stopping, trackers, workers)
        self._last: Event | None = None
        self._begun = False

    def __next__(self) -> Event:
        """Return the next event. Raise StopIteration when the run is done."""
        if not self._begun:
            self._begun = True
            if left := _UNDER_WAY.get(self.root.resolve()):
                left.close()
            _UNDER_WAY[self.root.resolve()] = self
        self._last = None
        self._last = next(self._events)
        return self._last

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Save the training step under way, and release the run directory; a closed run yields no more events."""
        if isinstance(self._last, TrainingStep) and self._last.step < self._last.of:
            # A step can be saved before its event only, so one more is done.
            self._stopping.asked = True
            next(self._events, None)
        self._last = None
        self._events.close()

    @property
    def frontier(self) -> int:
        """Digits of the longest problems that the run has reached; 0 before the supervised phase is done."""
        return RunDir(self.root).frontier

    def metrics(self) -> "list[RoundMetrics]":
        """Return the audits of all finished phases, in order. Raise InputError naming a damaged line."""
        return RunDir(self.root).metrics()


# A function, not a method: a run that its own frame held would stay locked until the next search for cycles.
def _play(
    root: Path, values: Values, source: str, stopping: Stopping, trackers: Sequence[str], workers: int | None
) -> Generator[Event, None, None]:
    """Open a run and yield its events."""
    with open_loop(
        root, values, source, trackers=trackers, workers=workers, stop=lambda: nullcontext(stopping)
    ) as opened:
        if opened:
            yield from opened.events


# Runs of this process by directory. A notebook keeps an interrupted run alive, with its lock, in the last traceback.
_UNDER_WAY: WeakValueDictionary[Path, Run] = WeakValueDictionary()
