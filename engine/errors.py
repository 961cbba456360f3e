"""What went wrong, in one line that names the mend."""

import shlex
from pathlib import Path


class InputError(ValueError):
    """Bad input from a command line, file, config or checkpoint. The CLI prints the message and exits with code 2."""


class NoAgreement(RuntimeError):
    """The loop stopped because the model no longer agrees with itself. The CLI exits with code 3."""


class Diverged(RuntimeError):
    """The loss is no longer a number. The CLI exits with code 1."""


class EngineFailed(RuntimeError):
    """An engine died, or does not have the weights that it was given. The CLI exits with code 1; files stay whole."""


class WorkersDied(RuntimeError):
    """Processes that shared the work died, worker after worker or one of a training. The CLI exits with code 1."""


def made_again(root: Path) -> str:
    """Return the mend of a damaged file that a run makes again."""
    return f"`sector run --out {shlex.quote(str(root))}` makes it again"


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
