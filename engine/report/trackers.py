"""Log a run to experiment trackers: always to TensorBoard, on request to Weights & Biases and trackio.

Nothing flows back from a tracker into the run. The x-axis of each figure is the count of training steps of the run so
far, which a resumed run derives from its files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, closing
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

from sector.engine.config import RunConfig
from sector.engine.errors import InputError, first_line
from sector.engine.files import in_utf8
from sector.engine.run.directory import RunDir
from sector.engine.run.events import Event, GoalMeasured, PhaseAudited, TrainingStep
from sector.engine.run.records import RoundMetrics

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PROJECT = "sector"
TENSORBOARD = "tensorboard"
# Steps between two logged losses.
_LOSS_STEPS = 20
# The fields of metrics.jsonl that are logged; the others are no numbers, or plots show them over digits.
_ROUND_FIGURES = (
    "digits",
    "label_error",
    "fast_label_error",
    "agreement",
    "next_agreement",
    "trained_agreement",
    "cycles",
    "tokens_generated",
    "tokens_trained",
    "seconds_generate",
    "seconds_train",
    "seconds_audit",
    "seconds_total",
)


class Tracker(Protocol):
    """Takes figures by name."""

    def log(self, figures: dict[str, float], step: int) -> None:
        """Log figures at a training step."""

    def close(self) -> None:
        """Finish, and write out pending figures."""


def log_to_trackers(
    events: Iterable[Event], run: RunDir, config: RunConfig, names: Sequence[str] = ()
) -> Generator[Event, None, None]:
    """Pass on the events of a run, and log their figures to TensorBoard and to the named trackers.

    Raise InputError before the first event if a tracker is not installed or does not start.

    names: trackers besides TensorBoard: `wandb`, `trackio`.
    """
    steps = _Steps(config, run.metrics())
    with ExitStack() as open_trackers:
        trackers: list[Tracker] = [_TensorBoard(run.root)]
        trackers += [_Service(name, run.root, config) for name in names]
        for tracker in trackers:
            open_trackers.enter_context(closing(tracker))
        _retell(run, config, trackers[0])
        for event in events:
            now = steps.at(event)
            if figures := figures_of(event):
                for tracker in trackers:
                    tracker.log(figures, now)
            yield event


def _retell(run: RunDir, config: RunConfig, board: Tracker) -> None:
    """Log the finished rounds to TensorBoard again if its files are gone; the losses of steps are not restored."""
    if any((run.root / TENSORBOARD).glob("*")):
        return
    steps = _Steps(config, ())
    for line in run.metrics():
        event = PhaseAudited(line)
        board.log(figures_of(event), steps.at(event))


class _Steps:
    """Count of training steps of a run, from its finished phases and its events."""

    def __init__(self, config: RunConfig, lines: Iterable[RoundMetrics]) -> None:
        """Start after the finished phases of `lines`, those of metrics.jsonl so far."""
        self._config, self._done = config, 0
        for line in lines:
            self.at(PhaseAudited(line))

    def at(self, event: Event) -> int:
        """Return the count of steps that are done at an event."""
        match event:
            case TrainingStep(digits=digits, cycle=cycle, step=step):
                return self._done + self._of(digits, cycle - 1) + step
            case GoalMeasured(digits=digits, cycle=cycle):
                return self._done + self._of(digits, cycle)
            case PhaseAudited(metrics):
                self._done += self._of(metrics.digits if metrics.is_round else 0, metrics.cycles)
        return self._done

    def _of(self, digits: int, cycles: int) -> int:
        """Return the count of steps of that number of cycles; `digits` 0 stands for the supervised phase."""
        if digits:
            return cycles * self._config.round.cycle_steps
        settings = self._config.supervised
        return settings.cycle_steps + (cycles - 1) * settings.more_steps if cycles else 0


def figures_of(event: Event) -> dict[str, float]:
    """Return the figures of an event that are logged, by name."""
    match event:
        case TrainingStep() if event.step % _LOSS_STEPS == 0:
            return {"train/loss": event.loss, "train/tokens_per_s": event.tokens_per_s}
        case GoalMeasured(agreement=agreement, trained=trained):
            return {"goal/agreement": agreement} | ({} if trained is None else {"goal/trained": trained})
        case PhaseAudited(metrics):
            return _figures_of_round(metrics)
    return {}


def _figures_of_round(metrics: RoundMetrics) -> dict[str, float]:
    figures = {f"round/{name}": value for name in _ROUND_FIGURES if (value := getattr(metrics, name)) is not None}
    if metrics.tried:
        figures |= {f"rejected/{reason}": count / metrics.tried for reason, count in metrics.rejected.items()}
        figures["round/accepted"] = metrics.accepted / metrics.tried
    return figures | {
        "accuracy/own length": metrics.own_accuracy,
        "accuracy/lowest trained": min(metrics.trained_accuracies),
        "accuracy/one digit more": metrics.accuracy[metrics.digits + 1],
    }


class _TensorBoard:
    """Event files in the run's `tensorboard/`; entries of a killed run past the first logged step are purged."""

    def __init__(self, root: Path) -> None:
        self._root = root / TENSORBOARD
        self._writer: SummaryWriter | None = None
        self._open = ExitStack()

    def log(self, figures: dict[str, float], step: int) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._root.mkdir(parents=True, exist_ok=True)
            folder = self._open.enter_context(in_utf8(self._root))
            self._writer = SummaryWriter(folder, purge_step=step, flush_secs=10)
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._open.close()


class _Service:
    """Weights & Biases, or trackio, which has the same interface; a resumed run keeps its name and id."""

    def __init__(self, name: str, root: Path, config: RunConfig) -> None:
        module = _imported(name)
        key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:12]
        of_run = {"project": PROJECT, "name": f"{root.name}-{key[:4]}", "config": config.model_dump()}
        if name == "wandb":
            of_run |= {"id": key, "dir": str(root)}
        try:
            self._run = module.init(resume="allow", **of_run)
        except Exception as error:
            # Services raise many kinds of error: no account, no network.
            reason = first_line(error)
            raise InputError(f"--track {name} does not start: {reason}") from error
        self._module = module

    def log(self, figures: dict[str, float], step: int) -> None:
        self._module.log(figures, step=step)

    def close(self) -> None:
        self._module.finish()


def _imported(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(f"--track {name} needs a package: pip install 'sector-lm[{name}]'") from error
