"""Training data and initial weights of a phase, built from settings and files alone.

Every rank can therefore build them itself, and the leader sends only the phase and the cycle (`followers.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sector.engine.config import RunConfig, TrainerConfig
from sector.engine.errors import InputError, NoAgreement, first_line
from sector.engine.language.examples import Examples
from sector.engine.models.adapter import AdaptedModel
from sector.engine.models.checkpoint import Model, load_checkpoint
from sector.engine.models.ordinary import new_text_model
from sector.engine.models.pretrained import open_pretrained
from sector.engine.models.sector import SectorForCausalLM, best_device, new_model
from sector.engine.models.sector_config import CHOSEN
from sector.engine.models.text import TextModel
from sector.engine.run.directory import RunDir
from sector.engine.run.phase import Phase
from sector.engine.seeding import stream_seed
from sector.engine.tasks import find_task
from sector.engine.training import supervised
from sector.engine.training.batches import mixed_batches
from sector.engine.training.dataset import read_examples, read_missed
from sector.engine.training.laid_out_steps import DrawExamples


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Training of a phase.

    phase: phase that is trained.
    seed: seed of all draws.
    trainer: settings of the training.
    cycles: steps of each cycle; training may end before the last one.
    batches: function from a cycle to its batches.
    """

    phase: Phase
    seed: int
    trainer: TrainerConfig
    cycles: Sequence[int]
    batches: Callable[[int], DrawExamples]

    def draws(self, cycle: int) -> int:
        """Return the seed of the draws in `train_cycle`."""
        return stream_seed(self.seed, "train", self.phase.number, cycle)


def plan_of(run: RunDir, config: RunConfig, phase: Phase, seed: int) -> TrainingPlan:
    """Return the training of a phase. Raise NoAgreement if a round has no accepted example."""
    return _round(run, config, phase, seed) if phase.is_round else _supervised(config, phase, seed)


def initial_model(run: RunDir, config: RunConfig) -> Model:
    """Return the model that the supervised phase starts from."""
    if config.has_adapter:
        return _with_adapter(run, config)
    if config.is_text:
        return load_checkpoint(run.pretrained)
    return new_sector_model(config).to(best_device())  # type: ignore[arg-type]


def new_sector_model(config: RunConfig) -> SectorForCausalLM:
    """Return a new model of sector's own with random weights. Raise InputError for an unknown key of `network`."""
    if unknown := next((key for key in config.network if key not in CHOSEN), None):
        raise InputError(f"network: the preset {config.preset} has no {unknown}; choose from {', '.join(CHOSEN)}")
    learned = {"digit_order": config.digit_order, "task": config.task}
    try:
        return new_model(config.preset, config.seed, **learned, **config.network)
    except ValueError as error:
        raise InputError(f"network: {first_line(error)}") from error


def start_of_text(config: RunConfig) -> TextModel:
    """Return the model of text that a run starts from, pretrained or new, which reads problems in the form of the run.

    Raise InputError if the pretrained model cannot be read, or if there is no model with the keys of `network`.
    """
    if config.pretrained:
        model = open_pretrained(Path(config.pretrained))
    else:
        model = new_text_model(config.preset, config.seed, config.network)
    model.learns(config.task, config.text_layout, config.digit_order)
    return model


def trained_model(run: RunDir, config: RunConfig, checkpoint: Path) -> Model:
    """Return the model of a checkpoint of a run, to be trained further."""
    if not config.has_adapter:
        return load_checkpoint(checkpoint)
    model = _with_adapter(run, config)
    model.load_adapter(checkpoint)
    return model


def _with_adapter(run: RunDir, config: RunConfig) -> AdaptedModel:
    """Return the pretrained model of a run with a new adapter."""
    trainer, model = config.supervised.trainer, load_checkpoint(run.pretrained)
    assert isinstance(model, TextModel), "a pretrained model is one of text"
    return AdaptedModel(model, trainer.lora_rank, trainer.lora_targets, config.seed, run.pretrained)


def replay_sets(run: RunDir, config: RunConfig, phase: Phase) -> list[Examples]:
    """List the sets that a round replays: supervised examples by length, then the sets of earlier rounds."""
    supervised, *rounds = run.before(phase, config.supervised.max_digits)
    sets = list(read_examples(supervised.examples).values())
    for earlier in rounds:
        sets += examples_of(config, earlier)
    return sets


def examples_of(config: RunConfig, phase: Phase) -> list[Examples]:
    """List the sets of a round that take turns: all examples, and those that the fast policy missed."""
    settings = config.round
    if settings.missed_turns:
        by_length = read_missed(phase.examples)
        # A set smaller than a shard would repeat a few examples. Only answers were missed, so steps are left out.
        least = settings.trainer.shard_rows
        sets = [examples for examples, _ in by_length]
        sets += [examples[missed].answers_only() for examples, missed in by_length if len(missed) >= least]
    else:
        sets = list(read_examples(phase.examples).values())
    task = find_task(config.task)
    return [Examples.cat([examples, *task.restated(examples)]) for examples in sets] if settings.restated else sets


def _supervised(config: RunConfig, phase: Phase, seed: int) -> TrainingPlan:
    settings = config.supervised
    cycles = [settings.cycle_steps] + [settings.more_steps] * (settings.max_cycles - 1)
    return TrainingPlan(phase, seed, settings.trainer, cycles, supervised.curriculum(config))


def _round(run: RunDir, config: RunConfig, phase: Phase, seed: int) -> TrainingPlan:
    settings = config.round
    trainer = settings.trainer
    new = examples_of(config, phase)
    if not new:
        raise NoAgreement(f"no candidate of {phase.digits} digits was accepted")
    replay = replay_sets(run, config, phase)

    def batches(cycle: int) -> DrawExamples:
        draws = stream_seed(seed, "distill", phase.digits, cycle)
        return mixed_batches(new, replay, trainer.num_shards, trainer.shard_rows, settings.replay_share, draws)

    return TrainingPlan(phase, seed, trainer, [settings.cycle_steps] * settings.max_cycles, batches)
