"""Open runs: check the directory and the settings of a new or an old run, or find the newest one.

`phases.py` finds the place where an old run continues.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sector.engine.config import MAY_CHANGE, RECIPE, RunConfig, Values, flat, merged, run_config
from sector.engine.errors import InputError
from sector.engine.run.directory import CONFIG, RunDir


@contextmanager
def open_run(root: Path, settings: Values, source: str) -> Iterator[tuple[RunDir, RunConfig]]:
    """Lock a run directory, new or old, and write its config; yield both.

    settings: nested as in TOML. In a new run they replace defaults. An old run keeps its own, of which only some may
        change (`config.MAY_CHANGE`).
    source: origin of the settings, for messages.

    Damaged files of an old run are removed (`repair.py`). If the block raises InputError before a new run has written
    any file of a phase, nothing of the run is left.
    Raise InputError as `check_run`.
    """
    # Imported here: torch comes with it.
    from sector.engine.run.repair import remove_damaged

    run = RunDir(root)
    check_run(root, settings, source)
    with run.lock(), _unless_refused(run):
        # Checked again under the lock, since another process may have started this run meanwhile.
        config = _settle(run, settings, source)
        if not run.exists or run.read_config() != config:
            run.write_config(config)
        run.keep_settings(config)
        run.mended = remove_damaged(run)
        yield run, config


def check_run(root: Path, settings: Values, source: str) -> None:
    """Check a run directory and settings before torch is imported; write nothing.

    Raise InputError if the settings are invalid or differ from those of the run, if the directory is not a run
    directory, or if a link in it leads out of it.
    """
    _check_recipe(root, _settle(RunDir(root), settings, source))
    _check_links(root)


@contextmanager
def _unless_refused(run: RunDir) -> Iterator[None]:
    """Remove the files of a new run if the block raises InputError before a phase has written any file."""
    is_new = not run.exists
    try:
        yield
    except InputError:
        if is_new and not run.begun:
            # Hidden files were there before and are kept; the lock is removed by `RunDir.lock`.
            for path in run.root.glob("[!.]*"):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        raise


def newest_run(parent: Path) -> Path | None:
    """Return the run directory in `parent` with the newest best checkpoint; None if there is none."""
    best = [path for path in parent.glob("*/checkpoints/best") if path.is_dir()]
    return max(best, key=lambda path: path.lstat().st_mtime).parent.parent if best else None


def _check_links(root: Path) -> None:
    """Raise InputError if a link leads out of the run directory, which may come from an untrusted source."""
    inside = root.resolve()
    for path in root.rglob("*"):
        if path.is_symlink() and path.is_dir() and not path.resolve().is_relative_to(inside):
            raise InputError(
                f"{path} is a link that leads out of the run directory; nothing is written or removed there"
            )


def _check_recipe(root: Path, config: RunConfig) -> None:
    """Raise InputError if the settings are of another recipe, by which this release would train other weights."""
    if config.recipe != RECIPE:
        raise InputError(
            f"{root}: recipe {config.recipe} is of an earlier release, which trains differently; this release can "
            "evaluate and report the run, but would resume it to other weights; choose another --out"
        )


def _settle(run: RunDir, settings: Values, source: str) -> RunConfig:
    """Return the config of a run: `settings` over the defaults, or over its settings so far."""
    if not run.exists:
        if run.root.exists() and not run.root.is_dir():
            raise InputError(f"{run.root} is not a run directory but a file; choose another --out")
        # Hidden files are the lock, and half-written files after a kill.
        if run.root.is_dir() and any(not path.name.startswith(".") for path in run.root.iterdir()):
            raise InputError(
                f"{run.root} is not a run directory: it is not empty and has no {CONFIG}; choose another --out"
            )
        return run_config(settings, source)
    stored = run.read_config().model_dump(mode="json")
    before = dict(flat(stored))
    try:
        config = run_config(merged(stored, settings), source)
    except InputError:
        # If the conflict comes from a changed setting, the message about the change is clearer.
        _check_unchanged(run.root, before, {key: value for key, value in flat(settings) if key in before})
        raise
    _check_unchanged(run.root, before, dict(flat(config.model_dump(mode="json"))))
    if config.until < run.frontier:
        raise InputError(
            f"{run.root} has reached {run.frontier} digits, so until = {config.until} cannot be met; leave it out, or "
            "raise it"
        )
    return config


def _check_unchanged(root: Path, before: Values, now: Values) -> None:
    """Raise InputError if a setting that may not change differs from before."""
    for key, value in now.items():
        if key not in MAY_CHANGE and value != before.get(key):
            raise InputError(
                f"{root} was started with {key} = {before.get(key)!r}, not {value!r}; resume it without that setting, "
                "or choose another --out"
            )
