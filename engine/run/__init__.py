"""A run on disk, phase by phase; every phase can be resumed.

May import: `training` and below. Open `phases.py` first: supervise, generate, distill, audit, advance. `directory.py`
lists the files of a run, `records.py` declares metrics and other records, `events.py` the events of a run.
"""
