"""The digit sampler: the kernel against plain torch, plain torch against the engine, and samples against their law."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chisquare
from torch import Tensor

from sector.engine.language import tokens
from sector.engine.models.sector import new_model
from sector.engine.samplers.native_model import NativeModel
from sector.engine.samplers.protocol import Sampling
from sector.kernels import digit_sampler
from sector.kernels.digit_sampler import Head, Sampled, sample_digits, sample_digits_kernel, sample_digits_reference
from sector.kernels.philox import Stream
from sector.kernels.token_table import TokenTable

SEED = 2**40 + 17


def _head(size: int, dtype: torch.dtype, device: torch.device) -> Head:
    draws = torch.Generator().manual_seed(size)
    norm, classes = torch.rand(size, generator=draws) + 0.5, torch.randn(32, size, generator=draws) * size**-0.5
    return Head(norm.to(device, dtype), classes.to(device, dtype), 1e-6)


def _inputs(count: int, size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Stream]:
    """Hidden states of every scale, ids of every class and place, and a stream whose coordinates all differ."""
    draws = torch.Generator().manual_seed(count)
    hidden = torch.randn(count, size, generator=draws) * torch.rand(count, 1, generator=draws) * 4
    ids = torch.randint(0, tokens.VOCAB_SIZE, (count,), generator=draws)
    # Every class and the last places come up, whatever the batch.
    edges = torch.cat([torch.arange(tokens.NUM_CLASSES), torch.arange(tokens.VOCAB_SIZE - 16, tokens.VOCAB_SIZE)])
    ids[: len(edges)] = edges[:count]
    rows = torch.randint(0, 2**40, (count,), generator=draws)
    stages, steps = torch.arange(count) % 512, torch.arange(count) % 67
    stream = Stream(*(tensor.to(device) for tensor in (torch.tensor([SEED]), rows, stages, steps)))
    return hidden.to(device, dtype), ids.to(device), stream


def _rounding(hidden: Tensor, head: Head) -> Tensor:
    """`[B]` bound on the error of a logit: a dot product of D terms, each of two roundings and a norm's six or so.

    Any order of summation stays within (D + 8) * 2^-24 * sum |terms| (Higham 2002, section 3.1).
    """
    normed = F.rms_norm(hidden.double(), (hidden.shape[1],), head.norm.double(), head.eps)
    return (hidden.shape[1] + 8) * 2.0**-24 * (normed.abs() @ head.classes.double().abs().T).amax(dim=1)


def _gap(hidden: Tensor, ids: Tensor, head: Head, table: TokenTable, temperature: float, stream: Stream) -> Tensor:
    """`[B]` by how much the best score leads."""
    normed = F.rms_norm(hidden.double(), (hidden.shape[1],), head.norm.double(), head.eps)
    scores = (normed @ head.classes.double().T).masked_fill(~table.may_follow(ids), float("-inf"))
    if temperature > 0:
        scores = scores / temperature + stream.gumbel(32)
    best = scores.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


def _poisoned(count: int, device: torch.device) -> Sampled:
    return Sampled(
        torch.full((count + 3,), -7, device=device)[:count],
        torch.full((count + 3,), float("nan"), device=device)[:count],
        torch.ones(count + 3, dtype=torch.bool, device=device)[:count],
    )


@pytest.mark.parametrize("temperature", [0.0, 0.7], ids=["greedy", "sampled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("count", "size"), [(1, 64), (31, 24), (32, 65), (33, 64), (255, 384), (256, 63), (257, 127), (513, 64)], ids=str
)
def test_the_kernel_is_the_reference(
    count: int, size: int, dtype: torch.dtype, temperature: float, kernel_device: torch.device
) -> None:
    """Both dtypes are summed in float32, so the tolerance is float32's for both."""
    head, table = _head(size, dtype, kernel_device), tokens.kernel_table(kernel_device)
    hidden, ids, stream = _inputs(count, size, dtype, kernel_device)
    out = sample_digits_kernel(hidden, ids, head, table, temperature, stream, _poisoned(count, kernel_device))
    expected = sample_digits_reference(hidden, ids, head, table, temperature, stream)
    error = 2 * _rounding(hidden, head)
    # Where the lead is within both errors either choice is right; 1e-6 is the noise's own rounding.
    clear = _gap(hidden, ids, head, table, temperature, stream) > 2 * error / (temperature or 1) + 4e-6
    assert clear.double().mean() > 0.99
    assert torch.equal(out.ids[clear], expected.ids[clear])
    assert torch.equal(out.stopped[clear], expected.stopped[clear])
    # A log-probability is a logit less a logarithm of a sum: twice the error, and some roundings of values below 16.
    off = (out.logprobs.double() - expected.logprobs.double()).abs()
    assert bool((off <= 2 * error + 8 * 2.0**-20)[clear].all())
    # Behind the rows nothing was written.
    whole = out.ids.untyped_storage().nbytes() // 8
    assert out.ids.as_strided((whole,), (1,))[count:].tolist() == [-7] * 3


