"""The science in ten rooms, from the bottom up; each imports only itself and the rooms below it.

language (problems as tokens), tasks (problems, their truth, and each task's checks), models (weights), samplers
(engines), policy (thinking and checking), training (examples to weights), run (phases and files), report (results),
api (all of it as functions for programs), testing (promises of parts from outside, and their test).
Beside them: `selfplay.py`, the loop, and `config/` (settings), `errors.py`, `files.py`, `outside.py` (code of users),
`seeding.py`, `shares.py`, `spans.py` and `threads.py`, which all rooms may use.

Where to find:
a check, such as commutativity: the module of its task (`tasks/addition.py`); `policy/improve.py` runs the checks.
a rejected candidate: `policy/improve.py` decides on it, `policy/think_through.py` solves it again.
a new field of the metrics: `run/metrics.py`.
the count of wrong labels: `run/audit.py`.
a batch of training: `training/batches.py` draws its examples, `training/place_rows.py` writes them as tokens.
the learning rate: `training/distill.py` (schedule) and `config/trainer.py` (peaks).
the place where a run resumes: `run/phases.py`; the comparison with its earlier settings: `run/open.py`.
the reasons why a run ends early: `errors.py`, at `NoAgreement`; a full disk: `files.py`.
the teacher of a round: `run/teacher.py`; the leap to the next round: `run/goals.py`.
accuracy.png: `run/plots.py`; the charts of the HTML page: `report/charts.py`; Wilson intervals: `shares.py`.
the weights of a Ray worker: `policy/workers.py` sends them, `policy/worker.py` loads and proves them.
"""
