"""Tests of parts from outside: `sector.testing`.

May import: `api` and below. Open `task.py` first: the test of a task; `promises.py` holds its promises, and
`knowing.py` an engine without a model that knows the truth.
"""
