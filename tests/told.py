"""Phases of a run of a text model whose engine knows the truth: a model so new agrees with itself on nothing."""

from collections.abc import Iterator
from functools import cached_property
from types import SimpleNamespace
from typing import cast

from sector.engine.language.layout import Layout
from sector.engine.models.checkpoint import Model, load_checkpoint, task_and_layout
from sector.engine.run.directory import RunDir
from sector.engine.run.events import Event
from sector.engine.run.phases import Phases
from sector.engine.samplers.protocol import Sampler
from sector.engine.selfplay import run_phases
from sector.engine.tasks.task import Task
from sector.engine.testing.knowing import Knowing


class _Told(Phases):
    @cached_property
    def _layout(self) -> Layout:
        layout = task_and_layout(load_checkpoint(self._run.pretrained))[1]
        self._knowing = Knowing(cast(Task, SimpleNamespace(layout=lambda order: layout)))
        return self._knowing.layout("lsd")

    def _engine(self, model: Model) -> Sampler:
        assert self._layout
        return self._knowing


def told_events(run: RunDir) -> Iterator[Event]:
    """The events of a run. The model is trained as in any run."""
    return run_phases(_Told(run, run.read_config()))
