"""Run directory: the files of a run. They show which phases are done.

    config.toml                   resolved settings
    settings.json                 settings that the files were made with, and their digest (`made_with.py`)
    metrics.jsonl                 one line per phase
    rounds/07/examples.parquet    accepted examples of the round at 7 digits (supervised/ for the supervised phase)
    rounds/07/candidates.parquet  all candidates of the round, with verdicts
    rounds/07/parts/              parts of these two while the round generates (`round_parts.py`)
    rounds/07/generation.json     counts, tokens and seconds of the generation
    rounds/07/training.json       cycles, tokens, seconds and agreement of the training
    rounds/supervised/start.json  snapshot that the supervised phase started from, if a grid shared one (`ablate.py`)
    checkpoints/07/               weights after the round (06/: after the supervised phase)
    checkpoints/07/adapter/       adapter of a run with `lora_rank`, in the form of peft (`adapter.py`)
    checkpoints/latest, best      links to the last checkpoint, and to the last one that agrees with itself
    training.safetensors          snapshot of the training under way
    failed/07-1/                  files of a round that was rolled back (`rollback.py`)
    plots/                        accuracy by length before and after the loop; label error and acceptance
    tensorboard/                  the same figures and the loss, for TensorBoard (`trackers.py`)

Each file is written once, as a whole, in this order. A phase is done when its files are there.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from sector.engine import config as configuration
from sector.engine.config import RunConfig
from sector.engine.errors import made_again
from sector.engine.files import point_link, write_atomically, write_text
from sector.engine.run.locks import locked
from sector.engine.run.made_with import SETTINGS, check_settings, keep_settings
from sector.engine.run.phase import Phase
from sector.engine.run.records import (
    EVALUATION,
    METRICS,
    Damaged,
    EvaluationRecord,
    RoundMetrics,
    SnapshotRecord,
    dump_line,
    parse_metrics,
    read_content,
    read_metrics,
    read_record,
)

# Modules that handle weights import torch, which takes seconds. They are imported in functions, so that bad input is
# refused at once.
if TYPE_CHECKING:
    from sector.engine.models.checkpoint import Model
    from sector.engine.training.distill import TrainState

CONFIG = "config.toml"


class RunDir:
    """Directory of one run; `lock` it before writing.

    root: path of the directory.
    mended: names of files that were damaged or missing when the run was opened, and are made again.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mended: list[str] = []

    @property
    def exists(self) -> bool:
        """Whether there is a config, or something else in its place."""
        return os.path.lexists(self.root / CONFIG)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the directory for this process.

        A directory that stays empty is removed again, with the parents that were created for it.

        Raise InputError if another process holds the lock, naming it, or if the directory cannot be written.
        """
        with locked(self.root, "run"):
            yield

    @property
    def begun(self) -> bool:
        """Whether a phase has written any file."""
        return self.snapshot.exists() or any((self.root / name).exists() for name in ("rounds", "checkpoints"))

    def read_config(self) -> RunConfig:
        """Read the settings. Raise InputError if they are invalid, or other than the files were made with."""
        path = self.root / CONFIG
        config = configuration.run_config({"recipe": 1, **configuration.read_config(path)}, str(path), True)
        if self.begun:
            check_settings(self.root, config, path)
        return config

    def write_config(self, config: RunConfig) -> None:
        """Write the settings to config.toml."""
        write_text(self.root / CONFIG, configuration.dump_config(config))

    def keep_settings(self, config: RunConfig) -> None:
        """Record the settings that the files are made with, unless there are files already."""
        if not self.begun or not (self.root / SETTINGS).exists():
            keep_settings(self.root, config)

    def supervised(self, digits: int) -> Phase:
        """Return the supervised phase, which trains on problems of up to `digits` digits."""
        return Phase(self.root, digits, is_round=False)

    def round(self, digits: int) -> Phase:
        """Return the round at `digits` digits."""
        return Phase(self.root, digits, is_round=True)

    def before(self, phase: Phase, max_digits: int) -> list[Phase]:
        """List the phases before a round in order: the supervised phase, and the shorter rounds that have started.

        max_digits: digits of the supervised phase.
        """
        return [self.supervised(max_digits), *(other for other in self.rounds() if other.digits < phase.digits)]

    def rounds(self) -> list[Phase]:
        """List the rounds that have started, shortest first."""
        return [
            self.round(digits)
            for digits in sorted(int(path.name) for path in self.root.glob("rounds/*") if path.name.isdigit())
        ]

    def following(self, digits: int, leap: int) -> Phase:
        """Return the round after the phase at `digits` digits: a started one, or else the one `leap` digits further."""
        later = (phase for phase in self.rounds() if phase.digits > digits)
        return next(later, self.round(digits + leap))

    @property
    def pretrained(self) -> Path:
        """Checkpoint of the model that a run with `pretrained` started from."""
        return self.root / "checkpoints" / "00"

    @property
    def snapshot(self) -> Path:
        """Snapshot of the training under way; missing between trainings."""
        return self.root / "training.safetensors"

    def plots(self) -> Path:
        """Return the folder of the plots."""
        return self.root / "plots"

    def save_checkpoint(self, model: Model, phase: Phase) -> None:
        """Write the weights after a phase, and remove the snapshot of its training."""
        from sector.engine.models.checkpoint import save_checkpoint

        save_checkpoint(model, phase.checkpoint)
        self.mark_latest(phase)
        self.snapshot.unlink(missing_ok=True)

    @property
    def frontier(self) -> int:
        """Digits of the best checkpoint; 0 before the supervised phase is done."""
        best = self.root / "checkpoints" / "best"
        name = best.readlink().name if best.is_symlink() else ""
        if name.isdecimal():
            return int(name)
        # The run was copied without its links. Its metrics may still have damaged lines, since it is not yet mended.
        return max((line.digits for line in self._whole_metrics()), default=0) if best.is_dir() else 0

    def _whole_metrics(self) -> Iterator[RoundMetrics]:
        """Yield the lines of metrics.jsonl before the first damaged one."""
        with suppress(Damaged):
            yield from parse_metrics(read_content(self.root / METRICS, "") or b"", METRICS, "")

    def mark_latest(self, phase: Phase) -> None:
        """Point `latest` to the weights after a phase."""
        self._point_ahead("latest", phase.digits)

    def mark_best(self, phase: Phase) -> None:
        """Point `best` to the weights after a phase."""
        self._point_ahead("best", phase.digits)

    def _point_ahead(self, name: str, digits: int) -> None:
        """Point a link to a checkpoint, never to an earlier one: a resumed run passes its finished rounds again."""
        link = self.root / "checkpoints" / name
        if link.is_dir() and not link.is_symlink():
            # The run was copied without its links, so this is a copy of a checkpoint.
            shutil.rmtree(link)
        if not link.is_symlink() or int(link.readlink().name) < digits:
            point_link(link, f"{digits:02d}")

    def metrics(self) -> list[RoundMetrics]:
        """Read the lines of metrics.jsonl. Raise InputError naming the first damaged one."""
        return read_metrics(self.root / METRICS, made_again(self.root))

    def add_metrics(self, line: RoundMetrics) -> None:
        """Append a line. The whole file is rewritten, so that it never ends in half a line."""
        path = self.root / METRICS
        before = (read_content(path, made_again(self.root)) or b"").decode()
        write_text(path, (before and before.removesuffix("\n") + "\n") + dump_line(line))

    def read_evaluation(self) -> EvaluationRecord | None:
        """Read the evaluation of the fast policy by `sector eval`, None without one. Raise InputError if damaged."""
        mend = f"remove it; `sector eval --model {shlex.quote(str(self.root))}` makes it again"
        return read_record(self.plots() / EVALUATION, EvaluationRecord, mend)

    def save_training(self, state: TrainState, phase: Phase, cycle: int, seconds: float) -> None:
        """Write a snapshot of a training: weights, moments and position."""
        import safetensors.torch

        from sector.engine.models.checkpoint import check_finite
        from sector.engine.training.distill import state_tensors

        place = SnapshotRecord(
            phase=phase.snapshot_key, cycle=cycle, step=state.step, tokens=state.tokens, seconds=seconds
        )
        metadata = {key: str(value) for key, value in place.as_json().items()}
        check_finite(state.model)
        # `save_file` reports a full disk by an unclear error of its own.
        content = safetensors.torch.save(state_tensors(state), metadata=metadata)
        write_atomically(self.snapshot, lambda aside: aside.write_bytes(content))

    def load_training(
        self, model: Model, config: configuration.TrainerConfig, phase: Phase
    ) -> tuple[TrainState, int, float] | None:
        """Load the snapshot of a phase as (state, cycle, seconds); None without one. `model` gets its weights."""
        from sector.engine.models.checkpoint import open_tensors
        from sector.engine.training.distill import restore, start_training

        path = self.snapshot
        if not path.exists():
            return None
        place = read_snapshot(path)
        if place.phase != phase.snapshot_key:
            return None
        with open_tensors(path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        state = start_training(model, config, place.tokens)
        restore(state, tensors, place.step)
        return state, place.cycle, place.seconds


def read_snapshot(path: Path) -> SnapshotRecord:
    """Read the position of a snapshot. Raise Damaged if the file is not a complete snapshot."""
    from sector.engine.models.checkpoint import open_tensors

    try:
        # The header holds the length of the file, so a truncated one is refused.
        with open_tensors(path) as file:
            return SnapshotRecord.model_validate_strings(file.metadata() or {})
    except (OSError, ValueError, SafetensorError) as error:
        raise Damaged(f"{path} is not a snapshot of a training ({' '.join(str(error).split())}); remove it") from error
