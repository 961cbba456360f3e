"""Decode attention: the kernel beside plain torch, plain torch beside the model, and the tokens that are masked."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from sector.engine.language.tokens import VOCAB_SIZE, place_of
from sector.engine.models.layers import rope_table
from sector.engine.models.sector import new_model
from sector.kernels import decode_attention as module
from sector.kernels.decode_attention import (
    Positions,
    decode_attention,
    decode_attention_kernel,
    decode_attention_reference,
)

PLACES = 303


@dataclass
class Inputs:
    qkv: Tensor
    places: Tensor
    rope: Tensor
    keys: Tensor
    values: Tensor
    at: Positions

    def copy(self) -> "Inputs":
        """The same, with a cache of its own to write to."""
        return replace(self, keys=self.keys.clone(), values=self.values.clone())

    def take(self, rows: Tensor) -> "Inputs":
        """Some of the new tokens, the whole cache."""
        at = Positions(self.at.rows[rows], self.at.slots[rows], self.at.starts[rows], self.at.prefix_lengths[rows])
        return replace(self.copy(), qkv=self.qkv[rows], places=self.places[rows], at=at)

    def run(self, function=decode_attention_kernel, out: Tensor | None = None) -> Tensor:
        arguments = (self.qkv, self.places, self.rope, self.keys, self.values, self.at)
        return function(*arguments) if out is None else function(*arguments, out)


def _inputs(
    count: int, heads: int, size: int, slots: int, device: torch.device, dtype=torch.float32, cache_dtype=None
) -> Inputs:
    """A cache of more rows than tokens, taken in no order; every slot that no token may see holds NaN."""
    draws = torch.Generator().manual_seed(count * 1000 + slots)
    batch = count + 3
    rows = torch.randperm(batch, generator=draws)[:count]
    prefix = torch.randint(0, slots, (count,), generator=draws)
    start = prefix + (torch.rand(count, generator=draws) * (slots - prefix)).long()
    slot = start + (torch.rand(count, generator=draws) * (slots - start)).long()
    # The corners: nothing but itself; a full row without and with a prefix; a prefix and itself at the far end.
    for index, corner in enumerate([(0, 0, 0), (0, 0, slots - 1), (slots - 1,) * 3, (1, slots - 1, slots - 1)]):
        if index < count:
            prefix[index], start[index], slot[index] = (torch.tensor(number) for number in corner)
    at = Positions(rows, slot, start, prefix)
    cache = torch.full((2, batch, heads, slots, size), float("nan"))
    everything = torch.randn(2, batch, heads, slots, size, generator=draws)
    seen = module.visible(slot, start, prefix.unsqueeze(1), slots)
    seen[torch.arange(count), slot] = False
    kept = torch.zeros(batch, slots, dtype=torch.bool)
    kept[rows] = seen
    cache = torch.where(kept[None, :, None, :, None], everything, cache).to(device, cache_dtype or dtype)
    angles = torch.rand(PLACES, size // 2, generator=draws) * 7
    return Inputs(
        torch.randn(count, 3 * heads * size, generator=draws).to(device, dtype),
        torch.randint(0, PLACES, (count,), generator=draws).to(device),
        torch.stack([angles.cos(), angles.sin()], dim=1).to(device),
        *cache.unbind(0),
        Positions(*(tensor.to(device) for tensor in (at.rows, at.slots, at.starts, at.prefix_lengths))),
    )


def _check_close(inputs: Inputs, kernel: Inputs, reference: Inputs, attended: Tensor, expected: Tensor) -> None:
    """Compare within a derived tolerance.

    A score is a dot product of K rotated terms, of which each has six roundings at most: off by
    (K + 8) u sum |q k| / sqrt K, u = 2^-24. If scores are off by d, weights are by a factor e^2d at most; their sum and
    that of the values add (S + 8) u, and an exponential 4 u. So two computations differ by at most
    2 (2 d + (2 S + 20) u) max |v|, and by the output's rounding. On a GPU a rotation is fused, so that the new key may
    round to the cache's neighbouring number: then d grows by its share of the scores.
    """
    count, (_, heads, slots, size) = len(inputs.qkv), inputs.keys.shape
    rounding = 2.0**-24
    cache_step, out_step = (
        2.0**-7 if dtype is torch.bfloat16 else 2.0**-23 for dtype in (inputs.keys.dtype, inputs.qkv.dtype)
    )
    active = inputs.at.rows >= 0
    for new, old in ((kernel.keys, reference.keys), (kernel.values, reference.values)):
        # A rotated component is the difference of two products, so its error is a share of those, not of itself.
        largest = inputs.qkv.abs().max().item()
        atol = max(cache_step * 2.0**-8, 4 * rounding * largest)
        torch.testing.assert_close(new, old, rtol=cache_step, atol=atol, equal_nan=True)
    # A rotation keeps lengths, and sum |q k| <= |q| |k|.
    query = inputs.qkv.double().view(count, 3, heads, size)[:, 0].norm(dim=-1)
    held = reference.keys.double()[inputs.at.rows.clamp(min=0)].nan_to_num()
    longest = held.norm(dim=-1).amax(dim=-1)
    scores_off = (cache_step + (size + 8) * rounding) * query * longest * size**-0.5
    largest = reference.values.double()[inputs.at.rows.clamp(min=0)].nan_to_num().abs().amax(dim=(2, 3))
    bound = 2 * (2 * scores_off + (2 * slots + 20) * rounding) * largest
    off = (attended.double() - expected.double()).view(count, heads, size).abs()
    allowed = bound.unsqueeze(2) + out_step * expected.double().view(count, heads, size).abs()
    assert bool((off <= allowed)[active].all()), float((off - allowed)[active].max())
    assert bool((attended[~active] == 0).all())


@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [
        pytest.param(torch.float32, torch.float32, id="fp32"),
        pytest.param(torch.bfloat16, torch.bfloat16, id="bf16"),
        pytest.param(torch.float32, torch.bfloat16, id="fp32_bf16_cache"),
    ],
)
@pytest.mark.parametrize(
    ("count", "heads", "size", "slots"),
    [
        (1, 4, 16, 1),
        (3, 2, 16, 31),
        (33, 4, 16, 32),
        (31, 3, 22, 33),
        (255, 1, 32, 65),
        (257, 2, 6, 64),
        (5, 1, 32, 1100),
    ],
    ids=str,
)
def test_the_kernel_is_the_reference(
    count: int, heads: int, size: int, slots: int, dtype: torch.dtype, cache_dtype: torch.dtype, kernel_device
) -> None:
    inputs = _inputs(count, heads, size, slots, kernel_device, dtype, cache_dtype)
    by_kernel, by_reference = inputs.copy(), inputs.copy()
    poisoned = torch.full((count, heads * size), float("nan"), dtype=dtype, device=kernel_device)
    attended = by_kernel.run(out=poisoned)
    assert attended is poisoned
    _check_close(inputs, by_kernel, by_reference, attended, by_reference.run(decode_attention_reference))


def test_only_the_new_slots_of_the_cache_change(kernel_device: torch.device) -> None:
    inputs = _inputs(37, 2, 16, 33, kernel_device)
    after = inputs.copy()
    after.run()
    changed = torch.zeros(40, 33, dtype=torch.bool, device=kernel_device)
    changed[inputs.at.rows, inputs.at.slots] = True
    for new, old in ((after.keys, inputs.keys), (after.values, inputs.values)):
        same = (new == old) | (new.isnan() & old.isnan())
        assert torch.equal(~same.all(dim=3).all(dim=1), changed)


def test_an_idle_row_is_zero_and_writes_nothing(kernel_device: torch.device) -> None:
    inputs = _inputs(20, 2, 16, 33, kernel_device)
    idle = torch.arange(20, device=kernel_device) % 3 == 0
    some = replace(inputs.copy(), at=replace(inputs.at, rows=inputs.at.rows.masked_fill(idle, -1)))
    by_reference = some.copy()
    attended = some.run()
    _check_close(some, some, by_reference, attended, by_reference.run(decode_attention_reference))
    busy = inputs.take((~idle).nonzero().squeeze(1))
    torch.testing.assert_close(attended[~idle], busy.run(), rtol=0, atol=1e-6)
    assert torch.equal(some.keys.nan_to_num(), busy.keys.nan_to_num())


def test_branches_of_a_row_do_not_see_each_other(kernel_device: torch.device) -> None:
    """Both get a token at once; slots that neither may see hold NaN."""
    two = _inputs(2, 2, 16, 17, kernel_device)
    for cache in (two.keys, two.values):
        cache.fill_(float("nan"))
        cache[3, :, [*range(4), 5, 6, 9, 10, 11]] = 0.5
        cache[3, :, 2] = -2.0
    numbers = {"rows": [3, 3], "slots": [7, 12], "starts": [5, 9], "prefix_lengths": [4, 4]}
    two.at = Positions(**{name: torch.tensor(values, device=kernel_device) for name, values in numbers.items()})
    together = two.copy()
    attended = together.run()
    for index in range(2):
        alone = two.take(torch.tensor([index], device=kernel_device))
        assert torch.equal(alone.run()[0], attended[index])
        assert torch.equal(alone.keys[3, :, numbers["slots"][index]], together.keys[3, :, numbers["slots"][index]])


def test_a_row_does_not_depend_on_its_batch(kernel_device: torch.device) -> None:
    inputs = _inputs(300, 1, 16, 40, kernel_device)
    together = inputs.copy().run()
    order = torch.randperm(300, generator=torch.Generator().manual_seed(2)).to(kernel_device)
    for rows in (order[:1], order[1:18], order[18:]):
        # Rows of other lengths share a program, so slots come in the same blocks but for the last, empty ones.
        assert torch.equal(inputs.take(rows).run(), together[rows])


def test_a_poisoned_row_harms_no_other(kernel_device: torch.device) -> None:
    inputs = _inputs(30, 2, 16, 33, kernel_device)
    clean = inputs.copy().run()
    inputs.keys[inputs.at.rows[7]] = float("nan")
    inputs.qkv[7] = float("nan")
    others = torch.arange(30, device=kernel_device) != 7
    assert torch.equal(inputs.copy().run()[others], clean[others])


def test_the_cache_may_be_a_layer_of_a_larger_one(kernel_device: torch.device) -> None:
    """Strides are the cache's own: here slots lie before heads, and layers before both."""
    inputs = _inputs(9, 3, 16, 17, kernel_device)
    expected = inputs.copy()
    attended = expected.run()
    caches = [torch.full((12, 2, 17, 3, 16), float("nan"), device=kernel_device) for _ in range(2)]
    keys, values = (cache[:, 1].transpose(1, 2) for cache in caches)
    keys.copy_(inputs.keys)
    values.copy_(inputs.values)
    assert torch.equal(replace(inputs, keys=keys, values=values).run(), attended)
    assert torch.equal(keys.nan_to_num(), expected.keys.nan_to_num())
    assert all(bool(cache[:, 0].isnan().all()) for cache in caches)


