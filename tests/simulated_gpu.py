"""A GPU that is only pretended: CPU tensors that say they are on cuda:0, and refuse what tensors there refuse.

It counts launches of kernels and waits of the host, on which small models spend their time on a GPU. A launch is an
operation that writes memory on the GPU. A wait is a read of a value by the host, a copy from or to memory of the host,
or a selection whose size the host must know. Kernels of ours run as their plain-torch references, and count as one
launch each. A replay of a CUDA graph counts as one replay, and its launches apart, as nodes.
"""

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

from sector.engine.samplers import gpu_steps, text
from sector.engine.training import distill, graphs
from sector.kernels import (
    acceptance,
    consistency,
    decode_attention,
    digit_sampler,
    embedding,
    layer,
    layout,
    megakernel,
    pass_attention,
    sequences,
    simplification,
    verify,
)

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")

# Storages on all simulated GPUs of this process: constants stay there for the next one. They are kept alive, so that no
# other storage gets their addresses.
_STORAGES: dict[int, Any] = {}

# Storages between two searches for those that no tensor uses any more.
_SEARCH_EVERY = 2048

_SOURCES = tuple(f"/{room}/" for room in ("engine", "kernels", "tests"))
# Kernels of ours: the plain-torch references that take their place.
_REFERENCES = {
    acceptance: ["accept_reference"],
    consistency: ["majority_reference"],
    decode_attention: ["decode_attention_reference"],
    digit_sampler: ["sample_digits_reference"],
    embedding: ["embed_reference"],
    layer: ["add_norm_reference", "rotate_to_cache_reference", "square_of_relu_reference"],
    layout: ["prompt_ids_reference", "parse_simplifications_reference", "parse_answers_reference"],
    megakernel: ["complete_reference"],
    pass_attention: ["pass_attention_reference"],
    simplification: ["simplification_ids_reference"],
    sequences: ["advance_reference", "begin_reference"],
    verify: ["verify_reference"],
}
_READS = {"item", "__bool__", "__int__", "__float__", "__index__", "tolist"}
_SELECTIONS = {"nonzero", "masked_select", "unique", "equal", "is_nonzero", "allclose"}
_METADATA = {
    *(
        "size",
        "stride",
        "dim",
        "numel",
        "is_contiguous",
        "element_size",
        "data_ptr",
        "untyped_storage",
        "storage_offset",
    ),
    *("__len__", "__repr__", "__hash__", "__format__", "__set__", "requires_grad_", "is_floating_point", "is_complex"),
    *("is_inference", "ndimension", "type", "_has_compatible_shallow_copy_type"),
}
_UNWRITTEN = {"empty", "empty_like", "empty_strided", "new_empty"}
_IN_PLACE_OPERATORS = {"__iadd__", "__isub__", "__imul__", "__iand__", "__ior__"}


def _free_unused() -> None:
    """Free the storages that no tensor uses. Without this, a test of some calls holds gigabytes."""
    for address in list(_STORAGES):
        if torch._C._storage_Use_Count(address) == 1:
            del _STORAGES[address]


