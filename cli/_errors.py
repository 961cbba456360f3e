"""How a command ends when it does not end well: one line on stderr, and an exit code that says which way.

0 done    1 training diverged, or an engine or its workers failed    2 bad input    3 the model no longer agrees with
itself    130 interrupted
"""

import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from sector.engine.errors import Diverged, EngineFailed, InputError, NoAgreement, WorkersDied

FAILED, BAD_INPUT, NO_AGREEMENT, INTERRUPTED = 1, 2, 3, 130


class Interrupted(Exception):
    """Ctrl-C, with what that means for the work at hand."""


class CommandGroup(TyperGroup):
    """Commands whose expected errors come out as one line. Anything else is a bug and keeps its traceback."""

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            sys.exit(super().main(*args, **{**extra, "standalone_mode": False}))
        except (
            typer.TyperException,
            Interrupted,
            InputError,
            NoAgreement,
            Diverged,
            EngineFailed,
            WorkersDied,
        ) as error:
            code, message = _outcome(error)
            if message:
                print(f"{_speaker()}: {_plain(message)}", file=sys.stderr)
            sys.exit(code)

    def invoke(self, ctx: Any) -> Any:
        # Left alone, Ctrl-C would end without a word.
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted") from error


def _outcome(
    error: typer.TyperException | Interrupted | InputError | NoAgreement | Diverged | EngineFailed | WorkersDied,
) -> tuple[int, str]:
    """Exit code and message of an expected error."""
    if isinstance(error, InputError):
        return BAD_INPUT, str(error)
    if isinstance(error, NoAgreement):
        return NO_AGREEMENT, str(error)
    if isinstance(error, Interrupted):
        return INTERRUPTED, str(error)
    if isinstance(error, Diverged):
        return FAILED, f"training diverged: {error}; lower the learning rate, the last checkpoint is untouched"
    if isinstance(error, EngineFailed):
        return FAILED, f"{error}; no file is half written, and the same command goes on from the last whole one"
    if isinstance(error, WorkersDied):
        return FAILED, f"{error}; what is written stays, and the same command goes on from there"
    return error.exit_code, _usage(error)


def _speaker() -> str:
    """Who says it; under torchrun all processes share one stderr."""
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    return "sector" if size == "1" else f"sector (process {int(rank) + 1} of {size})"


def _plain(message: str) -> str:
    """One line that a terminal shows as it is: what it quotes may come from a file that someone else wrote."""
    line = " ".join(message.split())
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in line)


def _usage(error: typer.TyperException) -> str:
    """What is wrong with the command line, and where it says how to mend it."""
    message = error.format_message().replace("Value error, ", "").strip().rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{message}; see `{context.command_path} --help`" if message and context else message
