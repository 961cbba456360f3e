"""Timing a function: enough calls, on all of torch's threads."""

import time

import torch

from sector.benchmarks.timing import timed


def test_a_long_call_is_timed_several_times_and_a_short_one_for_the_time_asked() -> None:
    """A sleep never ends early, so ten of them take at least ten times as long."""
    long = timed(lambda: time.sleep(0.01), 0.0)
    assert sum(long.raw_times) >= 0.1 and min(long.times) >= 0.01
    short = timed(lambda: None, 0.02)
    assert sum(short.raw_times) >= 0.02 and min(short.times) < 0.001


def test_operations_keep_their_threads() -> None:
    seen: set[int] = set()
    timed(lambda: seen.add(torch.get_num_threads()), 0.0)
    assert seen == {torch.get_num_threads()}
