"""Attention over the parts of a row, against softmax in float64 over everything that a token may see."""

import math

import pytest
import torch
from torch import Tensor

from sector.engine.errors import InputError
from sector.engine.samplers import native_attention
from sector.engine.samplers.native_attention import Seen, attend, attend_from_one

HEADS, HEAD_SIZE, ROWS = 3, 4, 5
# Ordinary scores; scores that run over in float32; scores so small that nothing is left of some sums in float32.
SCALES = pytest.mark.parametrize("scale", [1.0, 4.0, 7.0], ids="scale{:g}".format)


def _queries(length: int, seed: int, scale: float) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return scale * torch.randn(HEADS, ROWS, length, HEAD_SIZE, generator=draws)


def _keys_and_values(length: int, seed: int, scale: float) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    kv = torch.randn(HEADS, ROWS, length, 2 * HEAD_SIZE, generator=draws)
    kv[..., :HEAD_SIZE] *= scale
    return kv


def _expected(q: Tensor, kv: Tensor, seen: Tensor) -> Tensor:
    """Softmax of scores in bits, over the keys `[B or 1, Q, S]` that are seen; `[B, Q, D]`."""
    q, (k, v) = q.double(), kv.double().chunk(2, dim=3)
    scores = (q @ k.transpose(2, 3) * math.log(2)).masked_fill(~seen, float("-inf"))
    return (scores.softmax(dim=3) @ v).permute(1, 2, 0, 3).flatten(2)


def _assert_close(mixed: Tensor, expected: Tensor, q: Tensor) -> None:
    assert mixed.dtype == torch.float32
    # A score of s bits is known to s * 2^-24 in float32, and so are its weight and what it weighs, of at most 4.
    most_bits = float(q.abs().max()) * 4 * HEAD_SIZE * float(q.abs().max())
    torch.testing.assert_close(
        mixed.double(), expected.flatten(0, 1), rtol=0, atol=float(4 * max(most_bits, 8) * 2**-24 * 8)
    )


PARTS = [(6,), (6, 1), (5, 3, 4), (1, 1, 9)]
# With a single part, something must be asked of it.
ASKED = [(lengths, skips) for lengths in PARTS for skips in (False, True)[: len(lengths)]]


@SCALES
@pytest.mark.parametrize("begun", [0, 1, 7], ids="beginning{}".format)
@pytest.mark.parametrize(
    ("lengths", "skips_prompt"), ASKED, ids=["-".join(map(str, each)) + "-branches" * skips for each, skips in ASKED]
)
def test_parts_see_their_past_the_prompt_and_the_beginning(
    lengths: tuple[int, ...], begun: int, skips_prompt: bool, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two rows at a time.
    monkeypatch.setattr(native_attention, "SCORES", 2 * sum(lengths) * max(begun, sum(lengths)))
    total = sum(lengths)
    ends = torch.tensor(lengths).cumsum(0).tolist()
    spans = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    skip = lengths[0] if skips_prompt else 0
    q, kv = _queries(total, 1, scale)[:, :, skip:], _keys_and_values(total, 2, scale)
    beginning = _keys_and_values(begun, 3, 1.0) if begun else None
    part = torch.tensor([index for index, length in enumerate(lengths) for _ in range(length)])
    at = torch.arange(total)
    seen = ((part == part[:, None]) | (part == 0)) & (at <= at[:, None])
    seen = torch.cat([torch.ones(total, begun, dtype=torch.bool), seen], dim=1)[skip:].unsqueeze(0)
    everything = kv if beginning is None else torch.cat([beginning, kv], dim=2)
    _assert_close(attend(q, kv, spans, beginning), _expected(q, everything, seen), q)


@SCALES
@pytest.mark.parametrize("ragged", [False, True], ids=["in_step", "ragged"])
@pytest.mark.parametrize("length", [1, 2, 33], ids="keys{}".format)
def test_one_token_sees_what_it_is_shown(length: int, ragged: bool, scale: float) -> None:
    # The cache has room for two more tokens.
    q, kv = _queries(1, 4, scale), _keys_and_values(length + 2, 5, scale)
    last = torch.arange(ROWS) % length if ragged else torch.full((ROWS,), length - 1)
    mixed = _attend_from_one(q, kv, last)
    _assert_close(mixed, _expected(q, kv, (torch.arange(length + 2) <= last.unsqueeze(1)).unsqueeze(1)), q)


def _attend_from_one(q: Tensor, kv: Tensor, last: Tensor) -> Tensor:
    k, v = kv.chunk(2, dim=3)
    return attend_from_one(
        q, k.transpose(2, 3).contiguous(), v.contiguous(), Seen.up_to(last, *k.shape[::3], k.shape[2])
    )


@pytest.mark.parametrize("score", [200.0, -200.0], ids=["runs_over", "vanishes"])
def test_float64_takes_over_where_float32_ends(score: float) -> None:
    """Both keys score alike, so that both count half: in float32 the sums would be infinite, or zero."""
    q, kv = torch.zeros(HEADS, 1, 1, HEAD_SIZE), torch.zeros(HEADS, 1, 2, 2 * HEAD_SIZE)
    q[..., 0], kv[..., 0] = 10.0, score / 10.0
    kv[:, :, 0, HEAD_SIZE:], kv[:, :, 1, HEAD_SIZE:] = 1.0, 3.0
    assert attend(q, kv, [slice(0, 1), slice(1, 2)], None).flatten().tolist() == [2.0] * HEADS * HEAD_SIZE
    assert _attend_from_one(q, kv, torch.tensor([1])).flatten().tolist() == [2.0] * HEADS * HEAD_SIZE


def test_broken_weights_are_named() -> None:
    q, kv = torch.full((HEADS, ROWS, 1, HEAD_SIZE), float("nan")), _keys_and_values(1, 1, 1.0)
    with pytest.raises(InputError, match="weights are broken"):
        attend(q, kv, [slice(0, 1)], None)
