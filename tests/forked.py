"""`sector` in processes that start at once: they are forked from a process that has imported all modules.

To import torch and the rest takes seconds per process. A forked process has its own id, pipes, signals and exit code,
like any other. `test_cli.py` and `test_data_parallel.py` show that the installed script starts without a fork.
"""

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import IO, Any

from sector.cli import app

# Processes, pipes and the server that forks.
FORKS = multiprocessing.get_context("forkserver")
# What a run imports on its way.
FORKS.set_forkserver_preload(
    [
        "sector.cli.run",
        "sector.cli._follow",
        "sector.engine.run.followers",
        "sector.engine.run.plots",
        "sector.engine.run.open",
        "sector.engine.selfplay",
        "sector.engine.report.trackers",
        "sector.engine.tasks.addition",
    ]
)


@dataclass(slots=True)
class Forked:
    """Process that runs a command, and its output line by line."""

    process: Any
    stdout: IO[str]
    stderr: IO[str]

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        self.process.kill()

    def terminate(self) -> None:
        self.process.terminate()

    @property
    def returncode(self) -> int | None:
        """As of `subprocess.Popen`: minus the signal, if one ended it; None as long as it runs."""
        return self.process.exitcode


@contextmanager
def forked(
    *words: object, environment: Mapping[str, str] | None = None, limits: Mapping[int, int] | None = None
) -> Iterator[Forked]:
    """`sector WORDS`, under way until the end of the `with`, which waits for it.

    environment: variables over those of this process. limits: of resources, by their number in `resource`.
    """
    pipes = [FORKS.Pipe(duplex=False) for _ in range(2)]
    ends = [end for _, end in pipes]
    arguments = ([str(word) for word in words], {**os.environ, **(environment or {})}, dict(limits or {}), *ends)
    process = FORKS.Process(target=_command, args=arguments)
    process.start()
    for end in ends:
        end.close()
    out, err = (os.fdopen(os.dup(read.fileno()), encoding="utf-8") for read, _ in pipes)
    for read, _ in pipes:
        read.close()
    with out, err:
        try:
            yield Forked(process, out, err)
        except BaseException:
            process.kill()
            raise
        finally:
            process.join()


def _command(
    words: list[str], environment: dict[str, str], limits: dict[int, int], out: Connection, err: Connection
) -> None:
    """The console script with its streams, in the process that was forked for it."""
    os.environ.clear()
    os.environ.update(environment)
    for number, most in limits.items():
        resource.setrlimit(number, (most, most))
    for end, stream in ((out, 1), (err, 2)):
        os.dup2(end.fileno(), stream)
        end.close()
    # Those of the server remember the files that they were opened on.
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", encoding="utf-8", closefd=False) for stream in (1, 2))
    sys.argv = ["sector", *words]
    # The server of forks ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    app.main()