@pytest.mark.parametrize("temperature", [0.0, 0.9], ids=["greedy", "sampled"])
def test_the_reference_is_the_engine(temperature: float) -> None:
    model = new_model("tiny", 3).eval()
    # The engine multiplies the norm's weights into the head.
    model.norm.weight.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(0))
    hidden, ids, _ = _inputs(200, 64, torch.float32, torch.device("cpu"))
    rows, steps = torch.arange(200) + 2**33, torch.arange(200) % 7
    noise = Sampling(temperature, SEED, rows, 40).gumbel(1, rows, steps, tokens.NUM_CLASSES) if temperature else None
    chosen = NativeModel(model).choose(hidden, ids, temperature, noise)
    stream = Stream(torch.tensor([SEED]), rows, torch.full((200,), 41), steps)
    head = Head(model.norm.weight.detach(), model.head.weight.detach(), model.config.rms_norm_eps)
    sampled = sample_digits(hidden, ids, head, tokens.kernel_table(), temperature, stream)
    assert torch.equal(sampled.ids, chosen)
    assert torch.equal(sampled.stopped, tokens.is_eos(sampled.ids) | (sampled.ids == tokens.PAD_ID))


def test_of_equal_scores_the_lowest_class_wins(kernel_device: torch.device) -> None:
    head, table = _head(64, torch.float32, kernel_device), tokens.kernel_table(kernel_device)
    ids = torch.arange(tokens.VOCAB_SIZE, device=kernel_device)[-600:]
    out = sample_digits_kernel(torch.zeros(600, 64, device=kernel_device), ids, head, table)
    legal = table.may_follow(ids)
    assert torch.equal(out.ids, table.next_ids(ids, legal.int().argmax(dim=1)))
    torch.testing.assert_close(out.logprobs, -legal.sum(dim=1).float().log(), rtol=0, atol=2.0**-21)


def test_a_finished_row_yields_padding_for_certain(kernel_device: torch.device) -> None:
    head, table = _head(64, torch.float32, kernel_device), tokens.kernel_table(kernel_device)
    hidden, _, stream = _inputs(40, 64, torch.float32, kernel_device)
    ids = torch.tensor([tokens.PAD_ID, *tokens.eos_ids()[:39]], device=kernel_device)
    out = sample_digits_kernel(hidden, ids, head, table, 1.0, stream)
    assert (out.ids == tokens.PAD_ID).all() and out.stopped.all()
    assert (out.logprobs == 0).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0], ids=str)
