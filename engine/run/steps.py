"""Engines with a model of the user's choice, and `sector distill`: a round of training on files.

The loop does the same inside a run directory (`phases.py`), where goals decide when to stop. `generate_file.py` and
`generate_folder.py` make the files.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sector.engine.config import RunConfig, TrainerConfig, Values, VllmConfig, vllm_config
from sector.engine.errors import InputError
from sector.engine.files import check_writable
from sector.engine.language.examples import Examples
from sector.engine.language.layout import Layout
from sector.engine.language.tokens import MAX_DIGITS
from sector.engine.models.bound import WEIGHTS
from sector.engine.models.checkpoint import (
    Model,
    TrainedModel,
    open_trained,
    resolve_checkpoint,
    save_checkpoint,
    task_and_layout,
    weights_sha256,
)
from sector.engine.models.sector import best_device
from sector.engine.run.directory import RunDir
from sector.engine.run.part_folder import is_dataset, part_files
from sector.engine.run.plan import trained_model
from sector.engine.run.records import Count, Digits, Record, Seconds, Sha256
from sector.engine.samplers import make_sampler
from sector.engine.samplers.protocol import Sampler
from sector.engine.seeding import stream_seed
from sector.engine.tasks.task import Task
from sector.engine.training.batches import mixed_batches
from sector.engine.training.data_parallel import check_useful, process_group
from sector.engine.training.dataset import read_examples
from sector.engine.training.distill import start_training, train_cycle, tune_allocator
from sector.engine.training.laid_out_steps import DrawExamples
from sector.engine.training.locations import LocationLike, location_of
from sector.engine.training.stream import ExampleStream, read_parts
from sector.engine.training.torchrun import leads

# Arguments: the amount done, the total, a note.
OnProgress = Callable[[int, int, str], None]


def no_progress(done: int, of: int, note: str) -> None:
    """Show nothing."""


def open_engine(
    model: Path | TrainedModel, engine: str, engine_settings: Values | None = None
) -> tuple[Sampler, Task, Layout]:
    """Open an engine with the weights of a checkpoint or run directory; return it with their task and layout.

    engine_settings: settings of the engine `vllm`, over those of the run (`config.vllm_config`).
    """
    trained = open_trained(model)
    sampler = make_sampler(engine, trained.model, vllm_settings(trained.source, engine_settings))
    return sampler, *task_and_layout(trained.model)


def vllm_settings(model: Path, engine_settings: Values | None) -> VllmConfig:
    """Return the settings of the engine `vllm`: these over those of the run, if `model` is a run directory."""
    return vllm_config(engine_settings or {}, _run_config(model).vllm)


def check_digits(digits: int) -> None:
    """Raise InputError unless there are problems of this length."""
    if not 1 <= digits <= MAX_DIGITS:
        raise InputError(f"there are no problems of {digits} digits; choose 1 to {MAX_DIGITS}")


class DistillRecord(Record):
    """Cost and result of training on files (`sector distill --json`)."""

    digits: Digits
    """Digits of the new examples."""
    examples: Count
    """New examples."""
    replay_examples: Count
    """Examples replayed."""
    steps: Count
    """Training steps."""
    loss: float
    """Loss of the last step."""
    tokens: Count
    """Tokens trained on."""
    seconds: Seconds
    """Seconds of training."""
    tokens_per_s: float
    """Tokens trained on per second."""
    checkpoint: str
    """Directory of the new checkpoint."""
    weights_sha256: Sha256
    """Digest of its weights."""


def distill_files(
    model: Path,
    data: Sequence[LocationLike],
    replay: Sequence[LocationLike],
    out: Path,
    *,
    steps: int | None,
    seed: int,
    on_progress: OnProgress,
    window: int | None = None,
) -> DistillRecord:
    """Train one round on files, write the checkpoint, and return cost and result.

    Under torchrun the ranks share the training, and the first one writes.

    model: checkpoint, or a run directory, whose settings apply and whose rounds are replayed too.
    data: files of examples, or folders of parts, or addresses of either. The longest length in them is new, and shorter
        ones are replayed.
    replay: files and folders of further examples to replay.
    out: new directory of the checkpoint.
    steps: training steps; None for the most that a round of the loop may train.
    window: most rows of a folder in memory, as in `stream.read_parts`.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists; choose another --out")
    training = open_training(model, data, replay, seed, window)
    check_writable(out / WEIGHTS)
    check_writable(out, folder=True)
    steps = steps or training.max_steps
    check_useful(training.trainer.num_shards)
    with process_group() as ranks:
        training.weights.to(best_device())  # type: ignore[arg-type]
        state, start, loss = start_training(training.weights, training.trainer), time.perf_counter(), 0.0
        for step, loss in train_cycle(state, training.batches, training.trainer, steps, training.seed, ranks):
            on_progress(step, steps, f"loss {loss:.4f}")
        seconds = time.perf_counter() - start
    if leads():
        save_checkpoint(training.weights, out)
    return DistillRecord(
        digits=training.digits,
        examples=training.num_new,
        replay_examples=training.num_replayed,
        steps=steps,
        loss=loss,
        tokens=state.tokens,
        seconds=seconds,
        tokens_per_s=state.tokens / seconds,
        checkpoint=str(out),
        weights_sha256=weights_sha256(training.weights),
    )


