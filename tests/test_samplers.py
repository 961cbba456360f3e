"""The engines: native against transformers' own `generate`, token for token, in float32."""

from collections.abc import Sequence

import pytest
import torch
from drawn import assert_drawn_from
from torch import Tensor

from sector.engine.errors import InputError
from sector.engine.language import place_layout, tokens
from sector.engine.language.operands import Problems, draw_problems
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.models.checkpoint import weights_sha256
from sector.engine.models.sector import SectorForCausalLM, new_model
from sector.engine.samplers import make_sampler, native
from sector.engine.samplers.hf import HuggingFaceSampler
from sector.engine.samplers.native import NativeSampler
from sector.engine.samplers.native_model import NativeModel
from sector.engine.samplers.protocol import Beginning, Branch, Sampler, Sampling, Savings

DIGITS = 5
ROWS = 9
ENGINES = pytest.mark.parametrize("engine", ["native", "torch", "hf"])
IN_TORCH = Savings(compiled=False)
WAYS = pytest.mark.parametrize("savings", [Savings(), IN_TORCH], ids=["compiled", "torch"])
TEMPERATURES = pytest.mark.parametrize("temperature", [0.0, 0.7], ids="temperature{}".format)


@pytest.fixture(scope="module")
def model() -> SectorForCausalLM:
    # Larger weights than a fresh model's, so that rows differ and end at different lengths.
    return new_model("tiny", seed=1, initializer_range=0.25).eval()


@pytest.fixture(scope="module")
def layout() -> PlaceLayout:
    return PlaceLayout(variant=torch.arange(ROWS) % tokens.NUM_SHIFTS)


