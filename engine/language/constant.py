"""A constant tensor with a copy on each device that uses it."""

from collections.abc import Callable

import torch
from torch import Tensor

_CPU = torch.device("cpu")


class Constant:
    """Read-only tensor on the CPU, with cached copies on other devices.

    The tensor is made with the object, on the CPU and not on the default device. A copy that a tracer made is not
    cached: tensors traced by `torch.export` hold no values, and every later call would get them.
    """

    def __init__(self, make: Callable[[], Tensor]) -> None:
        with torch.inference_mode(False), _CPU:
            self._copies = {_CPU: make()}

    def on(self, device: torch.device | str) -> Tensor:
        """Return the constant on a device."""
        device = torch.device(device)
        if device in self._copies:
            return self._copies[device]
        with torch.inference_mode(False):
            copy = self._copies[_CPU].to(device)
        if type(copy) is Tensor:
            self._copies[device] = copy
        return copy
