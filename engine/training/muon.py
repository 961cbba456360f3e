"""Muon: momentum with updates that a Newton-Schulz iteration makes orthogonal (Jordan et al. 2024).

The update is that of `torch.optim.Muon`, which multiplies in bfloat16, matrix by matrix. On a CPU without bfloat16
products that took 85 % of a training step (log.md). Here all products are float32, and the iteration runs on Gram
matrices, with all matrices of one size as one batch.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

# Coefficients and number of steps of the quintic iteration, as in torch and in the original.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_STEPS = 5
_MOMENTUM = 0.95
_LEAST_NORM = 1e-7


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices only.

    Its state is `momentum_buffer`, as in torch. For a CUDA graph of a step, `lr` is a tensor on the device.

    Raise ValueError if a parameter is not a matrix.
    """

    def __init__(self, params: Iterable[Tensor], lr: float | Tensor, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon takes matrices only, not a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; see `torch.optim.Optimizer.step`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(parameters, [parameter.grad for parameter in parameters], group)
        return loss

    def _update(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        """Update parameters in place by their gradients."""
        momenta = [self._momentum(parameter) for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
        updates = orthogonalize(torch._foreach_lerp(gradients, momenta, _MOMENTUM))
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        # A tall matrix takes a longer step: its update has more rows of the same norm.
        scales = [-group["lr"] * math.sqrt(max(1.0, len(update) / update.shape[1])) for update in updates]
        torch._foreach_mul_(updates, scales)
        torch._foreach_add_(parameters, updates)

    def _momentum(self, parameter: Tensor) -> Tensor:
        """Return the momentum of a parameter, which starts at zero."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum_buffer"]
        return momentum


def orthogonalize(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return matrices `[m, n]` with the same singular vectors and all singular values near 1, between 0.7 and 1.2.

    The iteration multiplies X five times by a polynomial of its Gram matrix X X^T. Polynomials of one matrix commute,
    so their product P and the Gram matrices can be computed without X. All these products have the size of the smaller
    side, so matrices of different lengths make one batch. The product P X comes last.
    """
    wide = [matrix if len(matrix) <= matrix.shape[1] else matrix.T for matrix in matrices]
    norms = [matrix.norm().clamp(min=_LEAST_NORM) for matrix in wide]
    by_size: dict[int, list[int]] = defaultdict(list)
    for index, matrix in enumerate(wide):
        by_size[len(matrix)].append(index)
    results = list(wide)
    for indices in by_size.values():
        scales = torch.stack([norms[index] for index in indices])[:, None, None]
        gram = torch.stack([wide[index] @ wide[index].T for index in indices]).div_(scales.square())
        for index, polynomial in zip(indices, _polynomials(gram).div_(scales), strict=True):
            results[index] = polynomial @ wide[index]
    return [
        result if result.shape == matrix.shape else result.T for result, matrix in zip(results, matrices, strict=True)
    ]


def _polynomials(gram: Tensor) -> Tensor:
    """Return the polynomials P `[B, m, m]` of the iteration for Gram matrices of a spectral norm of at most 1."""
    product: Tensor | None = None
    for step in range(_STEPS):
        factor = torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C)
        factor.diagonal(dim1=1, dim2=2).add_(_A)
        product = factor if product is None else factor @ product
        if step + 1 < _STEPS:
            gram = factor @ gram @ factor
    assert product is not None, "there is at least one step"
    return product
