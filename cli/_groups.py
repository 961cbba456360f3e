"""Groups of options that several commands share, each as one parameter of a command."""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Any, TypedDict

from sector.cli import _options as options
from sector.engine.api.settings import chosen_settings
from sector.engine.config import Values, parse_settings


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Model that a command uses, and the task that it must have learned."""

    model: options.Model
    task: options.ModelTask = None

    def checked(self) -> Path:
        """Return the model. Raise InputError if it has learned another task than a user names."""
        # Here, since the import loads torch, which `--isa` must come before.
        from sector.engine.api.choice import check_task

        check_task(self.model, self.task)
        return self.model


class EngineArguments(TypedDict):
    """Arguments of the functions of `engine/api` that generate tokens."""

    engine: str
    filter: str
    k: int
    settings: Values


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Engine that generates tokens, and the filter of the improved policy."""

    engine: options.EngineOption = "native"
    filter_name: options.FilterOption = options.DEFAULT_FILTER
    k: options.K = options.DEFAULTS.filter.k
    settings: options.VllmSettings = None

    @property
    def arguments(self) -> EngineArguments:
        """Options as arguments; settings are nested."""
        settings = parse_settings(self.settings or ())
        return EngineArguments(engine=self.engine, filter=self.filter_name, k=self.k, settings=settings)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Settings of a run."""

    task: options.RunTask = None
    preset: options.RunPreset = None
    pretrained: options.Pretrained = None
    seed: options.RunSeed = None
    engine: options.RunEngine = None
    filter_name: options.RunFilter = None
    config: options.Config = None
    settings: options.RunSettings = None
    track: options.Track = None

    def chosen(self, until: int | None = None) -> tuple[Values, str]:
        """Return the settings, nested, and their origin for messages, as `chosen_settings` does."""
        return chosen_settings(
            self.config, self.settings or (), self.filter_name, self.pretrained,
            until=until, task=self.task, preset=self.preset, seed=self.seed, engine=self.engine,
        )  # fmt: skip


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose groups are laid out as options, since Typer reads options from the signature."""
    annotations = command.__annotations__.items()
    groups = {name: kind for name, kind in annotations if isinstance(kind, type) and is_dataclass(kind)}
    spread: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        spread += signature(groups[name]).parameters.values() if name in groups else [parameter]

    @wraps(command)
    def laid_out(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    keywords = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in spread]
    laid_out.__signature__ = Signature(keywords)  # type: ignore[attr-defined]
    return laid_out
