"""Options that several commands share, so that they have the same name, help text and meaning everywhere."""

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from sector.cli._streams import printable
from sector.engine.api import settings as _settings
from sector.engine.config import (
    COMPRESSION,
    LEAST_TEMPERATURE,
    MAX_K,
    MAX_TEMPERATURE,
    MOST,
    PART_ROWS,
    Compression,
    FilterName,
    PolicyName,
    Preset,
)
from sector.engine.errors import InputError
from sector.engine.tasks import TASK_DOOR, built_in, is_task, no_such_task

# The defaults of a run, shown in the help of options that default to None.
DEFAULTS = _settings.DEFAULTS
DEFAULT_FILTER: FilterName = "strict"
# Filter of `RunConfig`; `test_options.py` compares them.
DEFAULT_RUN_FILTER: FilterName = "thorough"


class TrackerName(StrEnum):
    """Experiment trackers that a run can log to. An enumeration, because Typer rejects a list of literals."""

    WANDB = "wandb"
    TRACKIO = "trackio"


def option(metavar: str, text: str, *names: str, **settings: Any) -> object:
    """Return a Typer option with a value."""
    return typer.Option(*names, metavar=metavar, help=text, **settings)


def number(metavar: str, text: str, least: float, most: float, *names: str, **settings: Any) -> object:
    """Return a Typer option for a number from `least` to `most`.

    Not by typer's `min` and `max`: on a help screen these ranges would take the room of the meanings.
    """

    def check(value: float | None) -> float | None:
        # A comparison with NaN is false.
        if value is not None and not least <= value <= most:
            raise typer.BadParameter(f"{value} is out of range; it takes {least} to {most}")
        return value

    return option(metavar, text, *names, callback=check, **settings)


def flag(name: str, text: str) -> object:
    """Return a Typer option for a switch without a value; an empty metavar hides its type from the help screen."""
    return option("", text, name)


def _check_temperature(temperature: float) -> float:
    if temperature != 0 and not LEAST_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise typer.BadParameter(
            f"{temperature:g} is out of range; it takes 0 (greedy), or {LEAST_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"
        )
    return temperature


# Options that exist twice: with a default, and for commands that start or resume a run. In the latter
# None means that the config file or the run directory decides.
_seed = partial(number, "N", "Random seed.", 0, _settings.MAX_SEED, "--seed")
_engine = partial(
    option,
    "NAME",
    "Engine: sector's own (native), transformers (hf), vLLM (vllm), or yours as FILE.py:NAME.",
    "--engine",
)
_filter = partial(
    option,
    "NAME",
    f"Checks that an answer must pass, from loose to strict: {', '.join(get_args(FilterName))}.",
    "--filter",
)

Seed = Annotated[int, _seed()]
RunSeed = Annotated[int | None, _seed(show_default=str(DEFAULTS.seed))]
EngineOption = Annotated[str, _engine(callback=_settings.chosen_engine)]
RunEngine = Annotated[str | None, _engine(show_default=DEFAULTS.engine)]
FilterOption = Annotated[FilterName, _filter()]
RunFilter = Annotated[FilterName | None, _filter(show_default=DEFAULT_RUN_FILTER)]
VllmSettings = Annotated[
    list[str] | None,
    option("KEY=VALUE", "Change a setting of the vllm engine, as in vllm.max_digits=40. Repeatable.", "--set"),
]
RunSettings = Annotated[
    list[str] | None,
    option(
        "KEY=VALUE", "Change a setting, as in round.candidates=200; `sector config` lists them. Repeatable.", "--set"
    ),
]

