"""The native engine's library: the same output as plain torch, for every vector width of this machine."""

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sector.engine.errors import InputError
from sector.engine.language import tokens
from sector.engine.language.operands import draw_problems
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.models.sector import SectorForCausalLM, new_model
from sector.engine.samplers import native_compiled
from sector.engine.samplers.native import NativeSampler
from sector.engine.samplers.native_compiled import CompiledModel, load_library
from sector.engine.samplers.protocol import Branch, Sampling, Savings

# More rows than places, which are given back and taken again.
DIGITS, ROWS = 4, 120
LAYOUT = PlaceLayout()
IN_TORCH = Savings(compiled=False)
CAPABILITIES = ["AVX512", "AVX2", "DEFAULT"]
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, native_compiled._COMPILERS)), reason="no C compiler")
TEMPERATURES = pytest.mark.parametrize("temperature", [0.0, 0.7], ids="temperature{}".format)
# Sizes that fill no vector and no panel, and those of the preset.
SIZES = {
    "tiny": {},
    "odd": {"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 50, "num_hidden_layers": 2},
    "one_layer": {"num_hidden_layers": 1, "num_attention_heads": 2},
}


def _model(sizes: str = "tiny") -> SectorForCausalLM:
    return new_model("tiny", seed=1, initializer_range=0.25, **SIZES[sizes]).eval()


def _library(capability: str) -> ctypes.CDLL:
    here = torch.backends.cpu.get_cpu_capability()
    if capability != "DEFAULT" and (
        here not in CAPABILITIES or CAPABILITIES.index(here) > CAPABILITIES.index(capability)
    ):
        pytest.skip(f"this processor has no {capability}")
    library = load_library(capability)
    assert library is not None
    return library


@pytest.fixture(scope="module")
def prefix() -> Tensor:
    return LAYOUT.prefix_ids(draw_problems(DIGITS, ROWS, torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def branches() -> list[Branch]:
    answer, think = (LAYOUT.mark_ids(mode, ROWS) for mode in (tokens.ANSWER, tokens.THINK))
    return [
        Branch(think, LAYOUT.simplification_length(DIGITS)),
        Branch(answer, LAYOUT.answer_length(DIGITS)),
        Branch(answer, 1),
    ]


def _sampling(temperature: float, rows: int = ROWS) -> Sampling:
    return Sampling(temperature, 5, torch.arange(100, 100 + rows), 2)


def _drafted(branches: list[Branch], right: list[Tensor]) -> list[Branch]:
    """Drafts that are right in two rows of three, and in the others up to some token."""
    drafts = []
    for branch, output in zip(branches, right, strict=True):
        rows, steps = torch.arange(ROWS).unsqueeze(1), torch.arange(branch.length)
        wrong = (rows % 3 == 0) & (steps >= rows % branch.length)
        drafts.append(Branch(branch.mark, branch.length, torch.where(wrong, tokens.NUM_LOCAL + 4, output)))
    return drafts


def _complete(model: CompiledModel, *asked: Any, drop_finished: bool = True) -> tuple[list[list[list[int]]], int]:
    outputs, read = model.complete(*asked, drop_finished=drop_finished)
    return [output.tolist() for output in outputs], read


@needs_compiler
@TEMPERATURES
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_library_writes_what_torch_writes(
    capability: str, sizes: str, temperature: float, prefix: Tensor, branches: list[Branch]
) -> None:
    model, sampling = _model(sizes), _sampling(temperature)
    right = NativeSampler(model, savings=IN_TORCH).sample(prefix, branches, sampling)
    expected = [output.tolist() for output in right]
    library = CompiledModel(model, _library(capability))
    undrafted, all_read = _complete(library, prefix, branches, sampling, None)
    assert undrafted == expected
    drafted, fewer_read = _complete(library, prefix, _drafted(branches, right), sampling, None)
    assert drafted == expected
    assert fewer_read != all_read
    waiting, more_read = _complete(library, prefix, branches, sampling, None, drop_finished=False)
    assert waiting == expected
    assert more_read > all_read


@needs_compiler
def test_a_row_does_not_depend_on_its_batch(prefix: Tensor, branches: list[Branch]) -> None:
    library, sampling = CompiledModel(_model(), _library("DEFAULT")), _sampling(0.7)
    together, _ = _complete(library, prefix, branches, sampling, None)
    for row in (0, 1, 77):
        some = slice(row, row + 1)
        alone = [Branch(branch.mark[some], branch.length) for branch in branches]
        apart, _ = _complete(library, prefix[some], alone, sampling[some], None)
        assert apart == [output[some] for output in together]


@needs_compiler
def test_right_drafts_are_read_once(prefix: Tensor, branches: list[Branch]) -> None:
    library, sampling = CompiledModel(_model(), _library("DEFAULT")), _sampling(0.0)
    outputs, _ = library.complete(prefix, branches, sampling, None, drop_finished=True)
    drafted = [Branch(branch.mark, branch.length, output) for branch, output in zip(branches, outputs, strict=True)]
    again, read = _complete(library, prefix, drafted, sampling, None)
    assert again == [output.tolist() for output in outputs]
    assert read == ROWS * (prefix.shape[1] + sum(branch.length for branch in branches))


@needs_compiler
@pytest.mark.parametrize("sizes", ["tiny", "odd"])
def test_a_beginning_is_read_once_a_row(sizes: str, prefix: Tensor, branches: list[Branch]) -> None:
    """A row shares all of its kept beginning, or less if its own beginning differs."""
    library, sampling, length = CompiledModel(_model(sizes), _library("DEFAULT")), _sampling(0.0), DIGITS + 1
    kept = library.keep(prefix[:, :length])
    expected, whole = _complete(library, prefix, branches, sampling, kept)
    kept = replace(kept, is_read=True)
    again, read = _complete(library, prefix, branches, sampling, kept)
    assert again == expected
    assert read == whole - ROWS * length
    other = prefix.clone()
    other[7, 2] = tokens.next_ids(other[7, 1], torch.tensor(0 if other[7, 2] % tokens.NUM_LOCAL else 1))
    outputs, read = _complete(library, other, branches, sampling, kept)
    plain, whole = _complete(library, other, branches, sampling, None)
    assert outputs == plain
    assert read == whole - (ROWS - 1) * length - 2


@needs_compiler
def test_keys_and_values_do_not_depend_on_the_batch(prefix: Tensor) -> None:
    """Not in a bit, so that neither jobs nor threads can show."""
    library, mark = CompiledModel(_model(), _library("DEFAULT")), LAYOUT.mark_ids(tokens.ANSWER, ROWS)

    def keys_and_values(rows: slice) -> Tensor:
        # Whole blocks of slots: what lies behind the last token of a block is anything.
        kept = library.keep(prefix[rows, :12])
        kept.kv.zero_()
        library.complete(prefix[rows], [Branch(mark[rows], 1)], _sampling(0.0)[rows], kept, drop_finished=True)
        return kept.kv

    together = keys_and_values(slice(0, ROWS))
    assert together.abs().sum() > 0
    for row in (0, 5, 119):
        assert torch.equal(keys_and_values(slice(row, row + 1)), together[row : row + 1])


@needs_compiler
def test_broken_weights_are_named(prefix: Tensor, branches: list[Branch]) -> None:
    model = _model()
    with torch.no_grad():
        model.blocks[1].attention.qkv.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="weights are broken"):
        NativeSampler(model).sample(prefix, branches, _sampling(0.0))


@needs_compiler
def test_scores_may_lie_far_apart(prefix: Tensor, branches: list[Branch]) -> None:
    """Hundreds of bits, where torch goes on in float64."""
    model = _model()
    with torch.no_grad():
        model.blocks[1].attention.qkv.weight.mul_(3.0)
    expected = NativeSampler(model, savings=IN_TORCH).sample(prefix, branches, _sampling(0.0))
    outputs = NativeSampler(model).sample(prefix, branches, _sampling(0.0))
    assert [output.tolist() for output in outputs] == [output.tolist() for output in expected]


@pytest.fixture
def made_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder in which a library is kept that is made in this test."""
    monkeypatch.setattr(native_compiled, "cache_from_source", lambda path: str(tmp_path / "kept" / "native.pyc"))
    load_library.cache_clear()
    yield tmp_path / "kept"
    load_library.cache_clear()


@needs_compiler
def test_a_library_is_made_once(made_anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_library() is not None
    assert [path.suffix for path in made_anew.iterdir()] == [".so"]
    load_library.cache_clear()
    monkeypatch.setattr(native_compiled, "_COMPILERS", ())
    assert load_library() is not None


@needs_compiler
def test_a_library_that_cannot_be_kept_is_made_all_the_same(made_anew: Path) -> None:
    made_anew.write_text("not a folder")
    assert load_library() is not None


def _fails(*_: object, **__: object) -> None:
    raise subprocess.CalledProcessError(1, "cc")


@pytest.mark.parametrize("why", ["no compiler", "a compiler that fails"])
def test_without_a_library_it_is_torch(
    why: str, made_anew: Path, monkeypatch: pytest.MonkeyPatch, prefix: Tensor, branches: list[Branch]
) -> None:
    if why == "no compiler":
        monkeypatch.setattr(native_compiled, "_COMPILERS", ())
    else:
        monkeypatch.setattr(native_compiled, "_COMPILERS", ("sh",))
        monkeypatch.setattr(subprocess, "run", _fails)
    assert load_library() is None
    outputs = NativeSampler(_model()).sample(prefix, branches, _sampling(0.0))
    assert [output.shape for output in outputs] == [(ROWS, branch.length) for branch in branches]
