"""A run on disk, phase by phase; every phase can be resumed.

May import: `training` and below. Open `phases.py` first: supervise, generate, distill, audit, advance. `directory.py`
lists the files of a run, `open.py` starts or resumes one, and `events.py` lists the events that a run yields.
"""