def test_samples_follow_their_law(temperature: float, kernel_device: torch.device) -> None:
    """Chi-square of 2,048 samples a context, five contexts of different legal classes; the seed is fixed.

    A right sampler fails one seed in 2,000 (5 contexts at p = 1e-4 each); noise shared between lanes or steps fails.
    """
    count = 2048
    head, table = _head(64, torch.float32, kernel_device), tokens.kernel_table(kernel_device)
    contexts = [tokens.START - 16, 3 + 16 * 4, tokens.END + 16 * 4, tokens.CARRY_1 + 16 * 4, 9 + 16 * tokens.MAX_PLACE]
    hidden = _inputs(len(contexts), 64, torch.float32, kernel_device)[0]
    for index, context in enumerate(contexts):
        # Half of the samples differ in the row, half in the step.
        rows = torch.arange(count, device=kernel_device) // 2 + index * count
        steps = torch.arange(count, device=kernel_device) % 2
        stream = Stream(torch.tensor([SEED], device=kernel_device), rows, torch.zeros_like(rows), steps)
        ids = torch.full_like(rows, context)
        same = hidden[index].expand(count, -1).contiguous()
        out = sample_digits_kernel(same, ids, head, table, temperature, stream)
        normed = F.rms_norm(hidden[index].double(), (64,), head.norm.double(), head.eps)
        logits = (head.classes.double() @ normed).masked_fill(~table.may_follow(ids[0]), float("-inf"))
        law = (logits / temperature).softmax(dim=0).cpu()
        seen = torch.bincount(table.class_of(out.ids), minlength=32).cpu()
        assert int(seen[law == 0].sum()) == 0
        # Among the classes that come up often enough for the test, the law is again multinomial.
        likely = law * count >= 5
        expected = law[likely] / law[likely].sum() * seen[likely].sum()
        assert chisquare(seen[likely].double(), expected).pvalue > 1e-4


