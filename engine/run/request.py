"""A request for labels: the arguments of `sector generate`, for a file as for a folder."""

from dataclasses import dataclass
from pathlib import Path

from sector.engine.config import Filter, Values, VllmConfig
from sector.engine.models.checkpoint import Model, TrainedModel, open_trained, task_and_layout
from sector.engine.policy.generate import Assignment
from sector.engine.run.steps import OnProgress, vllm_settings
from sector.engine.samplers import make_sampler
from sector.engine.samplers.protocol import Sampler


@dataclass(frozen=True, slots=True)
class Opened:
    """A model, its engine and the work that was asked for.

    model: the model.
    vllm: settings of the engine `vllm`.
    sampler: the engine with the model's weights.
    assignment: the problems to try, and how.
    """

    model: Model
    vllm: VllmConfig
    sampler: Sampler
    assignment: Assignment


@dataclass(frozen=True, slots=True)
class Request:
    """A request for labels.

    digits: digits per operand.
    count: problems to try.
    engine: name of the engine.
    settings: the filter.
    hard_share: as the setting.
    seed: seed of the problems and of sampling.
    on_progress: called with the problems tried, their total, and a note.
    engine_settings: as in `steps.open_engine`.
    workers: count of processes that generate (`workers.py`); None generates in this process.
    """

    digits: int
    count: int
    engine: str
    settings: Filter
    hard_share: float
    seed: int
    on_progress: OnProgress
    engine_settings: Values | None = None
    workers: int | None = None

    def open(self, model: Path | TrainedModel) -> Opened:
        """Start the engine with a model: a checkpoint or run directory, or a loaded model."""
        trained = open_trained(model)
        vllm = vllm_settings(trained.source, self.engine_settings)
        sampler = make_sampler(self.engine, trained.model, vllm)
        task, layout = task_and_layout(trained.model)
        assignment = Assignment(task, layout, self.digits, self.count, self.settings, self.seed, self.hard_share)
        return Opened(trained.model, vllm, sampler, assignment)
