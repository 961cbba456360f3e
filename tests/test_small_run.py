"""The processes of a run, as benchmarks and tests find them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable

from sector.benchmarks.small_run import ranks_of, workers_of
from sector.benchmarks.soak import held

# A shell that starts two processes, of which each starts another: all of one rank have its environment.
RANKS = """
import os, subprocess, sys, time
inner = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import sys; sys.stdin.read()'])"
children = [
    subprocess.Popen([sys.executable, "-c", inner], env={**os.environ, "RANK": str(rank)}, stdin=subprocess.PIPE)
    for rank in range(2)
]
print(*(child.pid for child in children), flush=True)
sys.stdin.read()
"""


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


def test_ranks_are_the_parents_of_all_processes_with_their_environment() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    command = [sys.executable, "-c", RANKS]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        first, second = map(int, process.stdout.readline().split())
        wait_for(lambda: len(ranks_of(process.pid)) == 2)
        assert ranks_of(process.pid) == {0: first, 1: second}
        assert workers_of(process.pid) == []
        process.stdin.close()


def test_workers_are_known_by_the_title_that_ray_gives_them() -> None:
    code = "import subprocess; subprocess.run(['ray::Worker.solve', '-c', 'read line'], executable='/bin/sh')"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        wait_for(lambda: len(workers_of(process.pid)) == 1)
        assert workers_of(process.pid) != [process.pid]
        process.stdin.close()


def test_a_process_holds_memory_files_and_threads() -> None:
    before = held()
    with open(__file__, "rb"):
        during = held()
    assert before["bytes"] > 1 << 20 and before["threads"] >= 1
    assert during["files"] == before["files"] + 1
