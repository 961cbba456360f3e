"""Values of options: lists of lengths, and names of engines, policies, filters and presets."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, get_args

import pytest
import typer
from scripted import Scripted
from small_model import small_model

from sector.cli._options import DEFAULT_FILTER, DEFAULT_RUN_FILTER
from sector.cli.app import app
from sector.engine.api.settings import lengths_of
from sector.engine.config import (
    ENGINES,
    FILTERS,
    SCHEDULES,
    Filter,
    FilterName,
    PolicyName,
    Preset,
    RunConfig,
    Schedule,
)
from sector.engine.errors import InputError
from sector.engine.models.ordinary import TEXT_PRESETS
from sector.engine.models.sector_config import PRESETS
from sector.engine.policy.solve import solve
from sector.engine.policy.solver import Solver
from sector.engine.samplers import make_sampler
from sector.engine.tasks.addition import TASK as ADDITION


@pytest.mark.parametrize(
    ("text", "lengths"),
    [("7", [7]), ("1-4", [1, 2, 3, 4]), ("3,5,8-10", [3, 5, 8, 9, 10]), (" 2 , 2-3", [2, 3])],
    ids=str,
)
def test_lengths(text: str, lengths: list[int]) -> None:
    assert lengths_of(text) == lengths


@pytest.mark.parametrize(
    "text", ["", "-", "1-", "-1", "a", "3-2", "1,,2", "1--2", "9" * 5000], ids=lambda text: text[:6]
)
def test_no_lengths(text: str) -> None:
    with pytest.raises(InputError):
        lengths_of(text)


@pytest.mark.parametrize(
    ("names", "table"),
    [(FilterName, FILTERS), (Preset, {**PRESETS, **TEXT_PRESETS}), (Schedule, SCHEDULES)],
    ids=["filter", "preset", "schedule"],
)
def test_choices_are_the_names_of_their_table(names: object, table: dict[str, object]) -> None:
    assert sorted(get_args(names)) == sorted(table)


def test_default_filters_are_those_of_the_settings() -> None:
    assert FILTERS[DEFAULT_FILTER] == Filter()
    assert FILTERS[DEFAULT_RUN_FILTER] == RunConfig().filter


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_every_engine_of_the_choices_is_made(engine: str) -> None:
    if engine != "vllm":
        assert make_sampler(engine, small_model()).weights_sha256
    elif find_spec("vllm"):
        pytest.skip("test_vllm.py makes this engine")
    else:
        with pytest.raises(InputError, match="vllm"):
            make_sampler(engine, small_model())


def test_an_engine_that_is_not_among_the_choices_is_refused() -> None:
    with pytest.raises(InputError, match="unknown engine 'tpu'; choose one of native, hf, vllm"):
        make_sampler("tpu", small_model())


@pytest.mark.parametrize("policy", get_args(PolicyName), ids=str)
def test_every_policy_of_the_choices_solves(policy: str) -> None:
    solver = Solver(Scripted(), ADDITION.layout("msd"), policy, Filter())
    (solution,) = solve(solver, ADDITION, ["12+34"])
    assert solution.answer == "46"


def _leaves(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _leaves(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


def test_every_command_that_opens_a_model_or_a_run_can_load_a_task_of_the_user() -> None:
    opens = {"model", "data", "run", "runs", "out", "grid_file"}
    without = [
        name
        for name, command in _leaves(typer.main.get_command(app))
        if opens & {parameter.name for parameter in command.params}
        and "task" not in {parameter.name for parameter in command.params}
    ]
    # It writes a file, and opens none.
    assert without == ["task new"]
