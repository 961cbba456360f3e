"""How a command ends when it does not end well: one line on stderr, and an exit code that says which way.

0 done    1 training diverged, an engine, its workers or a library failed, or stdout is full    2 bad input
3 the model no longer agrees with itself    130 interrupted    128 + N ended by signal N
"""

import errno
import logging
import os
import sys
import textwrap
import traceback
from contextlib import suppress
from typing import Any

import typer
from typer.core import TyperGroup

from sector.cli._signals import Ended, ended_by_signals, hush
from sector.cli._streams import Unwritable, printable, usable_streams
from sector.engine.errors import Diverged, EngineFailed, InputError, NoAgreement, WorkersDied
from sector.engine.training.torchrun import num_processes, rank

FAILED, BAD_INPUT, NO_AGREEMENT, INTERRUPTED, SIGNALLED = 1, 2, 3, 130, 128

_LEFT = "no file is half written"
_UNDONE = f"interrupted before it was done; {_LEFT}"
_LONGEST_CAUSE = 200
_NO_MEMORY = ("can't allocate memory", "failed to map segment")


class Interrupted(Exception):
    """Ctrl-C, with what that means for the work at hand."""


class LibraryBroken(Exception):
    """A library that cannot be imported: a variable of the environment that it does not take, or a broken install."""

    def __init__(self, library: str, cause: Exception) -> None:
        said = textwrap.shorten(str(cause), _LONGEST_CAUSE, placeholder="...") or type(cause).__name__
        super().__init__(
            f"{library} cannot be imported: {said.rstrip('.')}; unset what the environment says for it, or install it "
            "again"
        )


_EXPECTED = (
    typer.TyperException,
    Interrupted,
    Ended,
    Unwritable,
    InputError,
    NoAgreement,
    Diverged,
    EngineFailed,
    WorkersDied,
    MemoryError,
)


class CommandGroup(TyperGroup):
    """Commands whose expected errors come out as one line. Anything else is a bug and keeps its traceback."""

    def main(self, *args: Any, **extra: Any) -> Any:
        forget_useless()
        try:
            with usable_streams(), ended_by_signals():
                code = super().main(*args, **{**extra, "standalone_mode": False})
        except BaseException as error:
            expected = _as_expected(error)
            if expected is None:
                raise
            code, message = _outcome(expected)
            if message:
                # Where stderr cannot be written, the exit code says it alone.
                with suppress(OSError):
                    print(f"{_speaker()}: {printable(' '.join(message.split()))}", file=sys.stderr)
        hush()
        sys.exit(code)

    def invoke(self, ctx: Any) -> Any:
        # Left alone, Ctrl-C would end without a word.
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted(_UNDONE) from error


def forget_useless() -> None:
    """Forget variables that would stop a library before it starts, have it complain, or leave it no room.

    Sizes of no terminal: lines are padded to the width, so one of more than four digits would fill the memory. Numbers
    of threads that are none. A backend of matplotlib: we draw into files alone.
    """
    for name in ("COLUMNS", "LINES", "TERMINAL_WIDTH", "OMP_NUM_THREADS"):
        text = os.environ.get(name)
        # OpenMP takes one number a level.
        numbers = [] if text is None else text.split(",") if name.startswith("OMP_") else [text]
        if not all(_is_size(number) for number in numbers):
            del os.environ[name]
    os.environ.pop("MPLBACKEND", None)
    # Where it cannot keep its list of fonts, it makes another one, and says so at length.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


def _is_size(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 4 and int(text) > 0


def _as_expected(error: BaseException) -> BaseException | None:
    """The error that says what an error means; None for a bug of ours."""
    # Compiled code hides what a signal raised inside of it.
    if isinstance(error, SystemError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, KeyboardInterrupt):
        return Interrupted(_UNDONE)
    if isinstance(error, _EXPECTED):
        return error
    # Of torch, in the middle of a message of several lines; and of the linker, of a library that finds no room.
    if isinstance(error, RuntimeError | ImportError) and any(each in str(error) for each in _NO_MEMORY):
        return MemoryError()
    if isinstance(error, OSError) and (named := _of_the_system(error)):
        return named
    if isinstance(error, Exception) and (library := _loading(error)):
        return LibraryBroken(library, error)
    return None


def _of_the_system(error: OSError) -> Exception | None:
    """What the system refused, in words: a limit of this process, or a path that it names. None for anything else."""
    if error.errno == errno.ENOMEM:
        return MemoryError()
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return InputError("too many files are open at once; raise the limit, as by `ulimit -n 1024`")
    return InputError(f"{error.filename}: {error.strerror}") if error.filename and error.strerror else None


def _loading(error: Exception) -> str | None:
    """The library that was being imported when the error came; None if it was none, or a module of ours."""
    names = [
        str(frame.f_globals.get("__name__")).partition(".")[0]
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name == "<module>"
    ]
    return next((name for name in names if name not in ("__main__", "sector")), None)


def _outcome(error: BaseException) -> tuple[int, str]:
    """Exit code and message of an expected error."""
    if isinstance(error, typer.TyperException):
        return error.exit_code, _usage(error)
    if isinstance(error, Ended):
        return SIGNALLED + error.number, f"ended by {error} before it was done; {_LEFT}"
    if isinstance(error, MemoryError):
        return FAILED, "there is not enough memory for this; ask for less at a time"
    codes = {InputError: BAD_INPUT, NoAgreement: NO_AGREEMENT, Interrupted: INTERRUPTED}
    return next((code for kind, code in codes.items() if isinstance(error, kind)), FAILED), _with_mend(error)


def _with_mend(error: BaseException) -> str:
    """What went wrong, and what now."""
    if isinstance(error, Diverged):
        return f"training diverged: {error}; lower the learning rate, the last checkpoint is untouched"
    if isinstance(error, EngineFailed):
        return f"{error}; {_LEFT}, and the same command goes on from the last whole one"
    if isinstance(error, WorkersDied):
        return f"{error}; what is written stays, and the same command goes on from there"
    return str(error)


def _speaker() -> str:
    """Who says it; under torchrun all processes share one stderr."""
    try:
        return "sector" if num_processes() == 1 else f"sector (process {rank() + 1} of {num_processes()})"
    except InputError:
        return "sector"


def _usage(error: typer.TyperException) -> str:
    """What is wrong with the command line, and where it says how to mend it."""
    message = error.format_message().replace("Value error, ", "").strip().rstrip(".")
    kind = getattr(getattr(error, "param", None), "type", None)
    if (bounds := (getattr(kind, "min", None), getattr(kind, "max", None))) != (None, None):
        least, most = ("any" if bound is None else bound for bound in bounds)
        message = f"{message}; it takes {least} to {most}"
    context = getattr(error, "ctx", None)
    if not (message and context):
        return message
    # A guess of what was meant ends as a question.
    see = " See" if message.endswith("?") else "; see"
    return f"{message}{see} `{context.command_path} --help`"
