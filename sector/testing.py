"""Tests of your own parts, for your own test suite: `check_task`."""

from sector.engine.testing.task import BrokenPromise, check_task

__all__ = ["BrokenPromise", "check_task"]
