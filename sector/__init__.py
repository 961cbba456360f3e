"""SECToR: a language model that teaches itself to add (Zhang and Parkes 2023, arXiv 2309.08589).

`import sector` registers the model, its config and its tokenizer with the Auto classes of transformers. The names in
`__all__` are the public surface; each is imported when it is first used.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sector.engine.errors import InputError
    from sector.engine.language.operands import Problems
    from sector.engine.models.checkpoint import load_checkpoint, save_checkpoint
    from sector.engine.models.sector import SectorConfig, SectorForCausalLM, new_model
    from sector.engine.models.tokenizer import SectorTokenizer

__all__ = [
    "InputError",
    "Problems",
    "SectorConfig",
    "SectorForCausalLM",
    "SectorTokenizer",
    "load_checkpoint",
    "new_model",
    "save_checkpoint",
]

__version__ = "0.1.0"

_HOMES = {
    "InputError": "errors",
    "Problems": "language.operands",
    "SectorConfig": "models.sector",
    "SectorForCausalLM": "models.sector",
    "SectorTokenizer": "models.tokenizer",
    "load_checkpoint": "models.checkpoint",
    "new_model": "models.sector",
    "save_checkpoint": "models.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"sector.engine.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# The modules of the model and the tokenizer register themselves. Loading transformers takes seconds, so our own console
# script leaves it to the command that needs it, and `sector --help` stays fast.
if Path(*sys.argv[:1]).stem != "sector":
    import_module("sector.engine.models.tokenizer")
