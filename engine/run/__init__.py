"""A run on disk, phase by phase, and data sets in parts; all of it can be resumed.

May import: `training` and below. Open `phases.py` first: supervise, generate, distill, audit, advance, and how a run
resumes. `directory.py` lists the files of a run, `records.py` declares them, `metrics.py` fills in those of a phase,
`audit.py` counts wrong labels. `generate_folder.py` makes a data set, `part_folder.py` lists its files.
"""
