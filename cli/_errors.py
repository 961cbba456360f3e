"""Expected failures of a command: one line on stderr, and an exit code.

0: done.
1: training diverged, an engine, its workers or a library failed, memory ran out, or stdout is full.
2: bad input.
3: the model no longer agrees with itself.
130: interrupted.
128 + N: ended by signal N.
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
from typer.core import TyperCommand, TyperGroup, TyperOption

from sector.cli._signals import Ended, ended_by_signals, leave_on_interrupt
from sector.cli._streams import Unwritable, printable, usable_streams
from sector.engine.errors import Diverged, EngineFailed, InputError, NoAgreement, WorkersDied
from sector.engine.training.torchrun import num_processes, rank

FAILED, BAD_INPUT, NO_AGREEMENT, INTERRUPTED, SIGNALLED = 1, 2, 3, 130, 128

_FILES_WHOLE = "no file is half written"
_INTERRUPTED = f"interrupted before it was done; {_FILES_WHOLE}"
_MAX_CAUSE_LENGTH = 200
# Parts of messages of torch (of several lines), and of the linker that cannot load a library.
_NO_MEMORY = ("can't allocate memory", "failed to map segment")


class Interrupted(Exception):
    """Ctrl-C, with a message about the work under way."""


class LibraryBroken(Exception):
    """A library cannot be imported: it rejects an environment variable, or its installation is broken."""

    def __init__(self, library: str, cause: Exception) -> None:
        reason = textwrap.shorten(str(cause), _MAX_CAUSE_LENGTH, placeholder="...") or type(cause).__name__
        super().__init__(
            f"{library} cannot be imported: {reason.rstrip('.')}; unset the environment variable that it rejects, or "
            "reinstall it"
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


class Command(TyperCommand):
    """Command whose help screen shows no type for the switch --help."""

    def get_help_option(self, ctx: Any) -> TyperOption | None:
        return _without_type(super().get_help_option(ctx))


def _without_type(option: TyperOption | None) -> TyperOption | None:
    """Return an option that is shown without its type."""
    if option is not None:
        option.metavar = ""
    return option


class CommandGroup(TyperGroup):
    """Commands that print an expected error as one line. Any other error is a bug and keeps its traceback."""

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
                # If stderr cannot be written, the exit code is all that is left.
                with suppress(OSError):
                    print(f"{_sender()}: {printable(' '.join(message.split()))}", file=sys.stderr)
        leave_on_interrupt()
        sys.exit(code)

    def get_help_option(self, ctx: Any) -> TyperOption | None:
        return _without_type(super().get_help_option(ctx))

    def invoke(self, ctx: Any) -> Any:
        # Typer would end on Ctrl-C without a message.
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted(_INTERRUPTED) from error


def forget_useless() -> None:
    """Unset environment variables with values that would make a library fail, and silence a warning of matplotlib.

    COLUMNS, LINES, TERMINAL_WIDTH: not a size from 1 to 9999. Lines are padded to the width, so a larger one could fill
    the memory.
    OMP_NUM_THREADS: not a list of such numbers.
    MPLBACKEND: always, because sector draws into files only.
    """
    for name in ("COLUMNS", "LINES", "TERMINAL_WIDTH"):
        if name in os.environ and not _is_size(os.environ[name]):
            del os.environ[name]
    # OpenMP takes one number for each level of nesting.
    if not all(_is_size(number) for number in os.environ.get("OMP_NUM_THREADS", "1").split(",")):
        del os.environ["OMP_NUM_THREADS"]
    os.environ.pop("MPLBACKEND", None)
    # If matplotlib cannot cache its list of fonts, it rebuilds the list each time, with a long warning.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


def _is_size(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 4 and int(text) > 0


def _as_expected(error: BaseException) -> BaseException | None:
    """Return the expected error that an error stands for, or None if the error is a bug."""
    # Compiled code wraps the exception that a signal handler raised in it.
    if isinstance(error, SystemError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, KeyboardInterrupt):
        return Interrupted(_INTERRUPTED)
    if isinstance(error, _EXPECTED):
        return error
    if isinstance(error, RuntimeError | ImportError) and any(part in str(error) for part in _NO_MEMORY):
        return MemoryError()
    if isinstance(error, OSError) and (refusal := _system_refusal(error)):
        return refusal
    if isinstance(error, Exception) and (library := _library_under_import(error)):
        return LibraryBroken(library, error)
    return None


def _system_refusal(error: OSError) -> Exception | None:
    """Return an error that names the limit or the path that the system refused, or None if it names neither."""
    if error.errno == errno.ENOMEM:
        return MemoryError()
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return InputError("too many open files; raise the limit, for example with `ulimit -n 1024`")
    return InputError(f"{error.filename}: {error.strerror}") if error.filename and error.strerror else None


def _library_under_import(error: Exception) -> str | None:
    """Return the innermost library whose import raised the error, or None.

    Modules of sector and of Python itself do not count.
    """
    names = [
        str(frame.f_globals.get("__name__")).partition(".")[0]
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name == "<module>"
    ]
    ours = {"__main__", "sector", *sys.stdlib_module_names}
    return next((name for name in reversed(names) if name not in ours), None)


def _outcome(error: BaseException) -> tuple[int, str]:
    """Return exit code and message of an expected error."""
    if isinstance(error, typer.TyperException):
        return error.exit_code, _usage_message(error)
    if isinstance(error, Ended):
        return SIGNALLED + error.number, f"ended by {error} before it was done; {_FILES_WHOLE}"
    if isinstance(error, MemoryError):
        return FAILED, "out of memory; try fewer or shorter problems, a smaller batch, or fewer workers"
    codes = {InputError: BAD_INPUT, NoAgreement: NO_AGREEMENT, Interrupted: INTERRUPTED}
    return next((code for kind, code in codes.items() if isinstance(error, kind)), FAILED), _with_advice(error)


def _with_advice(error: BaseException) -> str:
    """Return the message of an error, and the next step for the user."""
    if isinstance(error, Diverged):
        return f"training diverged: {error}; lower the learning rate (the last checkpoint is unchanged)"
    if isinstance(error, EngineFailed):
        return f"{error}; {_FILES_WHOLE}, and the same command resumes after the last finished one"
    if isinstance(error, WorkersDied):
        return f"{error}; finished files are kept, and the same command resumes after them"
    return str(error)


def _sender() -> str:
    """Return the name in front of a message, with the rank under torchrun, where all ranks share one stderr."""
    try:
        return "sector" if num_processes() == 1 else f"sector (process {rank() + 1} of {num_processes()})"
    except InputError:
        return "sector"


def _usage_message(error: typer.TyperException) -> str:
    """Return the fault of the command line, and the help screen that explains the option."""
    message = error.format_message().replace("Value error, ", "").strip().rstrip(".")
    context = getattr(error, "ctx", None)
    if not (message and context):
        return message
    # A suggestion for a misspelt command ends with a question mark.
    see = " See" if message.endswith("?") else "; see"
    return f"{message}{see} `{context.command_path} --help`"
