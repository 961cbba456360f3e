"""A run on disk, phase by phase, and all that may be resumed.

May import: `training` and below. Open `phases.py` first: supervise, generate, distill, audit, advance; `directory.py`
says which file lies where.
"""
