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
    plots/                        accuracy by length over rounds; label error and acceptance
    tensorboard/                  the same and the loss, for TensorBoard (`trackers.py`)

What is done is read off the files: each is written once, whole, in this order.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from sector.engine import config as configuration
from sector.engine.config import RunConfig
from sector.engine.errors import InputError
from sector.engine.files import point_link, write_atomically, write_text
from sector.engine.made_with import SETTINGS, check_settings, keep_settings

# What handles weights imports torch where it is used: that takes seconds, and what is refused is refused before.
if TYPE_CHECKING:
    from sector.engine.models.checkpoint import Model
    from sector.engine.training.distill import TrainState

CONFIG = "config.toml"
METRICS = "metrics.jsonl"
LOCK = ".lock"
HOLDER = ".holder.json"


class RunDir:
    """One run's directory; `lock` it before writing. mended: files that were damaged and are made again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mended: list[str] = []

    @property
    def exists(self) -> bool:
        return (self.root / CONFIG).is_file()

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

    def rounds(self) -> list[int]:
        """Digits of the rounds that have begun, shortest first."""
        return sorted(int(path.name) for path in self.root.glob("rounds/*") if path.name.isdigit())

    def following(self, digits: int, leap: int) -> int:
        """Digits of the round after the one at `digits`: that which has begun, else as far as it leaps."""
        return next((begun for begun in self.rounds() if begun > digits), digits + leap)

    def round_dir(self, digits: int) -> Path:
        """The round at `digits` digits; 0 is the supervised phase."""
        return self.root / "rounds" / (f"{digits:02d}" if digits else "supervised")

    def examples(self, digits: int) -> Path:
        return self.round_dir(digits) / "examples.parquet"

    def candidates(self, digits: int) -> Path:
        return self.round_dir(digits) / "candidates.parquet"

    @property
    def snapshot(self) -> Path:
        """The training under way, if one is."""
        return self.root / "training.safetensors"

    def plots(self) -> Path:
        return self.root / "plots"

    def checkpoint(self, digits: int) -> Path:
        return self.root / "checkpoints" / f"{digits:02d}"

    def has_checkpoint(self, digits: int) -> bool:
        return self.checkpoint(digits).is_dir()

    def save_checkpoint(self, model: Model, digits: int) -> None:
        """Write the weights after the phase that reached `digits`, and drop the training state they came from."""
        from sector.engine.models.checkpoint import save_checkpoint

        save_checkpoint(model, self.checkpoint(digits))
        self.mark_latest(digits)
        self.snapshot.unlink(missing_ok=True)

    def load_checkpoint(self, digits: int) -> Model:
        from sector.engine.models.checkpoint import load_checkpoint

        return load_checkpoint(self.checkpoint(digits))

    @property
    def frontier(self) -> int:
        """Digits that the run has reached: of its best checkpoint; 0 before the supervised phase is over."""
        best = self.root / "checkpoints" / "best"
        name = best.readlink().name if best.is_symlink() else ""
        if name.isdecimal():
            return int(name)
        # Copied without its links.
        return max((line["digits"] for line in self.metrics()), default=0) if best.is_dir() else 0

    def mark_latest(self, digits: int) -> None:
        """Point `latest` to these weights."""
        self._point_ahead("latest", digits)

    def mark_best(self, digits: int) -> None:
        """Point `best` to these weights."""
        self._point_ahead("best", digits)

    def _point_ahead(self, name: str, digits: int) -> None:
        """Point a link to these weights; a resumed run passes its old rounds again, and never points it back."""
        link = self.root / "checkpoints" / name
        if link.is_dir() and not link.is_symlink():
            # Copied without its links, so it is the copy of a checkpoint that is there.
            shutil.rmtree(link)
        if not link.is_symlink() or int(link.readlink().name) < digits:
            point_link(link, f"{digits:02d}")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl so far."""
        path = self.root / METRICS
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def add_metrics(self, line: dict[str, Any]) -> None:
        """Append a line; the file is rewritten whole, so that it never ends in half a line."""
        lines = [*self.metrics(), line]
        write_text(self.root / METRICS, "".join(json.dumps(each) + "\n" for each in lines))

    def failed(self, digits: int) -> Path:
        """Where rounds at `digits` digits that were taken back lie, but for a number behind the name."""
        return self.root / "failed" / f"{digits:02d}-"

    def num_failed(self, digits: int) -> int:
        """How often the round was taken back."""
        return sum(1 for _ in self.root.glob(f"failed/{digits:02d}-*"))

    def take_back(self, digits: int) -> None:
        """Move the round's files away at once, so that it begins anew."""
        self.failed(digits).parent.mkdir(exist_ok=True)
        os.rename(self.round_dir(digits), f"{self.failed(digits)}{self.num_failed(digits) + 1}")

    def write_json(self, digits: int, name: str, values: dict[str, Any]) -> None:
        write_text(self.round_dir(digits) / f"{name}.json", json.dumps(values, indent=2) + "\n")

    def read_json(self, digits: int, name: str) -> dict[str, Any] | None:
        path = self.round_dir(digits) / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def save_training(self, state: TrainState, phase: str, cycle: int, seconds: float) -> None:
        """Snapshot a training cycle: weights, moments, and where it stands."""
        import safetensors.torch

        from sector.engine.models.checkpoint import check_finite
        from sector.engine.training.distill import state_tensors

        where = {"phase": phase, "cycle": cycle, "step": state.step, "tokens": state.tokens, "seconds": seconds}
        metadata = {key: str(value) for key, value in where.items()}
        check_finite(state.model)
        # `save_file` would hide a full disk behind an error of its own.
        content = safetensors.torch.save(state_tensors(state), metadata=metadata)
        write_atomically(self.snapshot, lambda aside: aside.write_bytes(content))

    def load_training(
        self, model: Model, config: configuration.TrainerConfig, phase: str
    ) -> tuple[TrainState, int, float] | None:
        """The snapshot of this phase as (state, cycle, seconds); None if there is none. `model` takes its weights."""
        import safetensors

        from sector.engine.training.distill import restore, start_training

        path = self.snapshot
        if not path.exists():
            return None
        with safetensors.safe_open(path, framework="pt") as file:
            where = file.metadata()
            if where["phase"] != phase:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        state = start_training(model, config, int(where["tokens"]))
        restore(state, tensors, int(where["step"]))
        return state, int(where["cycle"]), float(where["seconds"])


def _who(holder: Path) -> str:
    """The process that holds a run, as far as it is known."""
    try:
        held = json.loads(holder.read_text(encoding="utf-8"))
        return f" (process {held['pid']} on {held['host']} since {held['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
