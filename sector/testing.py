"""Tests of your own parts, for your own test suite: `check_task`, `check_engine`."""

from sector.engine.samplers.conformance import check_engine
from sector.engine.testing.promise import BrokenPromise
from sector.engine.testing.task import check_task

__all__ = ["BrokenPromise", "check_engine", "check_task"]
