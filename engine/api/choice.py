"""Choice of a model: the one that was named, else the newest run, else weights that ship with the package."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sector.engine.errors import InputError
from sector.engine.models.checkpoint import TrainedModel, learned_task, open_trained
from sector.engine.models.shelf import shelf_names
from sector.engine.run.open import newest_run
from sector.engine.tasks import DEFAULT, find_task

RUNS = Path("runs")

# A path or name of a model, a loaded model, or None for the choice of `choose_model`.
ModelLike = str | os.PathLike[str] | TrainedModel | None


@dataclass(frozen=True, slots=True)
class Chosen:
    """A model that was chosen in the place of a named one.

    path: run directory, or name of shipped weights.
    reason: which one it is, in words.
    """

    path: Path
    reason: str


def choose_model(texts: Sequence[str] = ()) -> Chosen:
    """Return the newest run in `runs/`; without one, the shipped weights whose task reads the first readable problem.

    Addition is taken if no task reads any of the problems.

    texts: problems as typed.
    """
    if newest := newest_run(RUNS):
        return Chosen(newest, f"the newest run, {newest}")
    name = next((name for text in texts for name in _shelf() if _reads(name, text)), DEFAULT)
    return Chosen(Path(name), f"the weights {name} that ship with sector, since {RUNS}/ holds no trained model")


def opened(model: ModelLike, texts: Sequence[str] = ()) -> Path | TrainedModel:
    """Return the model that an argument names: a path or a loaded model; for None the choice of `choose_model`."""
    if isinstance(model, TrainedModel):
        return model
    return choose_model(texts).path if model is None else Path(model)


def check_task(model: Path, task: str | None) -> None:
    """Raise InputError if a model has learned another task than a user names; None names none."""
    if task is not None and (learned := learned_task(model)) != task:
        raise InputError(
            f"{model} has learned the task {learned}, not {task}; choose a model of {task}, or the --task of this one"
        )


def load(model: ModelLike = None) -> TrainedModel:
    """Return a trained model, loaded once for several calls.

    model: checkpoint directory, run directory (then its best checkpoint), or name of shipped weights such as
        `addition`; None for the newest run in `runs/`, else the shipped weights.

    Raise InputError if there is no such model, or if it cannot be read.
    """
    return open_trained(opened(model))


def _shelf() -> list[str]:
    """Return the names of the shelf, the default task first."""
    return sorted(shelf_names(), key=lambda name: (name != DEFAULT, name))


def _reads(task: str, text: str) -> bool:
    """Return whether a text is a problem of a task."""
    try:
        find_task(task).digits_of(text)
    except InputError:
        return False
    return True