@pytest.fixture(scope="module")
def prefix(layout: PlaceLayout) -> Tensor:
    return layout.prefix_ids(draw_problems(DIGITS, ROWS, torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def branches(layout: PlaceLayout) -> list[Branch]:
    """An answer, a simplification, and an answer cut short."""
    answer, think = (layout.mark_ids(mode, ROWS) for mode in (tokens.ANSWER, tokens.THINK))
    return [
        Branch(answer, place_layout.PlaceLayout().answer_length(DIGITS)),
        Branch(think, place_layout.PlaceLayout().simplification_length(DIGITS)),
        Branch(answer, 3),
    ]


def _sampler(engine: str, model: SectorForCausalLM) -> Sampler:
    """An engine by its name; `torch` is the native one where no compiler is."""
    return NativeSampler(model, savings=IN_TORCH) if engine == "torch" else make_sampler(engine, model)


def _sampling(temperature: float, rows: Tensor | None = None, seed: int = 5, stage: int = 2) -> Sampling:
    return Sampling(temperature, seed, torch.arange(100, 100 + ROWS) if rows is None else rows, stage)


def _with_drafts(branches: Sequence[Branch], drafts: Sequence[Tensor | None]) -> list[Branch]:
    return [Branch(branch.mark, branch.length, draft) for branch, draft in zip(branches, drafts, strict=True)]


def _assert_same(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert [output.tolist() for output in outputs] == [output.tolist() for output in expected]


@pytest.fixture(scope="module")
def expected(model: SectorForCausalLM, prefix: Tensor, branches: list[Branch]) -> dict[float, list[Tensor]]:
    """Return the output of the reference engine, by temperature."""
    sampler = HuggingFaceSampler(model)
    return {temperature: sampler.sample(prefix, branches, _sampling(temperature)) for temperature in (0.0, 0.7)}


def test_the_reference_says_something_worth_comparing(expected: dict[float, list[Tensor]]) -> None:
    for answers, simplifications, short in expected.values():
        assert answers.shape == (ROWS, DIGITS + 2)
        assert short.shape == (ROWS, 3)
        assert len({tuple(row) for row in simplifications.tolist()}) > ROWS // 2
        ends = (simplifications == tokens.PAD_ID).sum(dim=1)
        # Some rows end early and some do not end.
        assert int(ends.max()) > 0
        assert int(ends.min()) == 0
    assert not torch.equal(expected[0.0][0], expected[0.7][0])


@WAYS
@TEMPERATURES
@pytest.mark.parametrize("num_threads", [1, 2, 8, 16], ids="threads{}".format)
def test_native_is_the_reference(
    model: SectorForCausalLM,
    prefix: Tensor,
    branches: list[Branch],
    expected: dict[float, list[Tensor]],
    temperature: float,
    num_threads: int,
    savings: Savings,
) -> None:
    sampler = NativeSampler(model, num_threads=num_threads, savings=savings)
    _assert_same(sampler.sample(prefix, branches, _sampling(temperature)), expected[temperature])


@TEMPERATURES
@pytest.mark.parametrize("tile_tokens", [1, 80, 150, 10_000], ids="tile_tokens{}".format)
@pytest.mark.parametrize("count", [1, 2, 3, ROWS], ids="rows{}".format)
def test_tiles_do_not_show(
    model: SectorForCausalLM,
    prefix: Tensor,
    branches: list[Branch],
    expected: dict[float, list[Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    temperature: float,
    tile_tokens: int,
    count: int,
) -> None:
    monkeypatch.setattr(native, "TILE_TOKENS", tile_tokens)
    some = [Branch(branch.mark[:count], branch.length) for branch in branches]
    sampling = _sampling(temperature)[slice(0, count)]
    outputs = NativeSampler(model, num_threads=1, savings=IN_TORCH).sample(prefix[:count], some, sampling)
    _assert_same(outputs, [output[:count] for output in expected[temperature]])


def _other(ids: Tensor) -> Tensor:
    """Another token of the same place everywhere."""
    return torch.where(tokens.class_of(ids) == 4, ids + 1, tokens.NUM_LOCAL * tokens.place_of(ids) + 4)


def _draft(kind: str, right: Tensor) -> Tensor:
    rows, length = right.shape
    steps = torch.arange(length)
    if kind == "wrong":
        return _other(right)
    if kind == "right_to_a_point":
        return torch.where(steps < torch.arange(rows).unsqueeze(1) % (length + 1), right, _other(right))
    if kind == "one_wrong":
        return torch.where(steps == torch.arange(rows).unsqueeze(1) % length, _other(right), right)
    if kind == "alternating_rows":
        return torch.where(torch.arange(rows).unsqueeze(1) % 2 == 0, right, _other(right))
    if kind == "runs_on":
        # Right to the end of the sequence, and digits where the padding belongs.
        return torch.where(right == tokens.PAD_ID, tokens.NUM_LOCAL + 4, right)
    return right


DRAFTS = pytest.mark.parametrize(
    "kind", ["right", "wrong", "right_to_a_point", "one_wrong", "alternating_rows", "runs_on"]
)


@WAYS
@TEMPERATURES
@DRAFTS
def test_drafts_change_no_token(
    model: SectorForCausalLM,
    prefix: Tensor,
    branches: list[Branch],
    expected: dict[float, list[Tensor]],
    temperature: float,
    kind: str,
    savings: Savings,
) -> None:
    drafts = [_draft(kind, right) for right in expected[temperature]]
    outputs = NativeSampler(model, savings=savings).sample(
        prefix, _with_drafts(branches, drafts), _sampling(temperature)
    )
    _assert_same(outputs, expected[temperature])


@WAYS
@pytest.mark.parametrize("kind", ["right", "wrong", "right_to_a_point"])
@pytest.mark.parametrize("length", range(DIGITS * 2 + 5), ids="length{}".format)
def test_drafts_of_every_length_change_no_token(
    model: SectorForCausalLM,
    prefix: Tensor,
    branches: list[Branch],
    expected: dict[float, list[Tensor]],
    length: int,
    kind: str,
    savings: Savings,
) -> None:
    drafts = [_draft(kind, right)[:, :length] for right in expected[0.0]]
    outputs = NativeSampler(model, savings=savings).sample(prefix, _with_drafts(branches, drafts), _sampling(0.0))
    _assert_same(outputs, expected[0.0])


@WAYS
def test_some_branches_may_have_drafts(
    model: SectorForCausalLM,
    prefix: Tensor,
    branches: list[Branch],
    expected: dict[float, list[Tensor]],
    savings: Savings,
) -> None:
    answers, simplifications, _ = expected[0.0]
    drafts = [None, _draft("one_wrong", simplifications), _draft("right", answers)[:, :2]]
    outputs = NativeSampler(model, savings=savings).sample(prefix, _with_drafts(branches, drafts), _sampling(0.0))
    _assert_same(outputs, expected[0.0])


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of a row in every pass through the model in torch, as they come."""
    lengths: list[int] = []
    forward = NativeModel.forward

    def counted(self: NativeModel, ids: Tensor, *args: object, **options: object) -> Tensor:
        lengths.append(ids.shape[1])
        return forward(self, ids, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(NativeModel, "forward", counted)
    return lengths


def test_a_right_draft_costs_one_pass(
    model: SectorForCausalLM,
    prefix: Tensor,
    branches: list[Branch],
    expected: dict[float, list[Tensor]],
    passes: list[int],
) -> None:
    sampler = NativeSampler(model, num_threads=1, savings=IN_TORCH)
    one = [Branch(branch.mark[:1], branch.length) for branch in branches]
    sampler.sample(prefix[:1], one, _sampling(0.0)[slice(0, 1)])
    undrafted = len(passes)
    passes.clear()
    drafted = _with_drafts(one, [output[:1] for output in expected[0.0]])
    sampler.sample(prefix[:1], drafted, _sampling(0.0)[slice(0, 1)])
    assert len(passes) == 1
    assert undrafted > 10


def _chain(layout: PlaceLayout, length: int) -> list[tuple[Tensor, list[Branch]]]:
    """Prompts of problems that lose a digit at a time, `length` calls of them, with an answer asked of each.

    The digits of the sums stand at other places each time, and row 2 does not go on as it began.
    """
    problems = draw_problems(DIGITS, ROWS, torch.Generator().manual_seed(1))
    asked = []
    for stage in range(length):
        digits = DIGITS - stage
        current = Problems(problems.a[:, :digits].clone(), problems.b[:, :digits], problems.carry)
        if stage:
            current.a[2, 0] = (current.a[2, 0] + stage) % 10
        answer = Branch(layout.mark_ids(tokens.ANSWER, ROWS), place_layout.PlaceLayout().answer_length(digits))
        think = Branch(layout.mark_ids(tokens.THINK, ROWS), place_layout.PlaceLayout().simplification_length(digits))
        asked.append((layout.prefix_ids(current), [think, answer] if stage % 2 == 0 else [answer]))
    return asked


@ENGINES
@TEMPERATURES
@pytest.mark.parametrize("tile_tokens", [1, 60, 10_000], ids="tile_tokens{}".format)
def test_a_shared_beginning_changes_no_token(
    model: SectorForCausalLM,
    layout: PlaceLayout,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    temperature: float,
    tile_tokens: int,
) -> None:
    monkeypatch.setattr(native, "TILE_TOKENS", tile_tokens)
    sampler, beginning = _sampler(engine, model), Beginning(layout.beginning_length(DIGITS))
    for stage, (prefix, branches) in enumerate(_chain(layout, DIGITS)):
        sampling = _sampling(temperature, stage=2 * stage)
        drafts = sampler.sample(prefix, branches, sampling)
        some = _with_drafts(branches, [_draft("right_to_a_point", draft) for draft in drafts])
        _assert_same(sampler.sample(prefix, some, sampling, beginning), drafts)


def test_a_shared_beginning_is_read_once(model: SectorForCausalLM, layout: PlaceLayout, passes: list[int]) -> None:
    def first_passes(savings: Savings, rows: slice) -> list[int]:
        sampler = NativeSampler(model, num_threads=1, savings=savings)
        beginning, lengths = Beginning(layout.beginning_length(DIGITS)), []
        for prefix, branches in _chain(layout, 3):
            passes.clear()
            some = [Branch(branch.mark[rows], branch.length) for branch in branches]
            sampler.sample(prefix[rows], some, _sampling(0.0)[rows], beginning)
            lengths.append(passes[0])
        return lengths

    whole = [2 * DIGITS + 5 + 2, 2 * DIGITS + 3 + 1, 2 * DIGITS + 1 + 2]
    assert first_passes(Savings(shared_beginning=False, compiled=False), slice(0, 2)) == whole
    assert first_passes(IN_TORCH, slice(0, 2)) == [whole[0], whole[1] - DIGITS, whole[2] - DIGITS + 1]
    # A row that begins otherwise: what is left to share is the start mark.
    assert first_passes(IN_TORCH, slice(2, 3)) == [whole[0], whole[1] - 1, whole[2] - 1]


@ENGINES
@TEMPERATURES
def test_rows_do_not_depend_on_their_batch(
    model: SectorForCausalLM,
    prefix: Tensor,
    branches: list[Branch],
    expected: dict[float, list[Tensor]],
    engine: str,
    temperature: float,
) -> None:
    """Another order and another batch size; a row's random numbers go with its counter."""
    sampler, sampling = _sampler(engine, model), _sampling(temperature)
    for rows in (torch.tensor([7, 2, 4]), torch.arange(ROWS).flip(0), torch.tensor([5])):
        some = [Branch(branch.mark[rows], branch.length) for branch in branches]
        outputs = sampler.sample(prefix[rows], some, sampling[rows])
        _assert_same(outputs, [output[rows] for output in expected[temperature]])


@ENGINES
def test_seed_stage_and_row_choose_the_sample(
    model: SectorForCausalLM, prefix: Tensor, branches: list[Branch], engine: str
) -> None:
    sampler, first = _sampler(engine, model), branches[:1]
    base = sampler.sample(prefix, first, _sampling(0.7))[0]
    assert torch.equal(sampler.sample(prefix, first, _sampling(0.7))[0], base)
    others = [_sampling(0.7, seed=6), _sampling(0.7, stage=3), _sampling(0.7, rows=torch.arange(ROWS))]
    for other in others:
        assert not torch.equal(sampler.sample(prefix, first, other)[0], base)
    # Branch 1 of one stage is branch 0 of the next.
    twice = sampler.sample(prefix, [first[0], first[0]], _sampling(0.7))
    assert torch.equal(twice[0], base)
    assert torch.equal(twice[1], sampler.sample(prefix, first, _sampling(0.7, stage=3))[0])


def test_greedy_ignores_the_seed(model: SectorForCausalLM, prefix: Tensor, branches: list[Branch]) -> None:
    sampler = NativeSampler(model)
    _assert_same(
        sampler.sample(prefix, branches, _sampling(0.0, seed=1)),
        sampler.sample(prefix, branches, _sampling(0.0, seed=2)),
    )


@torch.no_grad()
def test_samples_follow_the_softmax(model: SectorForCausalLM, prefix: Tensor, branches: list[Branch]) -> None:
    count, temperature = 4000, 3.0
    prompt = torch.cat([prefix[:1], branches[0].mark[:1]], dim=1)
    chances = (model(prompt).logits[0, -1] / temperature).softmax(dim=0)
    branch = Branch(branches[0].mark[:1].expand(count, 1), 1)
    drawn = NativeSampler(model).sample(
        prefix[:1].expand(count, -1), [branch], _sampling(temperature, rows=torch.arange(count))
    )[0]
    assert_drawn_from(chances, drawn)


@ENGINES
@TEMPERATURES
def test_padding_follows_the_end_and_nothing_else_does(
    model: SectorForCausalLM, prefix: Tensor, branches: list[Branch], engine: str, temperature: float
) -> None:
    for output, branch in zip(
        _sampler(engine, model).sample(prefix, branches, _sampling(temperature)), branches, strict=True
    ):
        assert output.shape == (ROWS, branch.length)
        ended = tokens.is_eos(output).cumsum(dim=1) - tokens.is_eos(output).long() > 0
        assert torch.equal(output == tokens.PAD_ID, ended)


@ENGINES
def test_outputs_are_legal(model: SectorForCausalLM, prefix: Tensor, branches: list[Branch], engine: str) -> None:
    for output, branch in zip(_sampler(engine, model).sample(prefix, branches, _sampling(0.7)), branches, strict=True):
        ids = torch.cat([branch.mark, output], dim=1)
        legal = tokens.legal_table()[tokens.class_of(ids[:, :-1]), tokens.class_of(ids[:, 1:])]
        assert bool(legal.all())
        assert torch.equal(tokens.next_ids(ids[:, :-1], tokens.class_of(ids[:, 1:])), ids[:, 1:])


@ENGINES
def test_no_rows_give_no_rows(model: SectorForCausalLM, prefix: Tensor, branches: list[Branch], engine: str) -> None:
    none = [Branch(branch.mark[:0], branch.length) for branch in branches]
    outputs = _sampler(engine, model).sample(prefix[:0], none, _sampling(0.0)[slice(0, 0)])
    assert [output.shape for output in outputs] == [(0, branch.length) for branch in branches]


@ENGINES
def test_engines_keep_their_own_copy_of_the_weights(prefix: Tensor, branches: list[Branch], engine: str) -> None:
    """Training goes on while an engine generates from the weights it was given."""
    model = new_model("tiny", seed=1, initializer_range=0.3)
    sampler = _sampler(engine, model)
    before = sampler.sample(prefix, branches, _sampling(0.0))
    fingerprint = weights_sha256(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1.5)
    _assert_same(sampler.sample(prefix, branches, _sampling(0.0)), before)
    assert sampler.weights_sha256 == fingerprint
    sampler.load(model)
    assert sampler.weights_sha256 == weights_sha256(model) != fingerprint
    assert not torch.equal(sampler.sample(prefix, branches, _sampling(0.0))[1], before[1])


@pytest.mark.parametrize("digits", [1, 33, 256], ids="digits{}".format)
def test_engines_agree_at_other_lengths(model: SectorForCausalLM, digits: int, draws: torch.Generator) -> None:
    prefix = PlaceLayout().prefix_ids(draw_problems(digits, 3, draws))
    branch = Branch(PlaceLayout().mark_ids(tokens.ANSWER, 3), min(place_layout.PlaceLayout().answer_length(digits), 40))
    sampling = _sampling(0.7, rows=torch.arange(3))
    _assert_same(
        NativeSampler(model).sample(prefix, [branch], sampling),
        HuggingFaceSampler(model).sample(prefix, [branch], sampling),
    )


def test_unknown_engines_are_named(model: SectorForCausalLM) -> None:
    with pytest.raises(InputError, match="native, hf"):
        make_sampler("warp", model)
