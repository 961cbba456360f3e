"""Disk of a run: what it takes, and the removal of files of finished phases (`keep_candidates`, `keep_checkpoints`).

`removed.json` lists what was removed, so that it is not taken for lost. It is written before the removal. If a
checkpoint that the run needs is lost as well, all later phases are trained again from the last one that is left.
A write to a full disk is an InputError of `files.py`, and leaves the old file.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from sector.engine.config import RunConfig
from sector.engine.files import write_text
from sector.engine.run.directory import RunDir
from sector.engine.run.phase import Phase
from sector.engine.run.records import Damaged, RemovedRecord, dump_file

# Page and pictures of `sector report`, in the run by default.
_REPORT = ("report.html", "report")


def bound_disk(run: RunDir, config: RunConfig, advanced: Phase) -> None:
    """Remove files of finished phases that the settings do not keep.

    advanced: a round whose audit is done, like those of all shorter ones.
    """
    before = read_removed(run.root)
    tried = [phase for phase in run.rounds() if phase.examples.exists()]
    candidates = _old(tried, config.keep_candidates, advanced)
    trained = [phase for phase in _phases(run, config) if phase.checkpoint.is_dir()]
    needed = {_target(run, "best"), _target(run, "latest")}
    if config.round.teacher == "supervised":
        needed.add(config.supervised.max_digits)
    checkpoints = [phase for phase in _old(trained, config.keep_checkpoints, advanced) if phase.digits not in needed]
    after = RemovedRecord(
        candidates=sorted({*before.candidates, *(phase.digits for phase in candidates)}),
        checkpoints=sorted({*before.checkpoints, *(phase.digits for phase in checkpoints)}),
    )
    if after != before:
        write_text(run.root / f"{RemovedRecord.name}.json", dump_file(after))
    for phase in candidates:
        for path in (phase.candidates, *run.root.glob(f"failed/{phase.failed.name}*/{phase.candidates.name}")):
            path.unlink(missing_ok=True)
    for phase in checkpoints:
        shutil.rmtree(phase.checkpoint)


def read_removed(root: Path) -> RemovedRecord:
    """Read the record of removed files; an empty one if there is none. Raise Damaged if it is damaged."""
    return Phase(root, 1, is_round=False).removed


def forget_lost(run: RunDir, config: RunConfig) -> None:
    """Forget removed checkpoints from which a run cannot go on, since the ones after them are lost.

    Their phases are then trained again. A damaged record is forgotten as a whole.
    """
    try:
        removed = read_removed(run.root)
    except Damaged:
        (run.root / f"{RemovedRecord.name}.json").unlink()
        return
    last = max((phase.digits for phase in _phases(run, config) if phase.checkpoint.is_dir()), default=0)
    kept = [digits for digits in removed.checkpoints if digits < last]
    if kept != removed.checkpoints:
        write_text(run.root / f"{RemovedRecord.name}.json", dump_file(removed.model_copy(update={"checkpoints": kept})))


def disk_of(root: Path) -> dict[str, int]:
    """Return the bytes that the files of a run take, by kind; `total` is their sum.

    The run's report does not count, so that a second report has the same figures.
    """
    kinds = dict.fromkeys(("checkpoints", "candidates", "examples", "failed", "snapshot", "other"), 0)
    for folder, _, names in os.walk(root):
        for name in names:
            # A file may vanish while the run goes on.
            with suppress(OSError):
                path = Path(folder, name).relative_to(root)
                if path.parts[0] not in _REPORT:
                    kinds[_kind(path)] += (root / path).lstat().st_size
    return {**kinds, "total": sum(kinds.values())}


def size_of(root: Path) -> int:
    """Return the bytes of the files below a folder."""
    return disk_of(root)["total"]


def _kind(path: Path) -> str:
    """Return the kind of a file of a run by its path in it."""
    if path.parts[0] in ("checkpoints", "failed"):
        return path.parts[0]
    if path.name == "training.safetensors":
        return "snapshot"
    return path.name.split(".")[0] if path.name.startswith(("candidates.", "examples.")) else "other"


def _phases(run: RunDir, config: RunConfig) -> list[Phase]:
    """List the supervised phase and the rounds that have started, in order."""
    return [run.supervised(config.supervised.max_digits), *run.rounds()]


def _old(phases: list[Phase], keep: int, advanced: Phase) -> list[Phase]:
    """Return the finished phases but for the last `keep` of all; none if `keep` is 0."""
    return [phase for phase in phases[:-keep] if phase.digits <= advanced.digits] if keep else []


def _target(run: RunDir, name: str) -> int:
    """Return the digits of the checkpoint that a link points to."""
    return int((run.root / "checkpoints" / name).readlink().name)