Json = Annotated[bool, flag("--json", "Print JSON on stdout, and messages on stderr.")]
MODEL_HELP = "Checkpoint directory, run directory to use its best checkpoint, or shipped weights, such as addition."
Model = Annotated[Path, option("DIR", MODEL_HELP)]
Digits = Annotated[int, number("N", "Digits per operand.", 1, MOST)]
_policy = partial(
    option,
    "NAME",
    "Way to answer. fast: directly. slow: by chain of thought. improved: by votes and checks.",
    "--policy",
)
PolicyOption = Annotated[PolicyName, _policy()]
SolvePolicy = Annotated[PolicyName | None, _policy(show_default="fast, or improved with --show")]
K = Annotated[
    int, number("K", f"Simplifications per problem in a vote, with a guess after each: 1 to {MAX_K}.", 1, MAX_K, "--k")
]
Temperature = Annotated[
    float,
    option(
        "T",
        f"Sampling temperature: 0 (greedy), or {LEAST_TEMPERATURE:g} to {MAX_TEMPERATURE:g}.",
        callback=_check_temperature,
    ),
]
HardShare = Annotated[float, number("X", "Share of problems with a long carry or a short operand: 0 to 1.", 0, 1)]
Workers = Annotated[
    int | None,
    number(
        "N",
        "Generate with N workers, each on a thread or GPU, here or on the Ray cluster at RAY_ADDRESS.",
        1,
        1024,
        "--workers",
        show_default="in this process",
    ),
]
PartRows = Annotated[
    int | None,
    number("N", "Candidates of each part of a folder: a multiple of 250.", 1, MOST, show_default=str(PART_ROWS)),
]
PartCompression = Annotated[
    Compression | None,
    option("NAME", "Compression of the parts of a folder: none, snappy, gzip, zstd.", show_default=COMPRESSION),
]
Gym = Annotated[
    str | None, option("NAME", "Use problems of this arithmetic generator of Reasoning Gym instead, such as chain_sum.")
]
GymSettings = Annotated[
    list[str] | None,
    option("KEY=VALUE", "Change a setting of the generator, as in max_terms=2. Repeatable.", "--gym-set"),
]
# Not paths, which would take an address such as s3://bucket/nine for one.
Data = Annotated[list[str], option("FILE|DIR", "Parquet file or folder of examples to train on. Repeatable.")]
Replay = Annotated[
    list[str] | None, option("FILE|DIR", "Parquet file or folder of earlier examples to replay. Repeatable.")
]

RunPreset = Annotated[
    Preset | None,
    option(
        "NAME",
        "New model: tiny or base, or an ordinary transformer on text: text-tiny or text-base.",
        "--preset",
        show_default=DEFAULTS.preset,
    ),
]


RunTask = Annotated[
    str | None,
    option(
        "NAME",
        f"Kind of problem to learn: {', '.join(built_in())}, or your own as FILE.py:NAME or MODULE:NAME.",
        "--task",
        callback=TASK_DOOR.named,
        show_default=DEFAULTS.task,
    ),
]


def _known_task(value: str | None) -> str | None:
    """Return the name of the task that a user means, and load it. Raise InputError if there is none."""
    name: str | None = TASK_DOOR.named(value)
    if name is not None and not is_task(name):
        raise InputError(no_such_task(name))
    return name


ModelTask = Annotated[
    str | None,
    option("FILE.py:NAME", "Load your own task, which the model has learned.", "--task", callback=_known_task),
]
Track = Annotated[
    list[TrackerName] | None,
    option("NAME", f"Log to {' or '.join(TrackerName)}, besides TensorBoard. Repeatable.", "--track"),
]
Pretrained = Annotated[
    Path | None,
    option("PATH", "Start from a pretrained language model: a Hugging Face directory, or a GGUF file.", "--pretrained"),
]
Config = Annotated[
    Path | None, option("FILE.toml", "Read settings from this file; options on the command line win.", "--config")
]


def task_words(name: str) -> list[str]:
    """Return the option by which a command loads a task of the user; none for a task that is installed."""
    origin = TASK_DOOR.origin_of(name)
    return ["--task", printable(origin.reference)] if origin and not origin.installed else []
