"""The native engine of a GPU against the native engine of a CPU, token for token, in float32.

What a GPU runs compiled and in CUDA graphs runs interpreted here (`kernel_device`); what does not depend on kernels is
tested with their plain-torch references.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from drafted import draft, prompts
from small_model import model_that_answers_one_digit, small_model
from torch import Tensor

from sector.engine.language import tokens
from sector.engine.models.checkpoint import weights_sha256
from sector.engine.models.sector import SectorForCausalLM, new_model
from sector.engine.samplers import gpu as module
from sector.engine.samplers import gpu_steps, make_sampler
from sector.engine.samplers.gpu import Decode, GpuSampler, kernel_model
from sector.engine.samplers.gpu_steps import Stepwise
from sector.engine.samplers.native import NativeSampler
from sector.engine.samplers.protocol import Beginning, Branch, Sampling
from sector.kernels import decode_attention, digit_sampler, megakernel
from sector.kernels.completion import CompletionRequest
from sector.kernels.digit_sampler import Sampled
from sector.kernels.sequences import SequenceField

# Two 32-bit words each, so that neither the key nor the counter is cut.
SEED = (5 << 32) + 77
FIRST_ROW = (3 << 32) + 1_000_000_007
CACHE_BYTES = 4 << 20

DECODES = pytest.mark.parametrize("decode", [Decode.KERNELS, Decode.MEGAKERNEL])
# On a CPU the steps read by the same plain torch whether they verify or not; a GPU has another kernel for it.
COMPILED = (Decode.KERNELS, Decode.MEGAKERNEL, Decode.VERIFY)
TEMPERATURES = pytest.mark.parametrize("temperature", [0.0, 0.8], ids="temperature{}".format)


def _sampling(count: int, temperature: float, seed: int = SEED) -> Sampling:
    return Sampling(temperature, seed, FIRST_ROW + torch.arange(count), stage=3)


def _native(model: SectorForCausalLM, prefix: Tensor, branches: list[Branch], sampling: Sampling) -> list[Tensor]:
    return NativeSampler(model, num_threads=1).sample(prefix, branches, sampling)


def _on(device: torch.device, model: SectorForCausalLM, decode: Decode, **settings: Any) -> GpuSampler:
    return GpuSampler(deepcopy(model).to(device), decode, **{"cache_bytes": CACHE_BYTES, **settings})


def _on_cpu(model: SectorForCausalLM, decode: Decode, **settings: Any) -> GpuSampler:
    return _on(torch.device("cpu"), model, decode, **settings)


def _assert_same(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for output, wanted in zip(outputs, expected, strict=True):
        assert output.dtype == wanted.dtype
        assert output.device == wanted.device
        assert torch.equal(output, wanted)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Kernels run, interpreted if need be; how often each was launched."""
    counts: Counter[str] = Counter()
    for file, name in (
        (decode_attention, "decode_attention_kernel"),
        (digit_sampler, "sample_digits_kernel"),
        (megakernel, "complete_kernel"),
    ):
        launch = getattr(file, name)
        monkeypatch.setattr(file, "runs_kernel", lambda tensor: True)
        monkeypatch.setattr(file, name, lambda *a, name=name, launch=launch: (counts.update([name]), launch(*a))[1])
    return counts


@pytest.mark.parametrize(("digits", "temperature"), [(1, 0.8), (2, 0.0), (5, 0.0), (5, 0.8)])
def test_kernels_decode_like_native(
    kernel_device: torch.device, launches: Counter[str], digits: int, temperature: float
) -> None:
    model, count = small_model(), 33
    prefix, branches = prompts(count, digits)
    expected = _native(model, prefix, branches, _sampling(count, temperature))
    # Rows end at many lengths.
    assert len((expected[0] != tokens.PAD_ID).sum(dim=1).unique()) > 2
    outputs = _on(kernel_device, model, Decode.KERNELS).sample(prefix, branches, _sampling(count, temperature))
    _assert_same(outputs, expected)
    # Of the first pass, tokens are chosen at once.
    assert launches["decode_attention_kernel"] == 2 * (launches["sample_digits_kernel"] - 1) > 0
    assert not launches["complete_kernel"]


