"""Opening runs: a new one, one to be resumed, or the newest there is."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sector.engine.config import MAY_CHANGE, RECIPE, RunConfig, flat, merged, run_config
from sector.engine.errors import InputError
from sector.engine.run.directory import CONFIG, RunDir


@contextmanager
def open_run(root: Path, given: dict[str, Any], source: str) -> Iterator[tuple[RunDir, RunConfig]]:
    """Hold a run directory, new or to be resumed, with its settled config on disk.

    given: what was asked for, nested as in TOML. A new run takes it over the defaults. An old run keeps its own
        settings; of those only some may be asked to change (`config.MAY_CHANGE`). source: where `given` came from, for
        messages.
    What is damaged in an old run is removed (`repair.py`). A new run that is refused before it has made anything leaves
    nothing behind.
    Raises InputError as `check_run`.
    """
    # Imported here: torch comes with it.
    from sector.engine.run.repair import remove_damaged

    run = RunDir(root)
    check_run(root, given, source)
    with run.lock(), _unless_refused(run):
        # Again: another process may have started this run in between.
        config = _settle(run, given, source)
        if not run.exists or run.read_config() != config:
            run.write_config(config)
        run.keep_settings(config)
        run.mended = remove_damaged(run)
        yield run, config


def check_run(root: Path, given: dict[str, Any], source: str) -> None:
    """What `open_run` refuses at once, without waiting for torch; nothing is written.

    InputError if the settings are bad, or others than the run was made with, the directory is something else, or a link
    in it leads out of it.
    """
    _check_recipe(root, _settle(RunDir(root), given, source))
    _check_links(root)


@contextmanager
def _unless_refused(run: RunDir) -> Iterator[None]:
    """Remove what a new run has written, should the block refuse it (InputError) before anything was made."""
    is_new = not run.exists
    try:
        yield
    except InputError:
        if is_new and not run.begun:
            # The directory was empty but for hidden files, which are not ours; its lock goes by itself.
            for path in run.root.glob("[!.]*"):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        raise


def newest_run(parent: Path) -> Path:
    """The run directory in `parent` whose best checkpoint is the youngest. InputError if there is none."""
    best = [path for path in parent.glob("*/checkpoints/best") if path.is_dir()]
    if not best:
        raise InputError(f"{parent} holds no trained model; train one with `sector run`, or name one with --model")
    return max(best, key=lambda path: path.lstat().st_mtime).parent.parent


def _check_links(root: Path) -> None:
    """InputError if a link in a run that someone else may have made leads to a directory outside of it."""
    inside = root.resolve()
    for path in root.rglob("*"):
        if path.is_symlink() and path.is_dir() and not path.resolve().is_relative_to(inside):
            raise InputError(
                f"{path} is a link that leads out of the run directory; nothing is written or removed there"
            )


def _check_recipe(root: Path, config: RunConfig) -> None:
    """InputError if this release would make other weights of the settings than the one that they come from."""
    if config.recipe != RECIPE:
        raise InputError(
            f"{root}: recipe {config.recipe} is of an earlier release, which trains otherwise; this one evaluates and "
            f"reports such a run, but to go on with it would end in other weights; choose another --out"
        )


def _settle(run: RunDir, given: dict[str, Any], source: str) -> RunConfig:
    """The config that a run of these wishes has."""
    if not run.exists:
        if run.root.exists() and not run.root.is_dir():
            raise InputError(f"{run.root} is not a run directory but a file; choose another --out")
        # Hidden files are our own lock and what a kill left half-written.
        if run.root.is_dir() and any(not path.name.startswith(".") for path in run.root.iterdir()):
            raise InputError(
                f"{run.root} is not a run directory: it is not empty and has no {CONFIG}; choose another --out"
            )
        return run_config(given, source)
    stored = run.read_config().model_dump(mode="json")
    before = dict(flat(stored))
    try:
        config = run_config(merged(stored, given), source)
    except InputError:
        # Settings that do not go together may only be so because the run has others than were asked for.
        _check_unchanged(run.root, before, {key: value for key, value in flat(given) if key in before})
        raise
    _check_unchanged(run.root, before, dict(flat(config.model_dump(mode="json"))))
    if config.until < run.frontier:
        raise InputError(
            f"{run.root} has reached {run.frontier} digits, so until = {config.until} cannot be met; leave it out, or "
            "raise it"
        )
    return config


def _check_unchanged(root: Path, before: dict[str, Any], asked: dict[str, Any]) -> None:
    """InputError if a setting is asked for that is not as it was before, and must be."""
    for key, value in asked.items():
        if key not in MAY_CHANGE and value != before[key]:
            raise InputError(
                f"{root} was started with {key} = {before[key]!r}, not {value!r}; resume it without that setting, "
                "or choose another --out"
            )
