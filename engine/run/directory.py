"""A run directory: where everything of a run lies, and what is already done.

    config.toml                   the resolved settings
    settings.json                 those that all of this was made with, and their digest (`made_with.py`)
    metrics.jsonl                 a line a phase
    rounds/07/examples.parquet    accepted examples of the round at 7 digits (supervised/ for the supervised phase)
    rounds/07/candidates.parquet  everything that round tried, with verdicts
    rounds/07/generation.json     what generating took
    rounds/supervised/start.json  whose snapshot the supervised phase began with, if a grid lent it one (`ablate.py`)
    checkpoints/07/               weights after that round (06/: after the supervised phase)
    checkpoints/latest, best      links to the last one, and to the last one that agrees with itself
    training.safetensors          the training under way, if one is
    failed/07-1/                  a round that was taken back (rollback.py)
    plots/                        accuracy by length before and after the loop; label error and acceptance
    tensorboard/                  the same and the loss, for TensorBoard (`trackers.py`)

What is done is read off the files: each is written once, whole, in this order.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from sector.engine import config as configuration
from sector.engine.config import RunConfig
from sector.engine.errors import InputError, made_again
from sector.engine.files import point_link, write_atomically, write_text
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

# What handles weights imports torch where it is used: that takes seconds, and what is refused is refused before.
if TYPE_CHECKING:
    from sector.engine.models.checkpoint import Model
    from sector.engine.training.distill import TrainState

CONFIG = "config.toml"
LOCK = ".lock"
HOLDER = ".holder.json"


class RunDir:
    """One run's directory; `lock` it before writing. mended: files that were damaged and are made again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mended: list[str] = []

    @property
    def exists(self) -> bool:
        """Is there a config, or something in its place?"""
        return os.path.lexists(self.root / CONFIG)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for this process. InputError if another holds it, and who; or it cannot be written.

        A directory in which nothing came to be is removed again, with those above it that were made for it.
        """
        lock, holder = FileLock(self.root / LOCK), self.root / HOLDER
        made = [path for path in (self.root, *self.root.parents) if not path.exists()]
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"{self.root} is in use by another run{_who(holder)}; wait for it or choose another --out"
            ) from error
        except OSError as error:
            raise InputError(f"cannot write to {self.root}: {error.strerror or error}") from error
        try:
            since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
            write_text(holder, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}) + "\n")
            yield
        finally:
            holder.unlink(missing_ok=True)
            if [path.name for path in self.root.iterdir()] == [LOCK]:
                (self.root / LOCK).unlink()
            lock.release()
            with suppress(OSError):
                for path in made:
                    path.rmdir()

    @property
    def begun(self) -> bool:
        """Has a phase made anything?"""
        return self.snapshot.exists() or any((self.root / name).exists() for name in ("rounds", "checkpoints"))

    def read_config(self) -> RunConfig:
        """The settings in config.toml. InputError if they are bad, or not those that the run was made with."""
        path = self.root / CONFIG
        config = configuration.run_config({"recipe": 1, **configuration.read_config(path)}, str(path))
        if self.begun:
            check_settings(self.root, config, path)
        return config

    def write_config(self, config: RunConfig) -> None:
        write_text(self.root / CONFIG, configuration.dump_config(config))

    def keep_settings(self, config: RunConfig) -> None:
        """Record the settings that what there will be is made with; what there is keeps its record."""
        if not self.begun or not (self.root / SETTINGS).exists():
            keep_settings(self.root, config)

    def supervised(self, digits: int) -> Phase:
        """Return the supervised phase, which learns problems of up to `digits` digits."""
        return Phase(self.root, digits, is_round=False)

    def round(self, digits: int) -> Phase:
        """Return the round at `digits` digits."""
        return Phase(self.root, digits, is_round=True)

    def rounds(self) -> list[Phase]:
        """List the rounds that have begun, shortest first."""
        return [
            self.round(digits)
            for digits in sorted(int(path.name) for path in self.root.glob("rounds/*") if path.name.isdigit())
        ]

    def following(self, digits: int, leap: int) -> Phase:
        """Return the round after the phase at `digits` digits: the one that has begun, else as far as it leaps."""
        begun = (phase for phase in self.rounds() if phase.digits > digits)
        return next(begun, self.round(digits + leap))

    @property
    def pretrained(self) -> Path:
        """The checkpoint of the model that a run with `pretrained` started from."""
        return self.root / "checkpoints" / "00"

    @property
    def snapshot(self) -> Path:
        """The training under way, if one is."""
        return self.root / "training.safetensors"

    def plots(self) -> Path:
        return self.root / "plots"

    def save_checkpoint(self, model: Model, phase: Phase) -> None:
        """Write the weights after a phase, and drop the training state they came from."""
        from sector.engine.models.checkpoint import save_checkpoint

        save_checkpoint(model, phase.checkpoint)
        self.mark_latest(phase)
        self.snapshot.unlink(missing_ok=True)

    @property
    def frontier(self) -> int:
        """Digits that the run has reached: of its best checkpoint; 0 before the supervised phase is over."""
        best = self.root / "checkpoints" / "best"
        name = best.readlink().name if best.is_symlink() else ""
        if name.isdecimal():
            return int(name)
        # Copied without its links. Damaged lines are not yet mended where a run is opened.
        return max((line.digits for line in self._whole_metrics()), default=0) if best.is_dir() else 0

    def _whole_metrics(self) -> Iterator[RoundMetrics]:
        """Read the lines of metrics.jsonl before the first that is damaged."""
        with suppress(Damaged):
            yield from parse_metrics(read_content(self.root / METRICS, "") or b"", METRICS, "")

    def mark_latest(self, phase: Phase) -> None:
        """Point `latest` to the weights after a phase."""
        self._point_ahead("latest", phase.digits)

    def mark_best(self, phase: Phase) -> None:
        """Point `best` to the weights after a phase."""
        self._point_ahead("best", phase.digits)

    def _point_ahead(self, name: str, digits: int) -> None:
        """Point a link to these weights; a resumed run passes its old rounds again, and never points it back."""
        link = self.root / "checkpoints" / name
        if link.is_dir() and not link.is_symlink():
            # Copied without its links, so it is the copy of a checkpoint that is there.
            shutil.rmtree(link)
        if not link.is_symlink() or int(link.readlink().name) < digits:
            point_link(link, f"{digits:02d}")

    def metrics(self) -> list[RoundMetrics]:
        """Read the lines of metrics.jsonl so far. InputError names the first that is damaged."""
        return read_metrics(self.root / METRICS, made_again(self.root))

    def add_metrics(self, line: RoundMetrics) -> None:
        """Append a line; the file is rewritten whole, so that it never ends in half a line."""
        path = self.root / METRICS
        before = (read_content(path, made_again(self.root)) or b"").decode()
        write_text(path, (before and before.removesuffix("\n") + "\n") + dump_line(line))

    def read_evaluation(self) -> EvaluationRecord | None:
        """Read the evaluation of the fast policy that `sector eval` left; None without one. InputError if damaged."""
        mend = f"remove it; `sector eval --model {shlex.quote(str(self.root))}` makes it again"
        return read_record(self.plots() / EVALUATION, EvaluationRecord, mend)

    def save_training(self, state: TrainState, phase: Phase, cycle: int, seconds: float) -> None:
        """Snapshot a training cycle: weights, moments, and where it stands."""
        import safetensors.torch

        from sector.engine.models.checkpoint import check_finite
        from sector.engine.training.distill import state_tensors

        place = SnapshotRecord(
            phase=phase.snapshot_key, cycle=cycle, step=state.step, tokens=state.tokens, seconds=seconds
        )
        metadata = {key: str(value) for key, value in place.as_json().items()}
        check_finite(state.model)
        # `save_file` would hide a full disk behind an error of its own.
        content = safetensors.torch.save(state_tensors(state), metadata=metadata)
        write_atomically(self.snapshot, lambda aside: aside.write_bytes(content))

    def load_training(
        self, model: Model, config: configuration.TrainerConfig, phase: Phase
    ) -> tuple[TrainState, int, float] | None:
        """The snapshot of this phase as (state, cycle, seconds); None if there is none. `model` takes its weights."""
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
    """Read where a snapshot stands. Raises Damaged if it is not one, or not the whole of one."""
    from sector.engine.models.checkpoint import open_tensors

    try:
        # The header says how long the file is; a truncated one is refused.
        with open_tensors(path) as file:
            return SnapshotRecord.model_validate_strings(file.metadata() or {})
    except (OSError, ValueError, SafetensorError) as error:
        raise Damaged(f"{path} is no snapshot of a training ({' '.join(str(error).split())}); remove it") from error


def _who(holder: Path) -> str:
    """The process that holds a run, as far as it is known."""
    try:
        held = json.loads(holder.read_text(encoding="utf-8"))
        return f" (process {held['pid']} on {held['host']} since {held['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
