"""Trackers that people already use: TensorBoard always, Weights & Biases and trackio where asked for.

Trackers are told what happened and nothing comes back. Every figure stands over the number of training steps of the
run so far, which a resumed run knows from its files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
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
# The loss of every so many steps.
_LOSS_STEPS = 20
# What a line of metrics.jsonl is not told of: it is drawn over digits elsewhere, or no number.
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

    def log(self, figures: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


def log_to_trackers(
    events: Iterable[Event], run: RunDir, config: RunConfig, names: Sequence[str] = ()
) -> Iterator[Event]:
    """The events of a run, told on the way to TensorBoard, and to the trackers `wandb` or `trackio` where named.

    InputError before the first event if one of them is not installed, or will not start.
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
    """Tell TensorBoard of the rounds that are done, if what it was told is gone; the loss of their steps stays gone."""
    if any((run.root / TENSORBOARD).glob("*")):
        return
    steps = _Steps(config, ())
    for line in run.metrics():
        event = PhaseAudited(line)
        board.log(figures_of(event), steps.at(event))


class _Steps:
    """Training steps of a run, from the phases that are done and where its events say that it stands."""

    def __init__(self, config: RunConfig, lines: Iterable[RoundMetrics]) -> None:
        """lines: of metrics.jsonl so far."""
        self._config, self._done = config, 0
        for line in lines:
            self.at(PhaseAudited(line))

    def at(self, event: Event) -> int:
        """Steps done when the event came."""
        match event:
            case TrainingStep(digits=digits, cycle=cycle, step=step):
                return self._done + self._of(digits, cycle - 1) + step
            case GoalMeasured(digits=digits, cycle=cycle):
                return self._done + self._of(digits, cycle)
            case PhaseAudited(metrics):
                self._done += self._of(metrics.digits if metrics.is_round else 0, metrics.cycles)
        return self._done

    def _of(self, digits: int, cycles: int) -> int:
        """Steps of so many cycles; `digits` 0 stands for the supervised phase."""
        if digits:
            return cycles * self._config.round.cycle_steps
        settings = self._config.supervised
        return settings.cycle_steps + (cycles - 1) * settings.more_steps if cycles else 0


def figures_of(event: Event) -> dict[str, float]:
    """What of an event is drawn, by name."""
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
    """Event files in the run's `tensorboard/`; what a killed run had written past the first step is taken back."""

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
    """Weights & Biases, or trackio, which speaks the same language. A resumed run goes on under its own name."""

    def __init__(self, name: str, root: Path, config: RunConfig) -> None:
        module = _imported(name)
        key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:12]
        of_run = {"project": PROJECT, "name": f"{root.name}-{key[:4]}", "config": config.model_dump()}
        if name == "wandb":
            of_run |= {"id": key, "dir": str(root)}
        try:
            self._run = module.init(resume="allow", **of_run)
        except Exception as error:
            # Whatever keeps it from starting (no account, no network) is between the user and the service.
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
