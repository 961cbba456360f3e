"""Classes of transformers that vLLM changes for its compiler, given back to the trainer in the same process.

For an architecture of which it has no implementation, vLLM runs that of transformers, and adds a base, `__init__` and
`__call__` to the class of the decoder. Every other model of that class would then ask for vLLM's settings. So the
engine's decoder gets a class of its own, with what vLLM has added, and the class of transformers is as it was.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel


class OwnClasses:
    """The classes of a network's models as they were, and the classes that an engine gets in their place."""

    def __init__(self, network: nn.Module) -> None:
        classes = {type(module) for module in network.modules() if isinstance(module, PreTrainedModel)}
        self._before = {each: (each.__bases__, dict(vars(each))) for each in classes}
        self._of_engine: dict[type, type] = {}

    def give_back(self) -> None:
        """Undo the changes of vLLM since then, and keep them for the engine's own classes."""
        for each, (bases, attributes) in self._before.items():
            if each.__bases__ == bases:
                continue
            added = [base for base in each.__bases__ if base not in bases]
            changed = {name: value for name, value in vars(each).items() if attributes.get(name) is not value}
            each.__bases__ = bases
            for name in changed:
                if name in attributes:
                    setattr(each, name, attributes[name])
                else:
                    delattr(each, name)
            self._of_engine[each] = type(each.__name__, (each, *added), changed)

    def apply(self, worker: Any) -> None:
        """Give the models of a worker of vLLM their own classes, after the block of `own_classes`."""
        for module in worker.get_model().modules():
            module.__class__ = self._of_engine.get(type(module), type(module))


@contextmanager
def own_classes(network: nn.Module) -> Iterator[OwnClasses]:
    """Give the classes of a network back at the end, whether or not vLLM has started; then the engine gets its own."""
    classes = OwnClasses(network)
    try:
        yield classes
    finally:
        classes.give_back()
