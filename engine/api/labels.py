"""Labels that the model gives itself: `sector.generate`."""

import os
from pathlib import Path

from sector.engine.api.choice import ModelLike, opened
from sector.engine.api.settings import DEFAULTS, check_numbers, chosen_engine, filter_settings
from sector.engine.config import Filter, Values
from sector.engine.errors import InputError
from sector.engine.run.generate_file import generate_examples
from sector.engine.run.generate_folder import generate_folder
from sector.engine.run.labels import Labels
from sector.engine.run.part_folder import is_dataset
from sector.engine.run.request import Request
from sector.engine.run.steps import OnProgress, no_progress
from sector.engine.training.locations import LocationLike, is_address, location_of, name_of


def generate(
    model: ModelLike,
    digits: int,
    count: int,
    out: LocationLike | None = None,
    *,
    engine: str = "native",
    filter: str | Filter | Values = "strict",
    k: int | None = None,
    temperature: float | None = None,
    hard_share: float = DEFAULTS.hard_share,
    seed: int = 0,
    settings: Values | None = None,
    workers: int | None = None,
    part_rows: int | None = None,
    compression: str | None = None,
    on_progress: OnProgress = no_progress,
) -> Labels:
    """Try random problems with the improved policy; return the answers on which the model agrees with itself.

    No true answer is used.

    model: as in `load`.
    digits: digits per operand.
    count: problems to try.
    out: parquet file to write, with a preview beside it; None writes no file. A name with a slash at its end, or of a
        data set, is a folder of parts: a call with the same arguments goes on with it, and memory does not grow with
        `count`. It may be an address that fsspec reaches, as `s3://bucket/nine/`.
    engine: engine that generates: a name, FILE.py:NAME or MODULE:NAME.
    filter: checks that an answer must pass, by name, as a `Filter`, or as a table of settings.
    k: guesses of a vote; by default that of the filter.
    temperature: sampling temperature, 0 for greedy; by default that of the filter.
    hard_share: share of problems with a long carry or a short operand.
    seed: seed of the problems.
    settings: settings of the engine vllm, nested as in a config file.
    workers: processes that generate; None for this one.
    part_rows: candidates of each part of a folder, a multiple of 250; 2,000 by default.
    compression: compression of the parts of a folder: `none`, `snappy`, `gzip` or `zstd`, the default.
    on_progress: called with the problems tried, their total, and a note.

    Raise InputError if an argument is out of range or the model cannot be read.
    """
    check_numbers(seed, hard_share, count=count)
    request = Request(
        digits, count, chosen_engine(engine), filter_settings(filter, k, temperature), hard_share, seed, on_progress,
        settings, workers,
    )  # fmt: skip
    if out is not None and is_folder(out):
        return generate_folder(opened(model), location_of(out), request, part_rows, compression)
    if part_rows is not None or compression is not None:
        raise InputError("part_rows and compression are for a folder; end the name in --out with a slash")
    return generate_examples(opened(model), None if out is None else Path(name_of(out)), request)


def is_folder(out: LocationLike) -> bool:
    """Return whether a name is that of a folder: it ends with a slash, or a data set has it.

    Raise InputError for a single file in a store.
    """
    name = name_of(out)
    if name.endswith(("/", os.sep)) or is_dataset(location_of(out)):
        return True
    if is_address(name):
        raise InputError(f"{out} would be one file, which a call writes at its end; end it with a slash for a folder")
    return False
