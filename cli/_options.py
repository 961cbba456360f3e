"""Options that commands share, so that they read and mean the same everywhere."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from sector.engine.config import FILTERS, LEAST_TEMPERATURE, MAX_K, MAX_TEMPERATURE, Filter, RunConfig
from sector.engine.errors import InputError
from sector.engine.tasks import task_names

Engine = Literal["native", "hf", "vllm"]
FilterName = Literal["paper", "strict", "thorough", "none"]
Policy = Literal["fast", "slow", "improved"]
Preset = Literal["tiny", "base"]


class Tracker(StrEnum):
    """Services that a run can tell what happens (an enumeration because Typer takes no list of literals)."""

    WANDB = "wandb"
    TRACKIO = "trackio"


# Shown as defaults where an option left out means "whatever the run says".
DEFAULTS = RunConfig()
DEFAULT_FILTER: FilterName = "strict"

# What a seed is written down as.
_MAX_SEED = 2**63 - 1


def _temperature(value: float) -> float:
    if 0 < value < LEAST_TEMPERATURE:
        raise typer.BadParameter(
            f"{value:g} is no temperature; give 0, or one from {LEAST_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"
        )
    return value


Json = Annotated[bool, typer.Option("--json", help="For machines: data on stdout, talk on stderr.")]
Seed = Annotated[int, typer.Option(min=0, max=_MAX_SEED, metavar="N", help="Everything random follows from it.")]
Model = Annotated[
    Path,
    typer.Option(metavar="DIR", help="Checkpoint, or run directory: then its best checkpoint.", show_default=False),
]
Digits = Annotated[int, typer.Option(min=1, metavar="N", help="Digits per operand.", show_default=False)]
EngineOption = Annotated[Engine, typer.Option("--engine", help="The engine that generates.")]
FilterOption = Annotated[
    FilterName, typer.Option("--filter", help="What must agree before the improved policy believes.")
]
PolicyOption = Annotated[
    Policy,
    typer.Option(
        "--policy",
        help="fast: at once. slow: by chain of thought. improved: both, where they agree.",
    ),
]
K = Annotated[
    int,
    typer.Option(
        "--k", min=1, max=MAX_K, metavar="K", help="Simplifications and guesses a problem, for the improved policy."
    ),
]
Temperature = Annotated[
    float,
    typer.Option(
        min=0,
        max=MAX_TEMPERATURE,
        callback=_temperature,
        metavar="T",
        help=f"Temperature of sampling: 0 is greedy, else from {LEAST_TEMPERATURE:g} on.",
    ),
]
HardShare = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        metavar="X",
        help="Share of carry chains and short operands among the problems.",
    ),
]

Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        max=1024,
        metavar="N",
        help="Engines side by side, a thread or GPU each, here or on the Ray cluster that RAY_ADDRESS names.",
        show_default="one, in this process",
    ),
]

# What a run takes; None means not asked for.
MaybeSeed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        min=0,
        max=_MAX_SEED,
        metavar="N",
        help="Everything random follows from it.",
        show_default=str(DEFAULTS.seed),
    ),
]
MaybePreset = Annotated[
    Preset | None, typer.Option("--preset", help="Size of the model.", show_default=DEFAULTS.preset)
]
MaybeTask = Annotated[
    str | None,
    typer.Option(
        "--task", metavar="NAME", help="What is learned: " + ", ".join(task_names()) + ".", show_default=DEFAULTS.task
    ),
]
MaybeEngine = Annotated[
    Engine | None, typer.Option("--engine", help="The engine that generates.", show_default=DEFAULTS.engine)
]
MaybeFilter = Annotated[
    FilterName | None,
    typer.Option("--filter", help="What must agree before an answer is believed.", show_default="thorough"),
]
Track = Annotated[
    list[Tracker] | None,
    typer.Option("--track", help="Tell a tracker too; may be given again. TensorBoard always is.", show_default=False),
]
MaybePretrained = Annotated[
    Path | None,
    typer.Option(
        "--pretrained",
        metavar="PATH",
        help="Start from this causal model: a directory in Hugging Face form, or a GGUF file.",
        show_default=False,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A setting, as vllm.max_digits=40; may be given again.", show_default=False
    ),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE.toml", help="Settings; options given here win.", show_default=False),
]


def parse_lengths(text: str) -> list[int]:
    """`1-29`, `7` or `3,5,8-10` -> lengths in that order. InputError says what is wrong."""
    lengths: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)) or len(part) > 9:
            raise InputError(f"--digits {text!r} is no list of lengths; write 7, 1-29 or 3,5,8-10")
        if int(last or first) < int(first):
            raise InputError(f"--digits {text!r} runs backwards; write the shorter length first")
        lengths += range(int(first), min(int(last or first), 1000) + 1)
    return list(dict.fromkeys(lengths))


def filter_config(name: FilterName, k: int, temperature: float = 0.0) -> Filter:
    """Settings of the improved policy from what a command takes."""
    return FILTERS[name].model_copy(update={"k": k, "temperature": temperature})
