"""The science in nine rooms, from the bottom up; each imports only itself and the rooms below it.

language (problems as tokens), tasks (problems, their truth, and each task's checks), models (weights), samplers
(engines), policy (thinking and checking), training (examples to weights), run (phases and files), report (results),
api (all of it as functions for programs).
Beside them: `selfplay.py`, the loop, and `config.py`, `errors.py`, `files.py`, `seeding.py`, `shares.py`,
`spans.py` and `threads.py`, which all rooms may use.
"""