@TEMPERATURES
def test_megakernel_decodes_like_native(
    kernel_device: torch.device, launches: Counter[str], temperature: float
) -> None:
    model, count = small_model(num_hidden_layers=1), 5
    prefix, branches = prompts(count, digits=1)
    outputs = _on(kernel_device, model, Decode.MEGAKERNEL).sample(prefix, branches, _sampling(count, temperature))
    _assert_same(outputs, _native(model, prefix, branches, _sampling(count, temperature)))
    assert launches == {"complete_kernel": 1}


@DECODES
@TEMPERATURES
@pytest.mark.parametrize(("digits", "count"), [(1, 1), (2, 33), (5, 48), (13, 20), (60, 3)])
def test_every_length_decodes_like_native(digits: int, count: int, temperature: float, decode: Decode) -> None:
    """Up to 324 slots: contexts of 64, 128 and 512, and buckets that are full, and ones that are not."""
    model = small_model()
    prefix, branches = prompts(count, digits)
    outputs = _on_cpu(model, decode).sample(prefix, branches, _sampling(count, temperature))
    _assert_same(outputs, _native(model, prefix, branches, _sampling(count, temperature)))


@DECODES
def test_any_number_of_branches(decode: Decode) -> None:
    model = small_model()
    prefix, (think, answer) = prompts(9, digits=4)
    sampler = _on_cpu(model, decode)
    for branches in ([answer], [answer, think, answer], [think, Branch(answer.mark, 1), Branch(answer.mark, 9)]):
        outputs = sampler.sample(prefix, branches, _sampling(9, 0.8))
        _assert_same(outputs, _native(model, prefix, branches, _sampling(9, 0.8)))


@DECODES
def test_rows_do_not_depend_on_their_batch(decode: Decode) -> None:
    """A sampler that has served other batches, orders and seeds gives every row its own sample."""
    sampler, count = _on_cpu(small_model(), decode), 9
    prefix, branches = prompts(count, digits=5)
    sampling = _sampling(count, 0.8)
    expected = sampler.sample(prefix, branches, sampling)
    other = sampler.sample(prefix, branches, _sampling(count, 0.8, seed=SEED + 1))
    assert not torch.equal(other[0], expected[0])
    for rows in (torch.tensor([7, 2, 4]), torch.arange(count).flip(0), torch.tensor([5])):
        some = [Branch(branch.mark[rows], branch.length) for branch in branches]
        outputs = sampler.sample(prefix[rows], some, sampling[rows])
        _assert_same(outputs, [output[rows] for output in expected])


@DECODES
@pytest.mark.parametrize("seed", [0, 2**63 + 5, 2**64 - 1])
def test_seeds_are_64_bits(seed: int, decode: Decode) -> None:
    model = small_model()
    prefix, branches = prompts(3, digits=2)
    outputs = _on_cpu(model, decode).sample(prefix, branches, _sampling(3, 0.8, seed))
    _assert_same(outputs, _native(model, prefix, branches, _sampling(3, 0.8, seed)))


def test_batches_are_cut_to_the_cache() -> None:
    """Two layers of keys and values of 64 slots of 32 float32 are 32 KiB a row: four rows of eleven at once."""
    model = small_model()
    prefix, branches = prompts(11, digits=5)
    sampler = _on_cpu(model, Decode.KERNELS, cache_bytes=4 * 32 * 1024 + 500)
    outputs = sampler.sample(prefix, branches, _sampling(11, 0.8))
    _assert_same(outputs, _native(model, prefix, branches, _sampling(11, 0.8)))
    assert Stepwise(kernel_model(model, model.device), 4 * 32 * 1024 + 500).capacity(15, (14, 7)) == 4
    with pytest.raises(ValueError, match="a row of 128 tokens needs 65,536 bytes"):
        _on_cpu(model, Decode.KERNELS, cache_bytes=65_535).sample(*prompts(1, digits=13), _sampling(1, 0.0))


