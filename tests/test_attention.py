"""Attention over the parts of a row, against softmax in float64 over everything that a token may see."""

import math

import pytest
import torch
from torch import Tensor

from sector.engine.errors import InputError
from sector.engine.samplers import attention
from sector.engine.samplers.attention import attend, attend_from_one

HEADS, HEAD_SIZE, ROWS = 3, 4, 5
# Ordinary scores; scores that run over in float32; scores so small that nothing is left of some sums in float32.
SCALES = pytest.mark.parametrize("scale", [1.0, 4.0, 7.0], ids="scale{:g}".format)


def _draw(length: int, wide: int, seed: int, scale: float = 1.0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return scale * torch.randn(ROWS, length, wide * HEADS * HEAD_SIZE, generator=draws)


def _expected(q: Tensor, kv: Tensor, seen: Tensor) -> Tensor:
    """Softmax of scores in bits, over the keys `[B or 1, Q, S]` that are seen."""
    q, k, v = (part.double().unflatten(2, (HEADS, HEAD_SIZE)).transpose(1, 2) for part in (q, *kv.chunk(2, dim=2)))
    scores = (q @ k.transpose(2, 3) * math.log(2)).masked_fill(~seen.unsqueeze(1), float("-inf"))
    return (scores.softmax(dim=3) @ v).transpose(1, 2).flatten(2)


def _assert_close(mixed: Tensor, expected: Tensor, q: Tensor) -> None:
    assert mixed.dtype == torch.float32
    # A score of s bits is known to s * 2^-24 in float32, and so are its weight and what it weighs, of at most 4.
    most_bits = float(q.abs().max()) * 4 * HEAD_SIZE * float(q.abs().max())
    torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=float(4 * max(most_bits, 8) * 2**-24 * 8))


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
    monkeypatch.setattr(attention, "SCORES", 2 * max(sum(lengths) * max(begun, 1), max(lengths) * sum(lengths)))
    total = sum(lengths)
    ends = torch.tensor(lengths).cumsum(0).tolist()
    spans = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    skip = lengths[0] if skips_prompt else 0
    q, kv = _draw(total, 1, 1, scale)[:, skip:], _draw(total, 2, 2)
    kv[..., : HEADS * HEAD_SIZE] *= scale
    beginning = _draw(begun, 2, 3) if begun else None
    part = torch.tensor([index for index, length in enumerate(lengths) for _ in range(length)])
    at = torch.arange(total)
    seen = ((part == part[:, None]) | (part == 0)) & (at <= at[:, None])
    seen = torch.cat([torch.ones(total, begun, dtype=torch.bool), seen], dim=1)[skip:].unsqueeze(0)
    everything = kv if beginning is None else torch.cat([beginning, kv], dim=1)
    _assert_close(attend(q, kv, spans, beginning, HEADS), _expected(q, everything, seen), q)


@SCALES
@pytest.mark.parametrize("ragged", [False, True], ids=["in_step", "ragged"])
@pytest.mark.parametrize("length", [1, 2, 33], ids="keys{}".format)
def test_one_token_sees_what_it_is_shown(length: int, ragged: bool, scale: float) -> None:
    q, kv = _draw(1, 1, 4, scale), _draw(length, 2, 5)
    kv[..., : HEADS * HEAD_SIZE] *= scale
    unseen = torch.arange(length) > (torch.arange(ROWS) % length).unsqueeze(1) if ragged else None
    k, v = (half.unflatten(2, (HEADS, HEAD_SIZE)) for half in kv.chunk(2, dim=2))
    mixed = attend_from_one(q, k.permute(0, 2, 3, 1).contiguous(), v.transpose(1, 2).contiguous(), unseen)
    seen = torch.ones(1, 1, length, dtype=torch.bool) if unseen is None else ~unseen.unsqueeze(1)
    _assert_close(mixed, _expected(q, kv, seen), q)


@pytest.mark.parametrize("score", [200.0, -200.0], ids=["runs_over", "vanishes"])
def test_float64_takes_over_where_float32_ends(score: float) -> None:
    """Both keys score alike, so that both count half: in float32 the sums would be infinite, or zero."""
    q = torch.zeros(1, 1, HEADS * HEAD_SIZE)
    kv = torch.zeros(1, 2, 2 * HEADS * HEAD_SIZE)
    q[..., ::HEAD_SIZE], kv[..., : HEADS * HEAD_SIZE : HEAD_SIZE] = 10.0, score / 10.0
    kv[:, 0, HEADS * HEAD_SIZE :], kv[:, 1, HEADS * HEAD_SIZE :] = 1.0, 3.0
    spans = [slice(0, 1), slice(1, 2)]
    assert attend(q, kv, spans, None, HEADS).flatten().tolist() == [2.0] * HEADS * HEAD_SIZE
    k, v = (half.unflatten(2, (HEADS, HEAD_SIZE)) for half in kv.chunk(2, dim=2))
    one = attend_from_one(q, k.permute(0, 2, 3, 1).contiguous(), v.transpose(1, 2).contiguous(), None)
    assert one.flatten().tolist() == [2.0] * HEADS * HEAD_SIZE


def test_broken_weights_are_named() -> None:
    q, kv = torch.full((1, 1, HEADS * HEAD_SIZE), float("nan")), _draw(1, 2, 1)[:1]
    with pytest.raises(InputError, match="weights are broken"):
        attend(q, kv, [slice(0, 1)], None, HEADS)
