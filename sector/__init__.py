"""SECToR: a language model that teaches itself to add (Zhang and Parkes 2023, arXiv 2309.08589).

After `import sector` the Auto classes of transformers know the model, its config and its tokenizer. The import is fast:
it loads neither torch nor transformers. The names in `__all__` are the public interface; each is imported at its first
use.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sector.engine.api.accuracy import evaluate
    from sector.engine.api.answers import solve
    from sector.engine.api.choice import load
    from sector.engine.api.gym import GymReport, evaluate_gym
    from sector.engine.api.hub import Export, export
    from sector.engine.api.labels import generate
    from sector.engine.api.loop import Run, run
    from sector.engine.errors import InputError, NoAgreement
    from sector.engine.language.operands import Problems
    from sector.engine.models.checkpoint import TrainedModel, load_checkpoint, save_checkpoint
    from sector.engine.models.sector import SectorForCausalLM, new_model
    from sector.engine.models.sector_config import SectorConfig
    from sector.engine.models.tokenizer import SectorTokenizer
    from sector.engine.policy.checks import load_check
    from sector.engine.policy.solve import Solution
    from sector.engine.report.evaluate import Report
    from sector.engine.run import events
    from sector.engine.run.labels import Labels
    from sector.engine.samplers.outside import load_engine
    from sector.engine.tasks.check import Check, Solve
    from sector.engine.tasks.declared import Declaration as Task
    from sector.engine.tasks.declared import check
    from sector.engine.tasks.outside import load_task
    from sector.engine.tasks.text_check import text_check

__all__ = [
    "Check",
    "Export",
    "GymReport",
    "InputError",
    "Labels",
    "NoAgreement",
    "Problems",
    "Report",
    "Run",
    "SectorConfig",
    "SectorForCausalLM",
    "SectorTokenizer",
    "Solution",
    "Solve",
    "Task",
    "TrainedModel",
    "check",
    "evaluate",
    "evaluate_gym",
    "events",
    "export",
    "generate",
    "load",
    "load_check",
    "load_checkpoint",
    "load_engine",
    "load_task",
    "new_model",
    "run",
    "save_checkpoint",
    "solve",
    "text_check",
]

__version__ = "0.1.0"

# Modules of the public names; after a colon the name there if it is another one, or nothing for the whole module.
_MODULES = {
    "Check": "tasks.check",
    "Export": "api.hub",
    "GymReport": "api.gym",
    "InputError": "errors",
    "Labels": "run.labels",
    "NoAgreement": "errors",
    "Problems": "language.operands",
    "Report": "report.evaluate",
    "Run": "api.loop",
    "SectorConfig": "models.sector_config",
    "SectorForCausalLM": "models.sector",
    "SectorTokenizer": "models.tokenizer",
    "Solution": "policy.solve",
    "Solve": "tasks.check",
    "Task": "tasks.declared:Declaration",
    "TrainedModel": "models.checkpoint",
    "check": "tasks.declared",
    "evaluate": "api.accuracy",
    "evaluate_gym": "api.gym",
    "events": "run.events:",
    "export": "api.hub",
    "generate": "api.labels",
    "load": "api.choice",
    "load_check": "policy.checks",
    "load_checkpoint": "models.checkpoint",
    "load_engine": "samplers.outside",
    "load_task": "tasks.outside",
    "new_model": "models.sector",
    "run": "api.loop",
    "save_checkpoint": "models.checkpoint",
    "solve": "api.answers",
    "text_check": "tasks.text_check",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, colon, member = _MODULES[name].partition(":")
    home = import_module(f"sector.engine.{module}")
    return home if colon and not member else getattr(home, member or name)


def __dir__() -> list[str]:
    """Return the names of this module, with public names that are not imported yet."""
    return sorted({*globals(), *__all__})


class _TransformersLoader(Loader):
    """Loader of transformers that registers our classes after it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Load transformers with its own loader, then register our classes with it."""
        spec = module.__spec__
        assert spec is not None
        spec.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        sys.meta_path.remove(_FINDER)
        _register()


class _TransformersFinder(MetaPathFinder):
    """Import hook that wraps the loader of transformers, and finds no other module."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of transformers from the other finders; None for any other name."""
        if name != "transformers":
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in others if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _TransformersLoader(spec.loader)
        return spec


_FINDER = _TransformersFinder()


def _register() -> None:
    """Register our classes with transformers' Auto classes, by importing the package that does so.

    The package may be under way, since it imports transformers itself. It then registers at its end, and this call does
    nothing. No package below it imports transformers, so it never meets a half-imported module.
    """
    if "sector.engine.models" not in sys.modules:
        import_module("sector.engine.models")


# Loading transformers takes seconds, so an import hook waits until the program imports it.
if "transformers" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _FINDER)