def test_a_row_does_not_depend_on_its_batch(kernel_device: torch.device) -> None:
    head, table = _head(64, torch.float32, kernel_device), tokens.kernel_table(kernel_device)
    hidden, ids, stream = _inputs(300, 64, torch.float32, kernel_device)
    together = sample_digits_kernel(hidden, ids, head, table, 0.8, stream)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1)).to(kernel_device)
    for rows in (order[:1], order[1:17], order[17:150], order[150:]):
        some = replace(stream, rows=stream.rows[rows], stages=stream.stages[rows], steps=stream.steps[rows])
        apart = sample_digits_kernel(hidden[rows], ids[rows], head, table, 0.8, some)
        assert torch.equal(apart.ids, together.ids[rows])
        # An interpreted matrix product may round by its shape.
        torch.testing.assert_close(apart.logprobs, together.logprobs[rows], rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("poison", [float("nan"), float("inf")], ids=str)
def test_a_poisoned_row_harms_no_other(poison: float, kernel_device: torch.device) -> None:
    head, table = _head(65, torch.float32, kernel_device), tokens.kernel_table(kernel_device)
    hidden, ids, stream = _inputs(37, 65, torch.float32, kernel_device)
    clean = sample_digits_kernel(hidden, ids, head, table, 0.8, stream)
    others = torch.arange(37, device=kernel_device) != 20
    hidden[20] = poison
    harmed = sample_digits_kernel(hidden, ids, head, table, 0.8, stream)
    assert torch.equal(harmed.ids[others], clean.ids[others])
    assert torch.equal(harmed.logprobs[others], clean.logprobs[others])


def test_rows_may_be_strided_and_ids_overwritten(kernel_device: torch.device) -> None:
    """The last token of a longer pass, decoded in place."""
    head, table = _head(64, torch.float32, kernel_device), tokens.kernel_table(kernel_device)
    hidden, ids, _ = _inputs(50, 64, torch.float32, kernel_device)
    longer = torch.full((50, 3, 64), float("nan"), device=kernel_device)
    longer[:, -1] = hidden
    expected = sample_digits_kernel(hidden, ids, head, table)
    out = replace(Sampled.empty(50, kernel_device), ids=ids)
    sample_digits_kernel(longer[:, -1], ids, head, table, out=out)
    assert torch.equal(ids, expected.ids) and torch.equal(out.logprobs, expected.logprobs)


def test_no_rows(kernel_device: torch.device) -> None:
    head, table = _head(64, torch.float32, kernel_device), tokens.kernel_table(kernel_device)
    out = sample_digits_kernel(*_inputs(0, 64, torch.float32, kernel_device)[:2], head, table)
    assert out.ids.shape == out.logprobs.shape == out.stopped.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("run", [sample_digits_kernel, sample_digits_reference], ids=["kernel", "reference"])
def test_an_update_is_added_to_the_states(
    run: Callable[..., Sampled], dtype: torch.dtype, kernel_device: torch.device
) -> None:
    head, table = _head(90, dtype, kernel_device), tokens.kernel_table(kernel_device)
    hidden, ids, stream = _inputs(40, 90, torch.float32, kernel_device)
    update = (2 * _inputs(41, 90, torch.float32, kernel_device)[0][1:]).to(dtype)
    out = run(hidden, ids, head, table, 0.8, stream, update=update)
    expected = run(hidden + update.float(), ids, head, table, 0.8, stream)
    # On a GPU the compiler fuses the addition with what follows, so log-probabilities round otherwise.
    torch.testing.assert_close(out.logprobs, expected.logprobs, rtol=1e-5, atol=1e-5)
    assert torch.equal(out.ids, expected.ids)
    assert not torch.equal(out.ids, run(hidden, ids, head, table, 0.8, stream).ids)


@pytest.mark.parametrize("kernel_runs", [True, False], ids=["kernel", "reference"])
def test_which_one_runs(kernel_runs: bool, kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel on a GPU, the reference elsewhere; both write where they are told."""
    ran = []
    for name in ("sample_digits_kernel", "sample_digits_reference"):
        inner = getattr(digit_sampler, name)
        monkeypatch.setattr(digit_sampler, name, lambda *a, name=name, inner=inner: ran.append(name) or inner(*a))
    monkeypatch.setattr(digit_sampler, "runs_kernel", lambda tensor: kernel_runs)
    head, table = _head(64, torch.float32, kernel_device), tokens.kernel_table(kernel_device)
    hidden, ids, stream = _inputs(9, 64, torch.float32, kernel_device)
    out = _poisoned(9, kernel_device)
    assert sample_digits(hidden, ids, head, table, 0.8, stream, out) is out
    assert ran == ["sample_digits_kernel" if kernel_runs else "sample_digits_reference"]
    assert torch.equal(out.ids, sample_digits(hidden, ids, head, table, 0.8, stream).ids)
    assert not out.logprobs.isnan().any()


def test_the_cpu_runs_the_reference() -> None:
    assert not digit_sampler.runs_kernel(torch.zeros(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"hidden": torch.zeros(4, 64).double()}, "hidden must be torch.float32 or", id="dtype"),
        pytest.param({"hidden": torch.zeros(64, 4).T}, "adjacent components", id="strides"),
        pytest.param({"ids": torch.zeros(5, dtype=torch.int64)}, r"ids must be \[4\], not \[5\]", id="rows"),
        pytest.param({"ids": torch.zeros(4, dtype=torch.int32)}, "ids must be torch.int64", id="ids"),
        pytest.param(
            {"head": Head(torch.ones(64), torch.zeros(31, 64), 1e-6)}, r"head.classes must be \[32, 64\]", id="head"
        ),
        pytest.param({"ids": torch.zeros(4, dtype=torch.int64, device="meta")}, "ids must be on cpu", id="device"),
        pytest.param({"update": torch.zeros(3, 64)}, r"update must be \[4, 64\]", id="update"),
        pytest.param({"temperature": -1.0}, "must not be negative", id="temperature"),
        pytest.param({"temperature": 1.0}, "needs a stream", id="stream"),
        pytest.param({"out": Sampled.empty(5, torch.device("cpu"))}, r"out.ids must be \[4\]", id="out"),
    ],
)
def test_what_the_kernel_would_misread_is_refused(change: dict[str, object], message: str) -> None:
    good = {
        "hidden": torch.zeros(4, 64),
        "ids": torch.zeros(4, dtype=torch.int64),
        "head": _head(64, torch.float32, torch.device("cpu")),
        "table": tokens.kernel_table(),
    }
    with pytest.raises(ValueError, match=message):
        sample_digits(**{**good, **change})
