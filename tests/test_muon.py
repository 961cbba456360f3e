"""Muon against torch's own, and the Newton-Schulz iteration on Gram matrices against the textbook's."""

import pytest
import torch
from torch import Tensor
from torch.optim._muon import _zeropower_via_newtonschulz

from sector.engine.training.muon import Muon, orthogonalize

SHAPES = [(192, 64), (64, 64), (256, 64), (64, 256), (64, 256), (6, 5), (5, 7), (1, 9)]


def matrices(draws: torch.Generator, spread: float = 3.0) -> list[Tensor]:
    """Return matrices of random singular vectors, whose singular values fall by `spread` orders of magnitude."""
    return [
        torch.randn(shape, generator=draws)
        * torch.logspace(0, -spread, shape[1])[torch.randperm(shape[1], generator=draws)]
        for shape in SHAPES
    ]


def textbook(matrix: Tensor) -> Tensor:
    """The iteration on the matrix itself, in float64."""
    x = (matrix if len(matrix) <= matrix.shape[1] else matrix.T).double()
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if x.shape == matrix.shape else x.T


@pytest.mark.parametrize("spread", [0.0, 3.0, 6.0], ids=lambda spread: f"spread{spread:g}")
def test_the_iteration_on_gram_matrices_is_the_textbooks(draws: torch.Generator, spread: float) -> None:
    given = matrices(draws, spread)
    for matrix, result in zip(given, orthogonalize(given), strict=True):
        torch.testing.assert_close(result.double(), textbook(matrix), rtol=0, atol=1e-3)


def test_singular_values_become_about_one(draws: torch.Generator) -> None:
    # Those of a square matrix may begin so small that five steps do not bring them there.
    oblong = [matrix for matrix in matrices(draws, 0.0) if max(matrix.shape) > 2 * min(matrix.shape)]
    for result in orthogonalize(oblong):
        values = torch.linalg.svdvals(result)
        assert values.min() > 0.6 and values.max() < 1.25


def test_a_matrix_of_zeros_stays_one() -> None:
    (result,) = orthogonalize([torch.zeros(4, 6)])
    assert torch.equal(result, torch.zeros(4, 6))


def test_a_batch_gives_each_matrix_what_it_gets_alone(draws: torch.Generator) -> None:
    given = matrices(draws)
    for matrix, result in zip(given, orthogonalize(given), strict=True):
        torch.testing.assert_close(result, orthogonalize([matrix])[0], rtol=1e-4, atol=1e-4)


def test_steps_are_those_of_torch_but_for_its_bfloat16(draws: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's products in float32 the two differ by rounding alone."""

    def in_float32(grad: Tensor, *_: object) -> Tensor:
        return textbook(grad).float()

    assert callable(_zeropower_via_newtonschulz)
    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", in_float32)
    start = matrices(draws)
    ours, theirs = ([torch.nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    optimizers = Muon(ours, lr=0.02, weight_decay=0.1), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1)
    for _ in range(3):
        gradients = matrices(draws)
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-4)


def test_a_vector_is_refused() -> None:
    with pytest.raises(ValueError, match=r"matrices only, not a parameter of shape \(3,\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1, weight_decay=0.0)