def test_decoding_token_by_token_is_the_model(kernel_device: torch.device) -> None:
    """One layer's attention over a sequence, all at once in the model and step by step here, in a branch of its own.

    float32 sums of 24 and 64 terms: 1e-5 is 80 roundings of outputs below 2.
    """
    model = new_model("tiny", 5).to(kernel_device)
    attention, rope = model.blocks[0].attention, rope_table(model.config).to(kernel_device)
    taken: list[Tensor] = []
    attention.register_forward_hook(lambda module, inputs, output: taken.extend((inputs[0], output[0])))
    ids = torch.randint(0, VOCAB_SIZE, (6, 24), generator=torch.Generator().manual_seed(4)).to(kernel_device)
    model.hidden_states(ids)
    x, expected = taken
    # Ten tokens of prefix, three slots that belong to another branch, then ours.
    prefix, gap = 10, 3
    keys, values = (torch.full((6, 4, 40, 16), float("nan"), device=kernel_device) for _ in range(2))
    rows = torch.arange(6, device=kernel_device)
    with torch.no_grad():
        for step in range(24):
            slot = step if step < prefix else step + gap
            start, length = (0, 0) if step < prefix else (prefix + gap, prefix)
            at = Positions(rows, *(torch.full_like(rows, number) for number in (slot, start, length)))
            qkv = attention.qkv(x[:, step])
            out = attention.out(decode_attention_kernel(qkv, place_of(ids[:, step]), rope, keys, values, at))
            torch.testing.assert_close(out, expected[:, step], rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs 9 GB of a GPU's memory")
def test_a_cache_of_more_than_two_billion_numbers() -> None:
    """Offsets are 64 bits wide."""
    device = torch.device("cuda", 0)
    keys, values = (torch.zeros(2**20 + 2, 4, 32, 16, dtype=torch.bfloat16, device=device) for _ in range(2))
    # The row that sees all of its slots.
    small = _inputs(2, 4, 16, 32, device, torch.bfloat16).take(torch.tensor([1], device=device))
    large = replace(small, keys=keys, values=values)
    keys[2**20 + 1], values[2**20 + 1] = small.keys[small.at.rows[0]], small.values[small.at.rows[0]]
    large.at = replace(small.at, rows=torch.full_like(small.at.rows, 2**20 + 1))
    assert torch.equal(large.run(), small.run())
    assert not keys[: 2**20].any()


def test_no_rows(kernel_device: torch.device) -> None:
    nobody = _inputs(3, 2, 16, 8, kernel_device).take(torch.arange(0, device=kernel_device))
    assert nobody.run().shape == (0, 32)


@pytest.mark.parametrize("kernel_runs", [True, False], ids=["kernel", "reference"])
def test_which_one_runs(kernel_runs: bool, kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    for name in ("decode_attention_kernel", "decode_attention_reference"):
        inner = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, name=name, inner=inner: ran.append(name) or inner(*a))
    monkeypatch.setattr(module, "runs_kernel", lambda tensor: kernel_runs)
    inputs = _inputs(9, 2, 16, 20, kernel_device)
    out = torch.full((9, 32), float("nan"), device=kernel_device)
    assert inputs.copy().run(decode_attention, out) is out
    assert ran == ["decode_attention_kernel" if kernel_runs else "decode_attention_reference"]
    torch.testing.assert_close(out, inputs.copy().run(decode_attention), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"qkv": torch.zeros(3, 95)}, r"qkv must be \[3, 96\], not \[3, 95\]", id="qkv"),
        pytest.param({"places": torch.zeros(3, dtype=torch.int32)}, "places must be torch.int64", id="places"),
        pytest.param({"rope": torch.zeros(9, 2, 16)}, r"rope must be \[any, 2, 8\]", id="rope"),
        pytest.param({"values": torch.zeros(6, 2, 8, 16).bfloat16()}, "values must be torch.float32", id="dtypes"),
        pytest.param({"values": torch.zeros(6, 8, 2, 16).transpose(1, 2)}, "the same strides", id="strides"),
        pytest.param({"keys": torch.zeros(6, 2, 8, 16, device="meta")}, "keys must be on cpu", id="device"),
        pytest.param(
            {"keys": torch.zeros(6, 2, 8, 15), "values": torch.zeros(6, 2, 8, 15)}, "must be even", id="odd_head"
        ),
    ],
)
def test_what_the_kernel_would_misread_is_refused(change: dict[str, Tensor], message: str) -> None:
    inputs = replace(_inputs(3, 2, 16, 8, torch.device("cpu")), **change)
    with pytest.raises(ValueError, match=message):
        inputs.run(decode_attention)
