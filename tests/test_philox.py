"""The random stream: the published vectors, and the properties that the samplers need."""

import pytest
import torch
from scipy.stats import chisquare

from sector.kernels import philox
from sector.kernels._triton import tl, triton
from sector.kernels.philox import gumbel_lanes, philox_4x32, uniform_lanes, uniforms

# From kat_vectors of the Random123 distribution: philox4x32 10.
KNOWN_ANSWERS = [
    pytest.param(
        "00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8", id="0"
    ),
    pytest.param(
        "ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd", id="1"
    ),
    pytest.param(
        "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1", id="pi"
    ),
]


def _words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in _words(counter))
    k0, k1 = _words(key)
    assert [int(word) for word in philox_4x32((c0, c1, c2, c3), (k0, k1))] == _words(expected)


def test_uniforms_golden() -> None:
    """Frozen: a change here changes every sampled run."""
    drawn = uniforms(7, torch.tensor([3]), 2, torch.tensor([5]), 8)
    words = [
        word
        for block in range(2)
        for word in philox_4x32(
            tuple(torch.tensor(word) for word in (3, 0, (5 << 8) | block, 2)),  # type: ignore[arg-type]
            (7, 0),
        )
    ]
    assert drawn.tolist() == [[((int(word) >> 9) + 0.5) / 2**23 for word in words]]


def test_uniforms_are_uniform() -> None:
    drawn = uniforms(1, torch.arange(500).unsqueeze(1), 0, torch.arange(20), 32)
    assert drawn.shape == (500, 20, 32)
    counts = torch.histc(drawn.flatten(), bins=64, min=0, max=1)
    # A right stream fails one seed in 10,000; the seed is fixed.
    assert chisquare(counts).pvalue > 1e-4
    lanes = drawn.mean(dim=(0, 1))
    assert float((lanes - 0.5).abs().max()) < 5 * (1 / 12 / 10_000) ** 0.5


@pytest.mark.parametrize("word", [0, 2**32 - 1], ids=["smallest", "largest"])
def test_uniforms_are_open_at_both_ends(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gumbel noise of 0 or 1 would be infinite, and beside an illegal token's -inf no number at all."""
    monkeypatch.setattr(philox, "philox_4x32", lambda counter, key: [torch.full_like(counter[2], word)] * 4)
    drawn = uniforms(0, torch.arange(3), 0, torch.tensor(0), 4)
    assert bool(((drawn > 0) & (drawn < 1)).all())
    assert bool((-(-drawn.log()).log()).isfinite().all())


@pytest.mark.parametrize(
    ("seed", "row", "stage", "step"),
    [
        pytest.param(8, 3, 2, 5, id="seed"),
        pytest.param(7 + 2**32, 3, 2, 5, id="high_seed"),
        pytest.param(7, 4, 2, 5, id="row"),
        pytest.param(7, 3 + 2**32, 2, 5, id="high_row"),
        pytest.param(7, 3, 1, 5, id="stage"),
        pytest.param(7, 3, 2, 6, id="step"),
    ],
)
def test_every_coordinate_counts(seed: int, row: int, stage: int, step: int) -> None:
    one = uniforms(7, torch.tensor(3), 2, torch.tensor(5), 32)
    other = uniforms(seed, torch.tensor(row), stage, torch.tensor(step), 32)
    assert not bool((one == other).any())


def test_a_row_does_not_depend_on_its_batch() -> None:
    rows = torch.tensor([5, 0, 2**40, 9])
    together = uniforms(3, rows.unsqueeze(1), 1, torch.arange(6), 32)
    for index, row in enumerate(rows):
        assert torch.equal(together[index], uniforms(3, row, 1, torch.arange(6), 32))


@triton.jit
def _draw_kernel(
    seed_ptr, rows_ptr, stages_ptr, steps_ptr, uniforms_ptr, gumbel_ptr, count, BLOCK: tl.constexpr, LANES: tl.constexpr
):
    o_rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = o_rows < count
    seed = tl.load(seed_ptr)
    rows = tl.load(rows_ptr + o_rows, mask=mask, other=0)
    stages = tl.load(stages_ptr + o_rows, mask=mask, other=0)
    steps = tl.load(steps_ptr + o_rows, mask=mask, other=0)
    o_draws = o_rows[:, None] * LANES + tl.arange(0, LANES)[None, :]
    tl.store(uniforms_ptr + o_draws, uniform_lanes(seed, rows, stages, steps, LANES), mask=mask[:, None])
    tl.store(gumbel_ptr + o_draws, gumbel_lanes(seed, rows, stages, steps, LANES), mask=mask[:, None])


@pytest.mark.parametrize("lanes", [4, 32], ids=str)
@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 + 5, 2**63 - 1, -1], ids=str)
def test_a_kernel_draws_the_same_bits(seed: int, lanes: int, kernel_device: torch.device) -> None:
    """The Gumbel noise may differ by rounding: two logarithms, each right to about 2^-23, and the later one of a value
    that the earlier one rounded."""
    rows = torch.tensor([0, 1, 5, 2**31, 2**32 - 1, 2**32, 2**40 + 3, 2**62, -1, 77, 78])
    stages = torch.arange(11) * 255
    steps = torch.tensor([0, 1, 2, 3, 255, 256, 65535, 2**20, 7, 7, 7])
    drawn, noise = (torch.full((11, lanes), float("nan"), device=kernel_device) for _ in range(2))
    arguments = (tensor.to(kernel_device) for tensor in (torch.tensor([seed]), rows, stages, steps))
    _draw_kernel[(2,)](*arguments, drawn, noise, len(rows), BLOCK=8, LANES=lanes)
    expected = torch.stack(
        [uniforms(seed, rows[i], int(stages[i]), steps[i], lanes) for i in range(len(rows))]  # one stage a call
    )
    assert torch.equal(drawn.cpu(), expected)
    torch.testing.assert_close(noise.cpu(), -(-expected.log()).log(), rtol=2**-21, atol=2**-21)


def test_lanes_come_in_fours() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        uniforms(0, torch.tensor(0), 0, torch.tensor(0), 6)
