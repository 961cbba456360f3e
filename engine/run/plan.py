"""What a phase of a run trains on, and the weights that the first begins with: from settings and files alone.

So every process that shares a training can make it for itself, and the first only says which one (`followers.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sector.engine.config import RunConfig, TrainerConfig
from sector.engine.errors import NoAgreement
from sector.engine.language.examples import Examples
from sector.engine.models.checkpoint import Model, load_checkpoint
from sector.engine.models.sector import best_device, new_model
from sector.engine.run.directory import RunDir
from sector.engine.run.phase import Phase
from sector.engine.seeding import stream_seed
from sector.engine.tasks import find_task
from sector.engine.training import supervised
from sector.engine.training.batches import mixed_batches
from sector.engine.training.dataset import read_examples, read_missed
from sector.engine.training.distill import Batches


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """A phase's training.

    phase: the phase.
    seed: all draws follow from it.
    trainer: settings of the optimizer.
    cycles: steps of each cycle, of which the last ones may not be needed.
    batches: the batches of a cycle.
    """

    phase: Phase
    seed: int
    trainer: TrainerConfig
    cycles: Sequence[int]
    batches: Callable[[int], Batches]

    def draws(self, cycle: int) -> int:
        """The seed of what `train_cycle` draws."""
        return stream_seed(self.seed, "train", self.phase.number, cycle)


def plan_of(run: RunDir, config: RunConfig, phase: Phase, seed: int) -> TrainingPlan:
    """Return the training of a phase. NoAgreement if nothing was accepted."""
    return _round(run, config, phase, seed) if phase.is_round else _supervised(config, phase, seed)


def untrained(run: RunDir, config: RunConfig) -> Model:
    """The model that the supervised phase starts from."""
    if config.pretrained:
        return load_checkpoint(run.pretrained)
    model = new_model(config.preset, config.seed, digit_order=config.digit_order, task=config.task)
    return model.to(best_device())  # type: ignore[arg-type]


def replayed(run: RunDir, config: RunConfig, phase: Phase) -> list[Examples]:
    """List the sets that a round replays: one a length of the supervised examples, then those of earlier rounds."""
    sets = list(read_examples(run.supervised(config.supervised.max_digits).examples).values())
    for earlier in run.rounds():
        if earlier.digits < phase.digits:
            sets += examples_of(config, earlier)
    return sets


def examples_of(config: RunConfig, phase: Phase) -> list[Examples]:
    """List the sets of a round's examples that take turns: all, and those that the fast policy missed."""
    settings = config.round
    if settings.missed_turns:
        written = read_missed(phase.examples)
        # Fewer than a shard would be the same few over and over. What was missed is the answer, not the step.
        few = settings.trainer.shard_rows
        sets = [examples for examples, _ in written]
        sets += [examples[missed].answers_only() for examples, missed in written if len(missed) >= few]
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
    replay = replayed(run, config, phase)

    def batches(cycle: int) -> Batches:
        draws = stream_seed(seed, "distill", phase.digits, cycle)
        return mixed_batches(new, replay, trainer.num_shards, trainer.shard_rows, settings.replay_share, draws)

    return TrainingPlan(phase, seed, trainer, [settings.cycle_steps] * settings.max_cycles, batches)
