"""Muon: momentum whose update is made orthogonal by a Newton-Schulz iteration (Jordan et al. 2024).

The update is the one of `torch.optim.Muon`, computed otherwise. That one multiplies in bfloat16, matrix by matrix: on a
CPU without bfloat16 products this took 85 % of a training step (LOG.md). Here all products are float32, and the
iteration runs on Gram matrices, all of one size as one batch.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

# Coefficients of the quintic iteration, and its steps: those of torch and of the original.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_STEPS = 5
_LEAST_NORM = 1e-7


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices alone.

    Its state is `momentum_buffer`, as in torch. ValueError if a parameter is no matrix.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
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
            with_gradient = [(each, each.grad) for each in group["params"] if each.grad is not None]
            if with_gradient:
                parameters, gradients = (list(tensors) for tensors in zip(*with_gradient, strict=True))
                self._update(parameters, gradients, group)
        return loss

    def _update(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        momenta = [self._momentum(parameter) for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = orthogonalize(torch._foreach_lerp(gradients, momenta, group["momentum"]))
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        # A tall matrix takes a longer step: its update has more rows of the same norm.
        torch._foreach_mul_(
            updates, [-group["lr"] * math.sqrt(max(1.0, len(each) / each.shape[1])) for each in updates]
        )
        torch._foreach_add_(parameters, updates)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum_buffer"]
        return momentum


def orthogonalize(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Set all singular values of each matrix `[m, n]` to about 1, between 0.7 and 1.2, and keep its singular vectors.

    The iteration multiplies X by a polynomial of its Gram matrix X X^T, five times. Polynomials of one matrix commute,
    so that their product P and the Gram matrices can be worked out without X: the products are then all of the smaller
    side, and matrices of different lengths make one batch. P X comes last.
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
    """Gram matrices `[B, m, m]` of a spectral norm of at most 1 -> the polynomials P `[B, m, m]` of the iteration."""
    product: Tensor | None = None
    for step in range(_STEPS):
        factor = torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C)
        factor.diagonal(dim1=1, dim2=2).add_(_A)
        product = factor if product is None else factor @ product
        if step + 1 < _STEPS:
            gram = factor @ gram @ factor
    assert product is not None, "there is at least one step"
    return product
