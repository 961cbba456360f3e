"""Values that settings take: base class, ranges of numbers, validation of nested tables."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, TypeVar

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo

from sector.engine.errors import InputError

MAX_DIGITS = 256
# Largest number of problems or steps: beyond the reach of any machine, and small enough for every counter.
MOST = 1_000_000_000
# Nested settings by key, as in TOML and JSON. `validated` checks their types.
Values = Mapping[str, object]

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1, le=MOST)]
CountOrNone = Annotated[int, Field(ge=0, le=MOST)]
# Below this range of learning rates nothing is learned; above it the first step gives NaN.
Rate = Annotated[float, Field(ge=1e-8, le=10.0)]
# A decay of 1 would never forget, and its bias correction would divide by zero.
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


def as_tuple(values: object) -> object:
    """Turn a list into a tuple, since TOML and JSON have only lists."""
    return tuple(values) if isinstance(values, list) else values


def is_recorded(info: ValidationInfo) -> bool:
    """Return whether settings are read from a run (`run_config`)."""
    return bool(info.context and info.context["is_recorded"])


class Settings(BaseModel):
    """Base of all settings: frozen, strict about types; an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


Model = TypeVar("Model", bound=Settings)

# Names that pydantic gives to errors of range.
_OUT_OF_RANGE = (
    "finite_number", "greater_than", "greater_than_equal", "less_than", "less_than_equal"
)  # fmt: skip


def validated(settings: type[Model], values: Values, source: str, is_recorded: bool = False) -> Model:
    """Validate nested dicts as settings of a class. Arguments and errors are those of `run_config`."""
    try:
        return settings.model_validate(values, context={"is_recorded": is_recorded})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        known = "; `sector config` lists all settings" if first["type"] == "extra_forbidden" else ""
        message = "unknown key" if known else first["msg"].removeprefix("Value error, ")
        if first["type"] in _OUT_OF_RANGE:
            message += f"; it takes {_range_of(settings, first['loc'])}"
        raise InputError(f"{source}: {key + ': ' if key else ''}{message}{known}") from error


def _range_of(settings: type[Settings], key: Sequence[int | str]) -> str:
    """Return the range of a number setting in words."""
    field, kind = settings.model_fields[str(key[0])], settings
    for part in key[1:]:
        kind = field.annotation  # type: ignore[assignment]  # settings, since a key follows
        field = kind.model_fields[str(part)]
    bounds = {type(bound): bound for bound in field.metadata}
    first, last = bounds.get(Ge), bounds.get(Le)
    least = first.ge if isinstance(first, Ge) else bounds[Gt].gt
    most = last.le if isinstance(last, Le) else bounds[Lt].lt
    return f"{_plain(least)} to {'' if last else 'below '}{_plain(most)}"


def _plain(number: object) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)


def merged(base: Values, over: Values) -> dict[str, object]:
    """Merge nested settings; those of `over` win."""
    both = {
        key: merged(earlier, value) if isinstance(value, dict) and isinstance(earlier := base.get(key), dict) else value
        for key, value in over.items()
    }
    return {**base, **both}


def flat(settings: Values, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield nested settings as pairs of dotted key and value."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