@dataclass(frozen=True, slots=True)
class Training:
    """Round of training on files, ready to start.

    weights: model to train.
    trainer: settings of the training.
    batches: function from a step to its examples.
    seed: seed of the draws in `train_cycle`.
    max_steps: most steps of a round of the loop.
    digits: digits of the new examples.
    num_new: count of new examples.
    num_replayed: count of replayed examples.
    """

    weights: Model
    trainer: TrainerConfig
    batches: DrawExamples
    seed: int
    max_steps: int
    digits: int
    num_new: int
    num_replayed: int


def open_training(
    model: Path, data: Sequence[LocationLike], replay: Sequence[LocationLike], seed: int, window: int | None = None
) -> Training:
    """Read weights, examples and settings. Raise InputError naming the first bad file."""
    config = _run_config(model)
    weights, settings = trained_model(RunDir(model), config, resolve_checkpoint(model)), config.round
    task = task_and_layout(weights)[0].name
    sets = _read_all(data, task, window)
    digits = max(examples.digits for examples in sets)
    new = _joined([examples for examples in sets if examples.digits == digits])
    old = [examples for examples in sets if examples.digits < digits] + _read_all(
        [*replay, *_rounds(model)], task, window
    )
    trainer = settings.trainer
    tune_allocator()
    return Training(
        weights,
        trainer,
        mixed_batches(
            new,
            old,
            trainer.num_shards,
            trainer.shard_rows,
            settings.replay_share,
            stream_seed(seed, "distill", digits),
        ),
        stream_seed(seed, "train", digits),
        settings.cycle_steps * settings.max_cycles,
        digits,
        sum(map(len, new)),
        sum(map(len, old)),
    )


def _read_all(names: Sequence[LocationLike], task: str, window: int | None) -> list[Examples | ExampleStream]:
    """Read files and folders of examples as one set each and length.

    Raise InputError if one is empty or of another task.
    """
    sets: list[Examples | ExampleStream] = []
    for path in map(location_of, names):
        is_folder = path.is_dir() if isinstance(path, Path) else is_dataset(path)
        of_path = read_parts(part_files(path), window) if is_folder else read_examples(path).values()
        if not of_path:
            raise InputError(f"{path} holds no examples; nothing was accepted when it was generated")
        if (learned := next(iter(of_path)).task) != task:
            raise InputError(f"{path} holds examples of {learned}, but the model has learned {task}; choose one task")
        sets += of_path
    return sets


def _joined(sets: Sequence[Examples | ExampleStream]) -> list[Examples | ExampleStream]:
    """Return sets of one length, those in memory as one."""
    held = [examples for examples in sets if isinstance(examples, Examples)]
    joined: list[Examples | ExampleStream] = [Examples.cat(held)] if held else []
    joined.extend(stream for stream in sets if isinstance(stream, ExampleStream))
    return joined


def _rounds(model: Path) -> list[Path]:
    """List the files of examples of a run directory, the supervised phase first; none for a checkpoint."""
    return sorted(model.glob("rounds/*/examples.parquet"), key=lambda path: (path.parent.name != "supervised", path))


def _run_config(model: Path) -> RunConfig:
    """Return the settings of a run directory; the defaults for a checkpoint."""
    run = RunDir(model)
    return run.read_config() if run.exists else RunConfig()
