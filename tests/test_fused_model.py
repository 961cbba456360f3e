"""The trainer's way through the model: the same states and gradients as the model itself by autograd."""

from itertools import accumulate

import pytest
import torch
from torch import Tensor

from sector.engine.language import tokens
from sector.engine.models.sector import SectorForCausalLM, new_model
from sector.engine.training.fused_model import branch_states

PROMPT = 9


def branch_mask(lengths: tuple[int, ...]) -> Tensor:
    """`[1, 1, T, T]` causal, but no branch sees another."""
    total = sum(lengths)
    mask = torch.ones(total, total, dtype=torch.bool).tril()
    for length, stop in list(zip(lengths, accumulate(lengths), strict=True))[1:]:
        mask[stop - length : stop, lengths[0] : stop - length] = False
    return mask[None, None]


def states_and_gradients(model: SectorForCausalLM, hidden: Tensor) -> list[Tensor]:
    """Hidden states and the gradient of every parameter behind them, for a loss that treats no two states alike."""
    weights = torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype).view_as(hidden)
    body = [parameter for name, parameter in model.named_parameters() if name != "head.weight"]
    return [hidden, *torch.autograd.grad((hidden * weights).square().sum(), body)]


@pytest.mark.parametrize(
    "lengths",
    [
        pytest.param((PROMPT, 4, 7), id="two branches"),
        pytest.param((PROMPT, 5, 0), id="the answer alone"),
        pytest.param((PROMPT, 0, 6), id="the simplification alone"),
        pytest.param((PROMPT, 1, 1), id="a token each"),
        pytest.param((1, 3, 2), id="a prompt of one token"),
        pytest.param((30, 14, 24), id="long, two branches"),
        pytest.param((40, 0, 31), id="long, the simplification alone"),
        pytest.param((41, 30, 0), id="long, the answer alone"),
    ],
)
@pytest.mark.parametrize("layers", [1, 3], ids=str)
def test_states_and_gradients_are_those_of_the_model(
    lengths: tuple[int, ...], layers: int, draws: torch.Generator
) -> None:
    model = new_model("tiny", 3, num_hidden_layers=layers).double()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5, generator=draws)
    ids = torch.randint(0, tokens.VOCAB_SIZE, (5, sum(lengths)), generator=draws)
    places = tokens.place_of(ids) + torch.randint(0, 20, ids.shape, generator=draws)
    plain = model.hidden_states(ids, branch_mask(lengths), places=places)[:, lengths[0] :]
    wanted = states_and_gradients(model, plain)
    found = states_and_gradients(model, branch_states(model, ids, places, lengths))
    assert found[0].shape == (5, sum(lengths[1:]), model.config.hidden_size)
    # Rounding of float64, through sums of some hundred products.
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_nothing_is_kept_where_no_gradient_is_asked_for(draws: torch.Generator) -> None:
    model = new_model("tiny", 3).requires_grad_(False)
    ids = torch.randint(0, tokens.VOCAB_SIZE, (2, 12), generator=draws)
    assert not branch_states(model, ids, tokens.place_of(ids), (4, 4, 4)).requires_grad
