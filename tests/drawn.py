"""Are ids drawn as a model says?"""

import torch
from scipy.stats import chisquare
from torch import Tensor


def assert_drawn_from(chances: Tensor, drawn: Tensor) -> None:
    """Assert that ids of any shape are draws from chances `[V]`: no impossible id; chi-square on likely ones."""
    counts = drawn.flatten().bincount(minlength=len(chances))
    assert int(counts[chances == 0].sum()) == 0
    likely = chances * drawn.numel() > 5
    assert int(likely.sum()) > 3
    observed = torch.cat([counts[likely], counts[~likely].sum().reshape(1)]).double()
    wanted = torch.cat([chances[likely], chances[~likely].sum().reshape(1)]).double() * drawn.numel()
    # A right sampler fails one seed in 10,000; the seed is fixed.
    kept = wanted > 0.5
    assert chisquare(observed[kept], wanted[kept] / wanted[kept].sum() * observed[kept].sum()).pvalue > 1e-4
