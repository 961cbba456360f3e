"""Test of the protocol of engines, on a small new model: against the native engine, greedy in float32.

Each function raises AssertionError with one line that names the broken rule. In the shape descriptions B is the rows of
the batch and P the tokens of a prefix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sector.engine.language import tokens
from sector.engine.language.layout import Mode
from sector.engine.language.operands import draw_problems
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.models.checkpoint import weights_sha256
from sector.engine.models.sector import SectorForCausalLM, new_model
from sector.engine.samplers.native import NativeSampler
from sector.engine.samplers.protocol import Beginning, Branch, Room, Sampler, Sampling
from sector.engine.samplers.rows import rows_of

_ROWS, _DIGITS = 7, 5
_TEMPERATURE = 0.7
# Larger weights than those of a fresh model, so that rows differ and end at different lengths.
_SPREAD = 0.25

MakeEngine = Callable[[SectorForCausalLM], Sampler]


def check_engine(make: MakeEngine) -> None:
    """Test an engine; raise AssertionError, with the broken rule, if it is not an engine that others can replace.

    The rules: it loads weights, keeps its own copy, and tells their digest. Greedy in float32 it writes the tokens of
    the native engine, with padding after the end. Drafts and shared beginnings change no token. Sampled tokens follow
    from seed, stage and row, and not from the other rows. A batch may be empty. The seconds that it takes are not
    tested.

    make: the class of engines, or another function from a model to an engine.
    """
    with torch.random.fork_rng(devices=[]):
        model, other = (new_model("tiny", seed, initializer_range=_SPREAD).eval() for seed in (1, 2))
    engine = make(model)
    _check_attributes(engine)
    for check in (_check_greedy, _check_drafts, _check_beginning, _check_sampling, _check_empty):
        check(engine, model)
    _check_weights(engine, model, other)


@dataclass(frozen=True, slots=True)
class _Call:
    """Arguments of a call of `Sampler.sample`.

    prefix: `[B, P]` ids.
    branches: an answer, a simplification, and an answer that is cut short.
    sampling: temperature and random streams.
    """

    prefix: Tensor
    branches: Sequence[Branch]
    sampling: Sampling

    def of(self, engine: Sampler, beginning: Beginning | None = None) -> list[Tensor]:
        """Return the completions of an engine."""
        return engine.sample(self.prefix, self.branches, self.sampling, beginning)

    def __getitem__(self, rows: Tensor) -> "_Call":
        return _Call(self.prefix[rows], rows_of(self.branches, rows), self.sampling[rows])

    def drafted(self, drafts: Sequence[Tensor]) -> "_Call":
        """Return the call with a draft for each branch."""
        branches = [replace(branch, draft=draft) for branch, draft in zip(self.branches, drafts, strict=True)]
        return replace(self, branches=branches)


def _call(digits: int = _DIGITS, temperature: float = 0.0) -> _Call:
    """Return a call on problems of some digits, at different places."""
    layout = PlaceLayout(variant=torch.arange(_ROWS) % tokens.NUM_SHIFTS)
    problems = draw_problems(digits, _ROWS, torch.Generator().manual_seed(1))
    answer, think = (layout.mark_ids(mode, _ROWS) for mode in (Mode.ANSWER, Mode.THINK))
    branches = [Branch(answer, layout.answer_length(digits)), Branch(answer, 2)]
    if digits > 1:
        branches.insert(1, Branch(think, layout.simplification_length(digits)))
    return _Call(layout.prefix_ids(problems), branches, Sampling(temperature, 5, torch.arange(100, 100 + _ROWS), 2))


def _demand(is_kept: bool, rule: str) -> None:
    """Raise AssertionError with a rule that is not kept."""
    if not is_kept:
        raise AssertionError(rule)


def _check_attributes(engine: Sampler) -> None:
    name = getattr(engine, "name", None)
    _demand(isinstance(name, str) and bool(name), f"name is {name!r}; it should be the name in configs")
    _demand(isinstance(engine.device, torch.device), f"device is {engine.device!r}; it should be a torch.device")
    uses = engine.uses_all_cores
    _demand(isinstance(uses, bool), f"uses_all_cores is {uses!r}; it should be True or False")
    if isinstance(engine, Room):
        room = engine.room(_call().prefix.shape[1], [branch.length for branch in _call().branches])
        _demand(isinstance(room, int) and room > 0, f"room returned {room!r}; it should be a count of rows")


def _check_greedy(engine: Sampler, model: SectorForCausalLM) -> None:
    """Check shapes, ends and greedy tokens, at several lengths."""
    native = NativeSampler(model, num_threads=1)
    for digits in (1, 2, _DIGITS):
        call = _call(digits)
        outputs, expected = call.of(engine), call.of(native)
        _demand(len(outputs) == len(call.branches), f"{len(outputs)} tensors for {len(call.branches)} branches")
        for output, branch in zip(outputs, call.branches, strict=True):
            _check_form(output, branch, call.prefix)
        _demand_same(outputs, expected, f"greedy tokens at {digits} digits are not those of the engine native")


def _check_form(output: Tensor, branch: Branch, prefix: Tensor) -> None:
    """Check shape, type and device of a completion, and the padding after its end."""
    shape = (len(prefix), branch.length)
    _demand(output.shape == shape, f"a completion has the shape {tuple(output.shape)}, not {shape}")
    _demand(output.dtype == torch.int64, f"a completion is of the type {output.dtype}, not torch.int64")
    _demand(output.device == prefix.device, f"a completion is on {output.device}, its prompt on {prefix.device}")
    has_ended = ((output == tokens.PAD_ID) | (tokens.class_of(output) == tokens.EOS)).int().cummax(dim=1).values
    after = has_ended[:, :-1].bool() & (output[:, 1:] != tokens.PAD_ID)
    _demand(not after.any(), "a completion goes on after its end; padding should follow")


def _check_drafts(engine: Sampler, model: SectorForCausalLM) -> None:
    """Check that right, wrong and partly right drafts change no token."""
    for temperature in (0.0, _TEMPERATURE):
        call = _call(temperature=temperature)
        expected = call.of(engine)
        wrong = [output.flip(0) for output in expected]
        partly = [torch.cat([right[:, :2], bad[:, 2:]], dim=1) for right, bad in zip(expected, wrong, strict=True)]
        for kind, drafts in (("right", expected), ("wrong", wrong), ("partly right", partly)):
            rule = f"{kind} drafts change tokens at temperature {temperature}"
            _demand_same(call.drafted(drafts).of(engine), expected, rule)


def _check_beginning(engine: Sampler, model: SectorForCausalLM) -> None:
    """Check that a shared beginning changes no token of a chain of thought."""
    layout = PlaceLayout()
    problems = draw_problems(_DIGITS, _ROWS, torch.Generator().manual_seed(3))
    beginning = Beginning(layout.beginning_length(_DIGITS))
    for digits in (_DIGITS, _DIGITS - 1, _DIGITS - 2):
        current = type(problems)(problems.a[:, :digits], problems.b[:, :digits], problems.carry)
        branch = Branch(layout.mark_ids(Mode.ANSWER, _ROWS), layout.answer_length(digits))
        call = _Call(layout.prefix_ids(current), [branch], Sampling(0.0, 5, torch.arange(_ROWS), 0))
        _demand_same(call.of(engine, beginning), call.of(engine), "a shared beginning changes tokens")


def _check_sampling(engine: Sampler, model: SectorForCausalLM) -> None:
    """Check that sampled tokens follow from seed, stage and row alone."""
    call = _call(temperature=_TEMPERATURE)
    expected = call.of(engine)
    _demand_same(call.of(engine), expected, "the same call samples other tokens")
    rows = torch.tensor([5, 0, 3])
    _demand_same(call[rows].of(engine), [output[rows] for output in expected], "a row depends on its batch")
    sampling = call.sampling
    others = {
        "seed": replace(sampling, seed=6),
        "stage": replace(sampling, stage=9),
        "rows": replace(sampling, rows=sampling.rows + 50),
    }
    for name, changed in others.items():
        outputs = replace(call, sampling=changed).of(engine)
        _demand(not _are_same(outputs, expected), f"{name} of the sampling does not change the sample")
    greedy = _call()
    other_seed = replace(greedy, sampling=replace(greedy.sampling, seed=6))
    _demand_same(other_seed.of(engine), greedy.of(engine), "greedy tokens depend on the seed")


def _check_empty(engine: Sampler, model: SectorForCausalLM) -> None:
    """Check that a batch may be empty."""
    call = _call()[torch.arange(0)]
    shapes = [tuple(output.shape) for output in call.of(engine)]
    expected = [(0, branch.length) for branch in call.branches]
    _demand(shapes == expected, f"an empty batch gives the shapes {shapes}, not {expected}")


def _check_weights(engine: Sampler, model: SectorForCausalLM, other: SectorForCausalLM) -> None:
    """Check digests, that weights can be loaded anew, and that the engine keeps its own copy."""
    call = _call()
    for current in (model, other):
        if current is other:
            engine.load(other)
        digest, expected = weights_sha256(current), call.of(NativeSampler(current, num_threads=1))
        _demand(engine.weights_sha256 == digest, "weights_sha256 is not the digest of the weights that were loaded")
        _demand_same(call.of(engine), expected, "the tokens are not those of the weights that were loaded")
    expected = call.of(engine)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    _demand_same(call.of(engine), expected, "the engine has no copy of its own: training changes its tokens")


def _are_same(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Return whether all completions are equal."""
    return all(torch.equal(output, other) for output, other in zip(outputs, expected, strict=True))


def _demand_same(outputs: Sequence[Tensor], expected: Sequence[Tensor], rule: str) -> None:
    """Raise AssertionError with a rule if completions differ."""
    _demand(_are_same(outputs, expected), rule)
