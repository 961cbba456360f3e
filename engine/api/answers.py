"""Answers to problems: `sector.solve`."""

from typing import get_args, overload

from sector.engine.api.choice import ModelLike, opened
from sector.engine.api.settings import chosen_engine, filter_settings
from sector.engine.config import Filter, PolicyName, Values
from sector.engine.errors import InputError
from sector.engine.policy.solve import Solution
from sector.engine.policy.solve import solve as solve_texts
from sector.engine.policy.solver import Solver
from sector.engine.run.steps import open_engine


@overload
def solve(
    problem: str,
    model: ModelLike = None,
    policy: PolicyName | None = None,
    *,
    show: bool = True,
    engine: str = "native",
    filter: str | Filter | Values = "strict",
    k: int | None = None,
    settings: Values | None = None,
) -> Solution: ...


@overload
def solve(
    problem: list[str] | tuple[str, ...],
    model: ModelLike = None,
    policy: PolicyName | None = None,
    *,
    show: bool = True,
    engine: str = "native",
    filter: str | Filter | Values = "strict",
    k: int | None = None,
    settings: Values | None = None,
) -> list[Solution]: ...


def solve(
    problem: str | list[str] | tuple[str, ...],
    model: ModelLike = None,
    policy: PolicyName | None = None,
    *,
    show: bool = True,
    engine: str = "native",
    filter: str | Filter | Values = "strict",
    k: int | None = None,
    settings: Values | None = None,
) -> Solution | list[Solution]:
    """Return the answer to a problem with the thinking behind it; a list of them for several problems.

    problem: a text such as `123+456`, or several.
    model: as in `load`.
    policy: `fast`, `slow` or `improved`; by default improved with `show`, else fast.
    show: keep the thinking, in `Solution.thought`.
    engine: engine that generates: a name, FILE.py:NAME or MODULE:NAME.
    filter: checks of the improved policy, by name, as a `Filter`, or as a table of settings.
    k: guesses of a vote; by default that of the filter.
    settings: settings of the engine vllm, nested as in a config file.

    Raise InputError if a single problem cannot be read; among several, such a problem has an `error` instead.
    """
    texts = [problem] if isinstance(problem, str) else list(problem)
    name, checks = check_policy(policy or default_policy(show)), filter_settings(filter, k)
    sampler, task, layout = open_engine(opened(model, texts), chosen_engine(engine), settings)
    solutions = solve_texts(Solver(sampler, layout, name, checks), task, texts, show)
    if not isinstance(problem, str):
        return solutions
    if solutions[0].unread:
        raise InputError(str(solutions[0].error))
    return solutions[0]


def default_policy(show: bool) -> PolicyName:
    """Return the policy that solves if none is named: the one with most to show, or the fast one."""
    return "improved" if show else "fast"


def check_policy(name: str) -> str:
    """Return the name of a policy. Raise InputError if no policy has it."""
    if name not in get_args(PolicyName):
        raise InputError(f"unknown policy {name!r}; choose one of {', '.join(get_args(PolicyName))}")
    return name
