"""Tests of parts from outside: `sector.testing`.

May import: `api` and below. Open `task.py` first: the promises of a task to the loop, and their test. `knowing.py` is
an engine without a model that knows the truth of a task.
"""
