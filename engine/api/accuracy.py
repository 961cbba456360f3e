"""Accuracy by length: `sector.evaluate`."""

import os
from collections.abc import Iterable
from pathlib import Path

from sector.engine.api.answers import check_policy
from sector.engine.api.choice import ModelLike, opened
from sector.engine.api.settings import check_numbers, chosen_engine, filter_settings, lengths_of
from sector.engine.config import Filter, PolicyName, Values
from sector.engine.report.evaluate import Report, evaluate_model
from sector.engine.run.steps import OnProgress, no_progress


def evaluate(
    model: ModelLike = None,
    digits: str | int | Iterable[int] = "1-29",
    samples: int = 1000,
    policy: PolicyName = "fast",
    *,
    suite: bool = True,
    out: str | os.PathLike[str] | None = None,
    engine: str = "native",
    filter: str | Filter | Values = "strict",
    k: int | None = None,
    settings: Values | None = None,
    seed: int = 0,
    on_progress: OnProgress = no_progress,
) -> Report:
    """Measure exact-match accuracy by length against true answers, with Wilson 95 % intervals.

    model: as in `load`.
    digits: lengths, as `1-29`, `3,5,8-10`, 7 or [3, 5, 8].
    samples: problems per length, and per family of hard problems.
    policy: `fast`, `slow` or `improved`.
    suite: whether to test families of hard problems too.
    out: folder for a picture and a JSON record; by default the plots of a run, and none for a bare checkpoint.
    engine: engine that generates: a name, FILE.py:NAME or MODULE:NAME.
    filter: checks of the improved policy, by name, as a `Filter`, or as a table of settings.
    k: guesses of a vote; by default that of the filter.
    settings: settings of the engine vllm, nested as in a config file.
    seed: seed of the problems.
    on_progress: called with the scores done, their total, and a note.

    Raise InputError if an argument is out of range or the model cannot be read.
    """
    check_numbers(seed, samples=samples)
    return evaluate_model(
        opened(model), lengths_of(digits), samples, policy=check_policy(policy), suite=suite,
        out=None if out is None else Path(out), engine=chosen_engine(engine), settings=filter_settings(filter, k),
        seed=seed, on_progress=on_progress, engine_settings=settings,
    )  # fmt: skip
