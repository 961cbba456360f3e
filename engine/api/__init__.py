"""The loop and its parts for programs: `sector.run`, `sector.solve` and the other functions of `import sector`.

May import: `report` and below. Open `loop.py` first: a run as an iterator of events. `answers.py` solves, `labels.py`
generates, `accuracy.py` evaluates, `hub.py` exports; `choice.py` chooses a model, `settings.py` reads settings.
"""
