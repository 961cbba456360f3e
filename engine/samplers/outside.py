"""Engines of users, as `engine/outside.py` imports them: classes that are called with a model."""

from collections.abc import Callable
from inspect import signature
from typing import TypeGuard

from sector.engine.config import ENGINE_DOOR
from sector.engine.errors import InputError, first_line
from sector.engine.models.checkpoint import Model
from sector.engine.samplers.protocol import Sampler

# What every engine offers (`protocol.Sampler`). Others, such as `room`, are used if an engine offers them.
_OFFERED = ("name", "weights_sha256", "device", "uses_all_cores", "load", "sample")


def load_engine(reference: str) -> Callable[..., Sampler]:
    """Import the code that a user names, and register the engine in it. Raise InputError if it holds no engine.

    reference: `FILE.py:NAME` or `MODULE:NAME`, where NAME is a class of engines.
    """
    engine: Callable[..., Sampler] = ENGINE_DOOR.load(reference)
    return engine


def thing_of(member: object) -> type | None:
    """Return the class of engines that a member of a module is; None if it is something else."""
    return member if offers(member) else None


def offers(member: object) -> TypeGuard[type]:
    """Return whether a member of a module is a class of engines."""
    return isinstance(member, type) and all(callable(getattr(member, name, None)) for name in ("load", "sample"))


def made(name: str, engine: Callable[..., Sampler], model: Model, num_threads: int | None) -> Sampler:
    """Return a user's engine with the weights of a model. Raise InputError if it cannot be made, or is incomplete.

    name: name of the engine.
    engine: its class.
    num_threads: threads that it may use, if its class has this argument.
    """
    try:
        takes_threads = "num_threads" in signature(engine).parameters
        sampler = engine(model, num_threads=num_threads) if takes_threads else engine(model)
    except InputError:
        raise
    # The code is the user's, and may fail in any way.
    except Exception as error:
        raise InputError(
            f"the engine {name} cannot be made of this model ({type(error).__name__}: {first_line(error)})"
        ) from error
    if missing := [member for member in _OFFERED if not hasattr(sampler, member)]:
        raise InputError(f"the engine {name} has no {', '.join(missing)}; sector.testing.check_engine tests an engine")
    return sampler