def test_megakernel_batches_are_cut_to_what_it_can_count(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    complete = module.complete
    monkeypatch.setattr(
        module, "complete", lambda model, request: (sizes.append(len(request.rows)), complete(model, request))[1]
    )
    # Two branches of the slots of a prefix, 15, and the longer completion, 14.
    monkeypatch.setattr(module, "_MAX_TOKENS", 4 * 2 * (15 + 14))
    model = small_model()
    prefix, branches = prompts(11, digits=5)
    outputs = _on_cpu(model, Decode.MEGAKERNEL).sample(prefix, branches, _sampling(11, 0.8))
    _assert_same(outputs, _native(model, prefix, branches, _sampling(11, 0.8)))
    assert sizes == [4, 4, 3]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Of every step, the room for sequences and how many there are."""
    taken: list[tuple[int, int]] = []
    advance = Stepwise._advance

    def counted(self: Stepwise, state: Tensor, *args: Any) -> None:
        taken.append((state.shape[1], int((state[SequenceField.ROW] >= 0).sum())))
        advance(self, state, *args)

    monkeypatch.setattr(Stepwise, "_advance", counted)
    return taken


def test_finished_sequences_leave(steps: list[tuple[int, int]]) -> None:
    model, count = small_model(), 100
    prefix, branches = prompts(count, digits=20)
    outputs = _on_cpu(model, Decode.KERNELS, cache_bytes=2 * CACHE_BYTES).sample(
        prefix, branches, _sampling(count, 0.0)
    )
    lengths = torch.cat([(output != tokens.PAD_ID).sum(dim=1) for output in outputs])
    # The first token comes with the prompt.
    assert len(steps) == 44 - 1
    for step, (room, live) in enumerate(steps):
        assert live == int((lengths > step + 1).sum())
        last_look = step - step % gpu_steps.LOOK_EVERY
        assert room == gpu_steps._bucket(int((lengths > last_look + 1).sum()))
    assert steps[0][0] == 256
    assert steps[-1][0] < 128


def test_decoding_ends_with_the_last_sequence(steps: list[tuple[int, int]]) -> None:
    model = model_that_answers_one_digit()
    prefix, branches = prompts(5, digits=40)
    outputs = _on_cpu(model, Decode.KERNELS).sample(prefix, branches, _sampling(5, 0.0))
    for output in outputs:
        assert (tokens.class_of(output[:, 0]) == 3).all()
        assert tokens.is_eos(output[:, 1]).all()
        assert (output[:, 2:] == tokens.PAD_ID).all()
    assert [live for _, live in steps] == [10] + [0] * (gpu_steps.LOOK_EVERY - 1)


@TEMPERATURES
@pytest.mark.parametrize(
    "kinds",
    [
        ("right",) * 2,
        ("wrong",) * 2,
        ("right_to_a_point",) * 2,
        ("runs_on",) * 2,
        ("short", "none"),
        ("empty", "right_to_a_point"),
    ],
    ids="-".join,
)
def test_drafts_change_no_token(kinds: tuple[str, str], temperature: float) -> None:
    """In three batches, so that each takes its own rows of a draft."""
    model, count = small_model(), 40
    prefix, branches = prompts(count, digits=5)
    sampling = _sampling(count, temperature)
    expected = _native(model, prefix, branches, sampling)
    drafted = [
        Branch(branch.mark, branch.length, draft(kind, right))
        for branch, kind, right in zip(branches, kinds, expected, strict=True)
    ]
    for cache_bytes in (CACHE_BYTES, 16 * 32 * 1024):
        outputs = _on_cpu(model, Decode.KERNELS, cache_bytes=cache_bytes).sample(prefix, drafted, sampling)
        _assert_same(outputs, expected)
    _assert_same(_on_cpu(model, Decode.MEGAKERNEL).sample(prefix, drafted, sampling), expected)


def test_drafts_save_the_steps_that_they_foresee(steps: list[tuple[int, int]]) -> None:
    sampler, (prefix, branches) = _on_cpu(small_model(), Decode.KERNELS), prompts(9, digits=5)
    expected = sampler.sample(prefix, branches, _sampling(9, 0.0))
    assert len(steps) == 13
    steps.clear()
    right = [Branch(branch.mark, branch.length, output) for branch, output in zip(branches, expected, strict=True)]
    sampler.sample(prefix, right, _sampling(9, 0.0))
    assert not steps
    all_but_three = [Branch(branch.mark, branch.length, branch.draft[:, :-3]) for branch in right]
    sampler.sample(prefix, all_but_three, _sampling(9, 0.0))
    # One of the three comes with the draft.
    assert len(steps) == 2


@pytest.mark.parametrize(
    ("sizes", "dtype", "rows"),
    [
        # 4 GiB over the bytes of a token and the 64 slots of a row: (256, 64) is the preset tiny, (1536, 384) base.
        ((256, 64), torch.float32, 2**32 // 3856 // 64),
        ((256, 64), torch.bfloat16, 2**32 // 2064 // 64),
        ((1536, 384), torch.float32, 2**32 // 23_056 // 64),
        ((1536, 384), torch.bfloat16, 2**32 // 12_304 // 64),
    ],
)
def test_rows_are_limited_by_the_bytes_of_activations(sizes: tuple[int, int], dtype: torch.dtype, rows: int) -> None:
    features, hidden = sizes
    network = small_model(hidden_size=hidden, intermediate_size=features, num_attention_heads=hidden // 16).to(dtype)
    model = kernel_model(network, torch.device("meta"))
    # A cache that is never the limit.
    assert Stepwise(model, 1 << 40).capacity(30, (20, 10)) == rows
    assert Stepwise(model, 1 << 40, activation_bytes=1 << 30).capacity(30, (20, 10)) == pytest.approx(rows / 4, abs=1)
    # At least a row is read, and at most the rows that a grid has room for.
    assert Stepwise(model, 1 << 40, activation_bytes=1).capacity(30, (20, 10)) == 1
    assert Stepwise(model, 1 << 40, activation_bytes=1 << 60).capacity(30, (20, 10)) == 65_535


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Of every first pass of steps, its rows and the tokens of a row; beginnings are kept for any count of rows."""
    monkeypatch.setattr(gpu_steps, "_LEAST_REUSED_ROWS", 1)
    sizes: list[tuple[int, int]] = []
    read = Stepwise._first_pass

    def counted(self: Stepwise, ids: Tensor, *args: Any) -> Tensor:
        sizes.append((ids.shape[0], ids.shape[1]))
        return read(self, ids, *args)

    monkeypatch.setattr(Stepwise, "_first_pass", counted)
    return sizes


def _shorter(prefix: Tensor, digits: int, drop: int) -> Tensor:
    """Return prefixes of problems of `drop` digits fewer: both operands without their last ones."""
    columns = torch.arange(prefix.shape[1])
    is_left = (columns <= digits - drop) | ((columns > digits) & (columns <= 2 * digits + 2 - drop))
    return prefix[:, is_left | (columns > 2 * digits + 2)]


@TEMPERATURES
def test_the_beginning_of_a_chain_is_read_once(reads: list[tuple[int, int]], temperature: float) -> None:
    model, digits, count = small_model(), 6, 20
    prefix, branches = prompts(count, digits)
    sampler, sampling, beginning = _on_cpu(model, Decode.KERNELS), _sampling(count, temperature), Beginning(digits)
    # `< a` without its last digit at first, and without another one in each call after.
    for drop, kept in ((0, 0), (1, 6), (2, 5), (3, 4)):
        current = _shorter(prefix, digits, drop)
        _assert_same(
            sampler.sample(current, branches, sampling, beginning), _native(model, current, branches, sampling)
        )
        assert reads[-1] == (count, current.shape[1] - kept + len(branches))


def test_no_beginning_is_taken_from_other_rows_weights_or_chains(reads: list[tuple[int, int]]) -> None:
    model, digits, count = small_model(), 6, 20
    prefix, branches = prompts(count, digits)
    other = prompts(count + 1, digits)[0][1:]
    later, sampling = _shorter(prefix, digits, 1), _sampling(count, 0.0)
    whole = later.shape[1] + len(branches)

    def tokens_read(between: Callable[[GpuSampler], object], second: Tensor = later, **settings: int) -> int:
        sampler, beginning = _on_cpu(model, Decode.KERNELS, **settings), Beginning(digits)
        sampler.sample(prefix, branches, sampling, beginning)
        between(sampler)
        outputs = sampler.sample(second, branches, sampling, beginning)
        _assert_same(outputs, _native(model, second, branches, sampling))
        return reads[-1][1]

    assert tokens_read(lambda _: None) == whole - digits
    # A call of another chain, without or with a beginning of its own.
    assert tokens_read(lambda sampler: sampler.sample(other, branches, sampling)) == whole
    assert tokens_read(lambda sampler: sampler.sample(other, branches, sampling, Beginning(digits))) == whole
    assert tokens_read(lambda sampler: sampler.load(model)) == whole
    # One row differs in its third token: two are kept.
    changed = later.clone()
    changed[7, 2] += 1 if changed[7, 2] % tokens.NUM_LOCAL == 0 else -1
    assert tokens_read(lambda _: None, changed) == whole - 2
    # Rows that take turns in the cache.
    assert tokens_read(lambda _: None, cache_bytes=16 * 32 * 1024) == whole


@pytest.mark.parametrize(
    ("count", "room"), [(1, 32), (32, 32), (33, 48), (48, 48), (49, 64), (64, 64), (65, 96), (97, 128), (1000, 1024)]
)
def test_buckets_have_room(count: int, room: int) -> None:
    assert gpu_steps._bucket(count) == room


def test_a_step_asks_the_device_nothing(launches: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be captured needs no values: tensors without data will do, and any look at them raises."""
    monkeypatch.setattr(decode_attention, "decode_attention_kernel", lambda *arguments: arguments[-1])
    monkeypatch.setattr(
        digit_sampler,
        "sample_digits_kernel",
        lambda hidden, *rest: rest[-2] or Sampled.empty(len(hidden), hidden.device),
    )
    step = Stepwise(kernel_model(small_model(), torch.device("meta")), CACHE_BYTES)
    context = step._memory.context(40)
    for temperature in (0.0, 0.8):
        step._advance(torch.zeros(len(SequenceField), 32, dtype=torch.int64, device="meta"), context, temperature)
    prompt, row = (torch.zeros(shape, dtype=torch.int64, device="meta") for shape in ((2, 3), (2,)))
    with pytest.raises(NotImplementedError, match="nonzero"):
        step.complete(CompletionRequest(prompt, prompt[:, :1], (2,), row), [None])


@DECODES
def test_weights_are_a_copy_and_can_be_replaced(decode: Decode) -> None:
    model = small_model()
    prefix, branches = prompts(9, digits=5)
    sampler = _on_cpu(model, decode)
    before = sampler.sample(prefix, branches, _sampling(9, 0.0))
    fingerprint, addresses = weights_sha256(model), [tensor.data_ptr() for tensor in sampler._model.weights]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1.5)
    _assert_same(sampler.sample(prefix, branches, _sampling(9, 0.0)), before)
    assert sampler.weights_sha256 == fingerprint
    sampler.load(model)
    assert sampler.weights_sha256 == weights_sha256(model) != fingerprint
    after = _native(model, prefix, branches, _sampling(9, 0.0))
    _assert_same(sampler.sample(prefix, branches, _sampling(9, 0.0)), after)
    assert not torch.equal(after[0], before[0])
    # Captured graphs read the memory that they were captured with.
    assert [tensor.data_ptr() for tensor in sampler._model.weights] == addresses


@DECODES
def test_another_model_may_follow(decode: Decode) -> None:
    sampler, other = _on_cpu(small_model(), decode), small_model(num_hidden_layers=1, intermediate_size=32)
    prefix, branches = prompts(9, digits=5)
    sampler.sample(prefix, branches, _sampling(9, 0.0))
    sampler.load(other)
    _assert_same(
        sampler.sample(prefix, branches, _sampling(9, 0.0)), _native(other, prefix, branches, _sampling(9, 0.0))
    )


@DECODES
def test_prompts_need_not_be_contiguous(decode: Decode) -> None:
    model = small_model()
    prefix, (_, answer) = prompts(1, digits=5)
    sampling = _sampling(6, 0.8)
    outputs = _on_cpu(model, decode).sample(
        prefix.expand(6, -1), [Branch(answer.mark.expand(6, -1), answer.length)], sampling
    )
    repeated = prefix.repeat(6, 1), [Branch(answer.mark.repeat(6, 1), answer.length)]
    _assert_same(outputs, _native(model, *repeated, sampling))


@DECODES
def test_no_rows_give_no_rows(decode: Decode) -> None:
    prefix, branches = prompts(1, digits=5)
    none = [Branch(branch.mark[:0], branch.length) for branch in branches]
    outputs = _on_cpu(small_model(), decode).sample(prefix[:0], none, _sampling(0, 0.0))
    assert [output.shape for output in outputs] == [(0, branch.length) for branch in branches]


def test_steps_decode_unless_the_megakernel_is_named() -> None:
    assert GpuSampler(small_model(), cache_bytes=CACHE_BYTES).decode is Decode.KERNELS
    assert GpuSampler(small_model(), Decode.MEGAKERNEL).decode is Decode.MEGAKERNEL
    # Heads of 24 are none of the megakernel's.
    odd = small_model(hidden_size=48)
    with pytest.raises(ValueError, match="power of two"):
        GpuSampler(odd, Decode.MEGAKERNEL)
    prefix, branches = prompts(5, digits=4)
    _assert_same(
        GpuSampler(odd, cache_bytes=CACHE_BYTES).sample(prefix, branches, _sampling(5, 0.8)),
        _native(odd, prefix, branches, _sampling(5, 0.8)),
    )


def test_a_model_on_the_cpu_gets_plain_torch() -> None:
    assert type(make_sampler("native", small_model())) is NativeSampler


def _assert_greedy_up_to_rounding(model: SectorForCausalLM, decode: Decode, count: int, digits: int) -> None:
    """No token that the model was sure not to choose, by its logits in float64 on the same weights.

    In a layer of stepwise decoding these are rounded: the inputs of four products and their results, of which the
    square doubles one error; and keys, values and queries. With the last norm that is 13 L + 1 errors of at most one
    unit each and of a gain of about one, for a norm precedes every product. They are independent, so that their squares
    add. Both of two logits may be off, and none of some thousand by more than five times the mean error.
    """
    prefix, branches = prompts(count, digits)
    cache_bytes = CACHE_BYTES << (6 if model.device.type == "cuda" else 0)
    outputs = GpuSampler(model, decode, cache_bytes).sample(prefix, branches, _sampling(count, 0.0))
    exact = deepcopy(model).cpu().double()
    unit = 2.0**-9 if model.dtype is torch.bfloat16 else 2.0**-24
    layers = model.config.num_hidden_layers
    for branch, output in zip(branches, outputs, strict=True):
        ids = torch.cat([prefix, branch.mark, output], dim=1)
        with torch.no_grad():
            logits = exact.class_logits(exact.hidden_states(ids), ids)[:, -output.shape[1] - 1 : -1]
        said = output != tokens.PAD_ID
        chosen = logits.gather(2, tokens.class_of(output).unsqueeze(2)).squeeze(2)[said]
        mean = logits[logits.isfinite()].square().mean().sqrt()
        short = logits.amax(dim=2)[said] - chosen
        assert float(short.max()) <= 2 * 5 * unit * (13 * layers + 1) ** 0.5 * mean
        assert float((short == 0).float().mean()) > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_greedy_tokens_are_right_up_to_rounding(
    kernel_device: torch.device, launches: Counter[str], dtype: torch.dtype
) -> None:
    _assert_greedy_up_to_rounding(small_model().to(kernel_device, dtype), Decode.KERNELS, count=33, digits=2)
    assert launches["decode_attention_kernel"] > 0


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("preset", "decode"),
    # The stream of base is too wide for the kernel that verifies.
    [(preset, way) for preset in ("tiny", "base") for way in COMPILED if (preset, way) != ("base", Decode.VERIFY)],
)
def test_presets_are_right_up_to_rounding_on_a_gpu(preset: str, dtype: torch.dtype, decode: Decode) -> None:
    model = new_model(preset, seed=1).to("cuda", dtype)
    _assert_greedy_up_to_rounding(model, decode, count=500 if preset == "tiny" else 60, digits=12)


def _assert_same_but_for_ties(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Logits closer than rounding are ties: among some hundred thousand tokens, enough for a row in 200 to differ."""
    for output, wanted in zip(outputs, expected, strict=True):
        assert (output == wanted).all(dim=1).float().mean() >= 0.995


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("decode", COMPILED)
@TEMPERATURES
def test_a_gpu_decodes_like_a_cpu(temperature: float, decode: Decode) -> None:
    """Lengths and batches in turn, so that graphs are replayed after others have run, and with other weights."""
    model = small_model()
    sampler = GpuSampler(deepcopy(model).cuda(), decode, CACHE_BYTES << 4)
    for scale in (1.0, 1.2):
        with torch.no_grad():
            model.head.weight.mul_(scale)
        # The trainer's model need not be where the engine is.
        sampler.load(model)
        for digits, count in ((1, 1), (7, 1000), (30, 40), (7, 700), (2, 300), (7, 1000)):
            prefix, branches = prompts(count, digits)
            sampling = _sampling(count, temperature)
            expected = _native(model, prefix, branches, sampling)
            _assert_same_but_for_ties(sampler.sample(prefix, branches, sampling), expected)
            drafted = [
                Branch(branch.mark, branch.length, draft("right_to_a_point", right))
                for branch, right in zip(branches, expected, strict=True)
            ]
            _assert_same_but_for_ties(sampler.sample(prefix, drafted, sampling), expected)


@pytest.fixture
def as_in_production() -> Iterator[None]:
    """No deterministic mode of torch, with which other kernels would be captured than runs capture."""
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(True, warn_only=True)


@pytest.mark.gpu
@GPU
def test_graphs_are_captured_once(as_in_production: None) -> None:
    model = small_model()
    sampler = GpuSampler(deepcopy(model).cuda(), Decode.KERNELS, CACHE_BYTES << 4)
    prefix, branches = prompts(500, digits=9)
    captured: list[int] = []
    for seed in range(3):
        outputs = sampler.sample(prefix, branches, _sampling(500, 0.0, seed))
        _assert_same_but_for_ties(outputs, _native(model, prefix, branches, _sampling(500, 0.0, seed)))
        assert sampler._stepwise is not None
        captured.append(len(sampler._stepwise._steps))
        assert outputs[0].device == prefix.device
    assert captured[0] == captured[1] == captured[2] > 0


@pytest.mark.gpu
@GPU
def test_a_model_on_a_gpu_gets_kernels() -> None:
    sampler = make_sampler("native", new_model("tiny", seed=1).cuda())
    assert isinstance(sampler, GpuSampler)
    assert (sampler.name, sampler.decode) == ("native", Decode.KERNELS)
