"""Errors that end a command, and the words for messages. A message is one line that names the mend."""

import shlex
from pathlib import Path


class InputError(ValueError):
    """Bad input: an argument, a file, a config or a checkpoint. The CLI prints the message and exits with code 2."""


class NoAgreement(RuntimeError):
    """The model no longer agrees with itself, so the loop stopped. The CLI exits with code 3.

    Either no candidate was accepted (`run/plan.py`), or agreement one digit further is too low (`run/phases.py`), or a
    round was rolled back too often (`run/rollback.py`).
    """


class Diverged(RuntimeError):
    """The loss became NaN or infinite. The CLI exits with code 1."""


class EngineFailed(RuntimeError):
    """An engine died, or does not hold the weights that were loaded. Exit code 1; all files stay complete."""


class WorkersDied(RuntimeError):
    """All workers that generate died, or one rank of a training. The CLI exits with code 1."""


def made_again(root: Path) -> str:
    """Return the mend for a damaged file that a run can make again."""
    return f"`sector run --out {shlex.quote(str(root))}` makes it again"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class name if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
