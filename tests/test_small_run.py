"""The processes of a run, as benchmarks and tests find them."""

import subprocess
import sys
import time
from collections.abc import Callable

from small_run import workers_of

from sector.benchmarks.soak import held


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


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