class SimulatedGpu(TorchFunctionMode):
    """The simulation, active inside `with`.

    launches: launches by name and line of the source.
    waits: waits of the host, likewise.
    replays: replays of graphs.
    nodes: launches inside replays.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.replays = self.nodes = 0
        self._is_capturing = False
        self._silent = self._put = 0

    def put(self, tensor: Tensor) -> Tensor:
        """Say that the memory of a tensor is on the GPU; return the tensor."""
        with torch._C.DisableTorchFunction():
            storage = tensor.untyped_storage()
        _STORAGES[storage._cdata] = storage
        self._put += 1
        if self._put % _SEARCH_EVERY == 0:
            _free_unused()
        return tensor

    def holds(self, tensor: Tensor) -> bool:
        """Return whether the memory of a tensor is on the GPU."""
        with torch._C.DisableTorchFunction():
            return tensor.untyped_storage()._cdata in _STORAGES

    def reset(self) -> None:
        """Set all counts to zero."""
        self.launches.clear()
        self.waits.clear()
        self.replays = self.nodes = 0

    @contextmanager
    def silence(self) -> Iterator[None]:
        """Count nothing in the block."""
        self._silent += 1
        try:
            yield
        finally:
            self._silent -= 1

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run work once as a capture, in which the host may not wait; return its replay."""
        before = self.launches.total()
        self._is_capturing = True
        try:
            run()
        finally:
            self._is_capturing = False
        nodes = self.launches.total() - before

        def replay() -> None:
            with self.silence():
                run()
            self.replays += 1
            self.nodes += nodes

        return replay

    def as_one_launch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose operations count as one launch."""

        @functools.wraps(function)
        def launched(*arguments: Any, **options: Any) -> Any:
            with self.silence():
                result = function(*arguments, **options)
            self._launch(function.__name__)
            return result

        return launched

    def as_one_fast_launch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that counts as one launch, and whose operations are not simulated: its result is a list."""

        @functools.wraps(function)
        def launched(*arguments: Any, **options: Any) -> Any:
            with torch._C.DisableTorchFunction():
                result = function(*arguments, **options)
            self._launch(function.__name__)
            return [self.put(tensor) for tensor in result]

        return launched

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        path = (resolve_name(func) or getattr(func, "__qualname__", repr(func))).split(".")
        name = path[-1]
        if name == "__get__":
            return self._attribute(path[-2], func, args)
        # All memory of the host is as good as pinned.
        if name == "pin_memory":
            return args[0]
        if name in _METADATA:
            return func(*args, **kwargs)
        if name in ("to", "cpu", "cuda") and isinstance(args[0], Tensor):
            return self._move(name, args, kwargs)
        # The memo of a deep copy is no operand.
        operands = args[:1] if name == "__deepcopy__" else (args, kwargs)
        tensors = [leaf for leaf in tree_leaves(operands) if isinstance(leaf, Tensor)]
        if not any(map(self.holds, tensors)):
            return self._without_operands(name, func, args, kwargs)
        if name in ("numpy", "__array__"):
            raise TypeError(f"a tensor on cuda:0 is no array, at {_line()}")
        if name in _READS:
            self._wait(name)
            return func(*args, **kwargs)
        if name == "__getitem__":
            return self._select(func, *args)
        if name == "__setitem__":
            return self._assign(func, *args)
        if name == "copy_":
            return self._copy(func, args, kwargs)
        return self._operate(name, func, args, kwargs, tensors)

    def _attribute(self, name: str, func: Any, args: Any) -> Any:
        """Return an attribute of a tensor."""
        is_there = self.holds(args[0])
        replaced = {"device": GPU, "is_cuda": True, "is_cpu": False}
        return replaced[name] if is_there and name in replaced else func(*args)

    def _without_operands(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation that has no operand on the GPU; its result may be there."""
        wanted = kwargs.get("device")
        is_there = wanted is not None and torch.device(wanted).type == "cuda"
        result = func(*args, **(kwargs | {"device": CPU} if is_there else kwargs))
        if is_there:
            self.put(result)
            # Values of Python are copied from the host, a fill is computed on the GPU.
            if name in ("tensor", "as_tensor"):
                self._wait(name)
            elif name not in _UNWRITTEN:
                self._launch(name)
        return result

    def _operate(self, name: str, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        """Run an operation on the GPU."""
        self._refuse_mixed(name, tensors)
        if name in _SELECTIONS or (name == "repeat_interleave" and "output_size" not in kwargs):
            self._wait(name)
        if "device" in kwargs and kwargs["device"] is not None:
            kwargs["device"] = CPU
        with torch._C.DisableTorchFunction():
            before = {tensor.untyped_storage()._cdata for tensor in tensors}
        result = func(*args, **kwargs)
        is_new = False
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                with torch._C.DisableTorchFunction():
                    is_new |= leaf.untyped_storage()._cdata not in before
                self.put(leaf)
        is_in_place = (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE_OPERATORS
        # A view launches nothing.
        if (is_new or is_in_place or "out" in kwargs) and name not in _UNWRITTEN:
            self._launch(name)
        return result

    def _select(self, func: Any, target: Tensor, index: Any) -> Any:
        """Return `target[index]`."""
        indices = [leaf for leaf in tree_leaves(index) if isinstance(leaf, Tensor)]
        if not self.holds(target):
            raise RuntimeError(f"a tensor on the CPU is indexed by one on the GPU, at {_line()}")
        for tensor in indices:
            self._wait_for_index(tensor)
        result = func(target, index)
        if indices:
            self._launch("__getitem__")
        return self.put(result)

    def _assign(self, func: Any, target: Tensor, index: Any, value: Any) -> None:
        """Run `target[index] = value`."""
        indices = [leaf for leaf in tree_leaves(index) if isinstance(leaf, Tensor)]
        if not self.holds(target):
            if any(map(self.holds, indices)):
                raise RuntimeError(f"a tensor on the CPU is indexed by one on the GPU, at {_line()}")
            self._wait("__setitem__ from the GPU")
        elif isinstance(value, Tensor) and value.dim() and not self.holds(value):
            self._wait("__setitem__ from the CPU")
        is_number = not isinstance(value, Tensor) or value.dim() == 0
        for tensor in indices:
            # A number under one mask is written without a list of places.
            if not (is_number and len(indices) == 1):
                self._wait_for_index(tensor)
        func(target, index, value)
        self._launch("__setitem__")

    def _wait_for_index(self, index: Tensor) -> None:
        """Count the wait for an index: it comes from the CPU, or it is a mask, whose places the host counts."""
        if not self.holds(index) and index.dim():
            self._wait("index from the CPU")
        elif index.dtype == torch.bool:
            self._wait("mask")

    def _copy(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """Run `target.copy_(source)`."""
        target, source, *_ = args
        if self.holds(target) == self.holds(source) or kwargs.get("non_blocking"):
            self._launch("copy_")
        else:
            self._wait("copy_ between devices")
        func(*args, **kwargs)
        return target  # type: ignore[no-any-return]

    def _move(self, name: str, args: Any, kwargs: Any) -> Tensor:
        """Return a tensor on a device, in a dtype."""
        tensor, *others = args
        device, dtype = kwargs.get("device"), kwargs.get("dtype")
        for other in others:
            if isinstance(other, str | torch.device):
                device = other
            elif isinstance(other, torch.dtype):
                dtype = other
            elif isinstance(other, Tensor):
                device, dtype = (GPU if self.holds(other) else CPU), other.dtype
        device = {"cpu": CPU, "cuda": GPU}.get(name, device)
        was = self.holds(tensor)
        goes = was if device is None else torch.device(device).type == "cuda"
        with torch._C.DisableTorchFunction():
            result = tensor if dtype is None else tensor.to(dtype)
            if result is tensor and (goes != was or kwargs.get("copy")):
                result = tensor.clone()
        if result is tensor:
            return tensor  # type: ignore[no-any-return]
        if goes:
            self.put(result)
        if (goes and was) or kwargs.get("non_blocking"):
            self._launch(name)
        elif goes != was:
            self._wait(f"{name} {'GPU' if goes else 'CPU'}")
        return result

    def _refuse_mixed(self, name: str, tensors: list[Tensor]) -> None:
        """Raise RuntimeError if an operation has operands on both devices. Numbers may be on the CPU."""
        if any(tensor.dim() and not self.holds(tensor) for tensor in tensors):
            raise RuntimeError(f"{name}: tensors are on cuda:0 and on the CPU, at {_line()}")

    def _launch(self, name: str) -> None:
        if not self._silent:
            self.launches[f"{name} {_line()}"] += 1

    def _wait(self, name: str) -> None:
        if self._silent:
            return
        if self._is_capturing:
            raise RuntimeError(f"{name}: the host may not wait in a capture, at {_line()}")
        self.waits[f"{name} {_line()}"] += 1


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimulatedGpu:
    """A simulated GPU, on which engines can be made inside `with gpu`."""
    if torch.cuda.is_available():
        pytest.skip("there is a real one")
    simulated = SimulatedGpu()
    for module, names in _REFERENCES.items():
        monkeypatch.setattr(module, "runs_kernel", lambda _: False)
        for name in names:
            # The megakernel is thousands of operations.
            replace = simulated.as_one_fast_launch if module is megakernel else simulated.as_one_launch
            monkeypatch.setattr(module, name, replace(getattr(module, name)))
    monkeypatch.setattr(torch.cuda, "device_of", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (2 << 30, 80 << 30))

    def capture_with(_: torch.device, warm_ups: int = 1) -> Callable[[Callable[[], None]], Callable[[], None]]:
        """Return a function that captures work. Work without a warm-up runs once: its first replay captures it."""

        def capture(run: Callable[[], None]) -> Callable[[], None]:
            if warm_ups:
                run()
                return simulated.capture(run)
            replays: list[Callable[[], None]] = []

            def replay() -> None:
                if replays:
                    replays[0]()
                else:
                    replays.append(simulated.capture(run))

            return replay

        return capture

    for module in (gpu_steps, graphs, distill, text):
        monkeypatch.setattr(module, "CudaCapture", capture_with)
    return simulated


def _line() -> str:
    """Return the innermost line of the project that is running, as `gpu_steps.py:123`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path != __file__ and any(source in path for source in _SOURCES):
            return f"{Path(path).name}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
