"""A constant tensor, wherever it is asked for."""

from collections.abc import Callable

import torch
from torch import Tensor

_CPU = torch.device("cpu")


class Constant:
    """Holds a tensor on the CPU, and a copy on each device that asked for it: not to be written to.

    It is made at once, on the CPU whatever the default device. A copy that a tracer made is not kept: the tensors that
    `torch.export` traces with hold no values, and every later call would find them.
    """

    def __init__(self, make: Callable[[], Tensor]) -> None:
        with torch.inference_mode(False), _CPU:
            self._copies = {_CPU: make()}

    def on(self, device: torch.device | str) -> Tensor:
        """The constant on a device."""
        device = torch.device(device)
        if device in self._copies:
            return self._copies[device]
        with torch.inference_mode(False):
            copy = self._copies[_CPU].to(device)
        if type(copy) is Tensor:
            self._copies[device] = copy
        return copy
