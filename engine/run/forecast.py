"""Forecast of a run: time, tokens and disk by phase, from rates measured here and now (`sector run --dry-run`).

Measured are training steps by the real trainer, a block of candidates by the real engine, probes, audits, and files as
they are written; nothing is kept. A run decides its rounds and cycles by agreement, which nothing here can know. So
there are two forecasts: the least work that the settings allow (each goal met after one cycle, each leap as far as may
be) and the most (all cycles, one digit a round); rounds that are rolled back come on top.

Lengths between the measured ones are interpolated by a polynomial of at most second degree, since chains of thought
grow with the square of the length.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import safetensors.torch

from sector.engine.config import RunConfig, TrainerConfig
from sector.engine.errors import InputError
from sector.engine.language.layout import Batch
from sector.engine.models.checkpoint import Model, load_checkpoint, save_checkpoint, task_and_layout
from sector.engine.models.sector import best_device
from sector.engine.models.shelf import from_shelf
from sector.engine.policy.generate import BLOCK, Assignment, generate_blocks
from sector.engine.policy.solver import Solver
from sector.engine.policy.workers import measure_on
from sector.engine.run import audit
from sector.engine.run.disk import size_of
from sector.engine.run.goals import Goals
from sector.engine.run.phase import Phase
from sector.engine.run.plan import new_sector_model
from sector.engine.samplers import make_sampler
from sector.engine.seeding import generator
from sector.engine.tasks import find_task
from sector.engine.training import supervised
from sector.engine.training.batches import mixed_batches
from sector.engine.training.dataset import (
    Provenance,
    candidates_table,
    improved_table,
    labelled_table,
    write_examples,
    write_table,
)
from sector.engine.training.distill import start_training, state_tensors, train_cycle
from sector.engine.training.laid_out_steps import DrawExamples

# Steps that are timed, spread over a cycle, after one that is not.
_STEPS = 12
# A length takes seconds to measure.
_LENGTHS = 3
_DEGREE = 2


@dataclass(frozen=True, slots=True)
class PhaseForecast:
    """Forecast of a phase.

    phase: `sft` for the supervised phase, or `round`.
    digits: digits that it reaches.
    cycles: cycles of its training.
    tokens_generated: tokens of the examples of a round.
    tokens_trained: tokens of its training.
    seconds_generate: seconds of generation.
    seconds_train: seconds of training.
    seconds_probe: seconds of measuring its goal.
    seconds_audit: seconds of the audit.
    bytes: bytes on disk, checkpoint included.
    """

    phase: str
    digits: int
    cycles: int
    tokens_generated: float
    tokens_trained: float
    seconds_generate: float
    seconds_train: float
    seconds_probe: float
    seconds_audit: float
    bytes: float

    @property
    def seconds(self) -> float:
        """Seconds of the whole phase."""
        return self.seconds_generate + self.seconds_train + self.seconds_probe + self.seconds_audit


@dataclass(frozen=True, slots=True)
class Forecast:
    """Forecast of a run.

    least: its phases, if each goal is met after one cycle and each leap is as far as may be.
    most: its phases, if all cycles are used and each round is one digit longer.
    kept_bytes: bytes of the least work that stay on disk by the settings.
    snapshot_bytes: bytes of the snapshot while a phase trains.
    weights: weights that were measured: the shipped ones of the task, or new ones, whose chains go on to the limit.
    seconds_measured: seconds that the measurement took.
    rates: measured figures by length, as `Rates`.
    """

    least: list[PhaseForecast]
    most: list[PhaseForecast]
    kept_bytes: float
    snapshot_bytes: int
    weights: str
    seconds_measured: float
    rates: dict[int, dict[str, float]]

    def as_json(self) -> dict[str, object]:
        """Return the forecast as a JSON object."""
        return {"forecast": "an estimate, measured now", **asdict(self), "total": self.total}

    @property
    def total(self) -> dict[str, dict[str, float]]:
        """Sums over the phases of both forecasts."""
        names = [field.name for field in fields(PhaseForecast) if field.name not in ("phase", "digits", "cycles")]
        sums = {}
        for name, phases in (("least", self.least), ("most", self.most)):
            sums[name] = {key: sum(getattr(phase, key) for phase in phases) for key in names}
            sums[name]["seconds"] = sum(phase.seconds for phase in phases)
        return sums


@dataclass(frozen=True, slots=True)
class Rates:
    """Figures of a round at one length.

    generate: seconds a candidate.
    tokens: tokens a candidate.
    step: seconds a training step.
    step_tokens: tokens a training step.
    probe: seconds of measuring the goal once.
    score: seconds of the audit of this length.
    bytes: bytes of the files of a candidate, accepted or not.
    candidates_bytes: the part of these bytes that `keep_candidates` may remove.
    """

    generate: float
    tokens: float
    step: float
    step_tokens: float
    probe: float
    score: float
    bytes: float
    candidates_bytes: float


def forecast(config: RunConfig) -> Forecast:
    """Measure, and return the forecast of a run. Raise InputError for a model of text."""
    if config.is_text:
        raise InputError("--dry-run measures sector's own models only; leave out pretrained and the presets of text")
    start = time.perf_counter()
    model, weights = _weights(config)
    with tempfile.TemporaryDirectory(prefix="sector") as folder:
        measured = _Measured(config, model, Path(folder))
        most = _path(measured, [config.supervised.max_cycles, config.round.max_cycles], leap=1)
        least = _path(measured, [1, 1], leap=config.round.max_leap)
    return Forecast(
        least,
        most,
        _kept(config, measured, least),
        measured.snapshot_bytes,
        weights,
        time.perf_counter() - start,
        {digits: asdict(rates) for digits, rates in measured.rates.items()},
    )


def _weights(config: RunConfig) -> tuple[Model, str]:
    """Return weights of the shape of a run, and their kind: those that ship for its task, if they fit, or new ones.

    Trained weights end their answers, so their speed is that of a run.
    """
    new = new_sector_model(config)
    if shipped := from_shelf(Path(config.task)):
        trained = load_checkpoint(shipped)
        shape = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "digit_order", "task")
        if all(getattr(trained.config, name) == getattr(new.config, name) for name in shape):
            return trained.to(best_device()), "shipped"  # type: ignore[arg-type]
    return new.to(best_device()), "new"  # type: ignore[arg-type]


class _Measured:
    """Figures of a run, measured when it is made.

    supervised_step, supervised_tokens: seconds and tokens a training step of the supervised phase.
    supervised_probe: seconds of measuring its goal once.
    supervised_bytes: bytes of its examples.
    checkpoint_bytes, snapshot_bytes: bytes of a checkpoint, and of the snapshot of a training.
    rates: figures by length.
    """

    def __init__(self, config: RunConfig, model: Model, folder: Path) -> None:
        self.config, self._model, self._folder = config, model, folder
        self._task, self._layout = find_task(config.task), task_and_layout(model)[1]
        self._sampler = make_sampler(config.engine, model, config.vllm)
        self._measure = measure_on(None, model, self._sampler)
        self._goals = Goals(config, self._task, self._layout)
        save_checkpoint(model, folder / "checkpoint")
        self.checkpoint_bytes = size_of(folder / "checkpoint")
        self.supervised_bytes = self._supervised_files()
        first, last = config.supervised.max_digits, config.until
        self.supervised_probe = _timed(lambda: self._goals.reached(self._phase(first, False), self._measure, 0))
        lengths = np.linspace(min(first + 1, last), last, _LENGTHS).round().astype(int)
        self.rates = {int(digits): self._rates(int(digits)) for digits in dict.fromkeys(lengths.tolist())}
        draw, steps = supervised.curriculum(config)(0), config.supervised.cycle_steps
        self.supervised_step, self.supervised_tokens = self._step(draw, steps, config.supervised.trainer)

    def at(self, name: str, digits: int) -> float:
        """Return a figure at a length."""
        lengths = list(self.rates)
        values = [getattr(rates, name) for rates in self.rates.values()]
        fit = np.polyfit(lengths, values, min(_DEGREE, len(lengths) - 1))
        return max(0.0, float(np.polyval(fit, digits)))

    def audit(self, longest: int) -> float:
        """Return the seconds of an audit of the lengths up to `longest`."""
        return sum(self.at("score", digits) for digits in range(1, longest + 1))

    def _phase(self, digits: int, is_round: bool) -> Phase:
        return Phase(self._folder, digits, is_round)

    def _supervised_files(self) -> int:
        origin = Provenance(0, self.config.seed, "oracle", "")
        tables = [labelled_table(kept, self._layout, origin) for kept in supervised.kept_examples(self.config)]
        write_examples(self._folder / "labelled" / "examples.parquet", pa.concat_tables(tables))
        return size_of(self._folder / "labelled")

    def _rates(self, digits: int) -> Rates:
        """Measure a round at one length."""
        config, settings = self.config, self.config.round
        count = min(BLOCK, settings.candidates)
        asked = Assignment(
            self._task, self._layout, digits, count, config.filter, config.seed, config.hard_share, settings.pool
        )
        start = time.perf_counter()
        rows, block = generate_blocks(self._sampler, 0, asked)
        seconds = time.perf_counter() - start
        files = self._folder / f"round{digits}"
        origin = Provenance(digits, config.seed, config.engine, self._sampler.weights_sha256)
        write_table(files / "candidates.parquet", candidates_table(block))
        write_examples(files / "examples.parquet", improved_table(block, rows, self._layout, origin))
        solver = Solver(self._sampler, self._layout, "fast", config.filter, config.seed)
        probe = _timed(lambda: self._goals.reached(self._phase(digits, True), self._measure, 0))
        score = _timed(lambda: audit.score_length(solver, self._task, digits, config.audit_samples, config.seed))
        drawn = [supervised.label(self._draw(length, settings.trainer.shard_rows)) for length in range(1, digits + 1)]
        batches = mixed_batches(
            drawn[-1:], drawn[:-1], settings.trainer.num_shards, settings.trainer.shard_rows, settings.replay_share, 0
        )
        step, step_tokens = self._step(batches, settings.cycle_steps, settings.trainer)
        removable = (files / "candidates.parquet").stat().st_size / count
        return Rates(
            seconds / count, block.tokens / count, step, step_tokens, probe, score, size_of(files) / count, removable
        )

    def _draw(self, digits: int, rows: int) -> Batch:
        return self._task.draw(digits, rows, generator(0, "forecast", digits), self.config.hard_share)

    def _step(self, draw: DrawExamples, steps: int, trainer: TrainerConfig) -> tuple[float, float]:
        """Return the mean seconds and tokens of steps spread over a cycle. A copy of the weights is trained."""
        state = start_training(load_checkpoint(self._folder / "checkpoint"), trainer)
        spread = [draw(round(steps * (step + 0.5) / _STEPS)) for step in range(_STEPS)]
        start, tokens = 0.0, 0
        for step, _ in train_cycle(state, lambda step: spread[max(0, step - 1)], trainer, _STEPS + 1, 0):
            if step == 1:
                start, tokens = time.perf_counter(), state.tokens
        self.snapshot_bytes = len(safetensors.torch.save(state_tensors(state)))
        return (time.perf_counter() - start) / _STEPS, (state.tokens - tokens) / _STEPS


def _timed(work: Callable[[], object]) -> float:
    """Return the seconds that work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _path(measured: _Measured, cycles: Sequence[int], leap: int) -> list[PhaseForecast]:
    """Return the phases of a run.

    cycles: cycles of the supervised phase, and of each round.
    leap: digits from one phase to the next.
    """
    config = measured.config
    first, settings = config.supervised.max_digits, config.supervised
    steps = settings.cycle_steps + settings.more_steps * (cycles[0] - 1)
    phases = [
        PhaseForecast(
            "sft", first, cycles[0], 0.0, steps * measured.supervised_tokens, 0.0, steps * measured.supervised_step,
            cycles[0] * measured.supervised_probe, measured.audit(max(first, config.until) + 1),
            measured.supervised_bytes + measured.checkpoint_bytes,
        )
    ]  # fmt: skip
    digits = first
    while digits < config.until:
        digits += min(leap, config.until - digits)
        phases.append(_round(measured, digits, cycles[1]))
    return phases


def _round(measured: _Measured, digits: int, cycles: int) -> PhaseForecast:
    settings = measured.config.round
    steps = cycles * settings.cycle_steps
    return PhaseForecast(
        "round", digits, cycles,
        settings.candidates * measured.at("tokens", digits), steps * measured.at("step_tokens", digits),
        settings.candidates * measured.at("generate", digits), steps * measured.at("step", digits),
        cycles * measured.at("probe", digits), measured.audit(digits + 1),
        settings.candidates * measured.at("bytes", digits) + measured.checkpoint_bytes,
    )  # fmt: skip


def _kept(config: RunConfig, measured: _Measured, phases: list[PhaseForecast]) -> float:
    """Return the bytes that stay on disk by the settings `keep_checkpoints` and `keep_candidates`."""
    removed = max(0, len(phases) - config.keep_checkpoints) if config.keep_checkpoints else 0
    rounds = [phase.digits for phase in phases if phase.phase == "round"]
    old = rounds[: -config.keep_candidates] if config.keep_candidates else []
    candidates = config.round.candidates * sum(measured.at("candidates_bytes", digits) for digits in old)
    return sum(phase.bytes for phase in phases) - removed * measured.checkpoint_bytes - candidates
