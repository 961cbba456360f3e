"""A run on disk, phase by phase; every phase can be resumed.

May import: `training` and below. Open `phases.py` first: supervise, generate, distill, audit, advance, and how a
run resumes. `directory.py` lists the files of a run, `records.py` declares the records, `metrics.py` fills in those of
a phase, `audit.py` counts wrong labels, `events.py` declares the events of a run.
"""
