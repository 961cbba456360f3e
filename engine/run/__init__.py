"""A run on disk, phase by phase; all of it resumes.

May import: `training` and below. Open `phases.py` first: supervise, generate, distill, audit, advance. `directory.py`
says which file lies where, `open.py` starts or resumes a run.
"""
