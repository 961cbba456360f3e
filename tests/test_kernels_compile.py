"""Every kernel compiles for an H100, whether or not there is one, and no card gets worse unnoticed.

A kernel that would not compile, or whose registers spill, cannot land.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from sector.benchmarks import kernel_card
from sector.benchmarks.kernel_card import Card, changes, compile_kernels, markdown, worse
from sector.benchmarks.kernel_cases import CASES
from sector.benchmarks.machine import describe
from sector.benchmarks.machine_code import Code
from sector.kernels import (
    acceptance,
    consistency,
    decode_attention,
    digit_sampler,
    embedding,
    layer,
    layout,
    megakernel,
    pass_attention,
    sequences,
    simplification,
    verify,
)
from sector.kernels._triton import AVAILABLE

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="there is no Triton for this system")

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "results" / "2026-11-26_kernel_cards" / "after.json"

# An SM has 65,536 registers and up to 228 KiB of shared memory. Four warps of 255 still share it with another program.
MAX_REGISTERS = 255
MAX_SHARED = 64 * 1024


def _max_stack(triton_version: str) -> dict[str, int]:
    """Bytes a thread that may spill in kernels that hold a whole model, with 255 registers a thread.

    Up to 3.6 Triton keeps more values of base alive in the megakernel; no other block sizes spill less there and are as
    fast on paper. `verify` spills four numbers, once a block of tokens; without them it has 6 % more instructions.
    """
    release = tuple(map(int, triton_version.split(".")[:2]))
    return {
        "megakernel tiny bf16 sampled": 0,
        "megakernel base bf16 sampled": 144 if release < (3, 7) else 72,
        "verify tiny fp32": 16,
    }


MAX_STACK = _max_stack(version("triton")) if AVAILABLE else {}


def _cases() -> list[str]:
    """Cases to compile: all, but of the megakernel's, which take 5 seconds each, those of MAX_STACK."""
    return [name for name in CASES if name in MAX_STACK or not name.startswith("megakernel")]


@pytest.fixture(scope="module")
def compiled() -> list[Card]:
    return compile_kernels(_cases())


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return dict(json.loads(RECORD.read_text(encoding="utf-8")))


def test_no_kernel_is_forgotten(compiled: list[Card]) -> None:
    modules = (acceptance, consistency, decode_attention, digit_sampler, embedding)
    modules += (layer, layout, megakernel, pass_attention, sequences, simplification, verify)
    kernels = {name for module in modules for name in vars(module) if name.endswith("_kernel") and name.startswith("_")}
    assert len(kernels) == 17
    assert kernels <= {card["kernel"] for card in compiled}


def test_nothing_spills_and_programs_share_a_multiprocessor(compiled: list[Card]) -> None:
    for card in compiled:
        assert card["stack"] <= MAX_STACK.get(card["case"], 0), card
        assert 0 < card["registers"] <= MAX_REGISTERS, card
        assert card["shared"] <= MAX_SHARED, card


def test_the_bound_on_spills_is_that_of_the_release() -> None:
    """3.6 was compiled for the review of the kernels (docs/research/gpu_review.md), 3.7.1 is pinned."""
    bounds = [_max_stack(release)["megakernel base bf16 sampled"] for release in ("3.6.0", "3.7.1", "3.10.0", "4.0.0")]
    assert bounds == [144, 72, 72, 72]


# The kernels whose time is the reading of caches and states. Triton widens loads if it knows that sizes and strides are
# multiples of 16.
WIDE = ("decode_attention tiny", "decode_attention base", "digit_sampler tiny", "digit_sampler base", "layer")


def test_loads_are_sixteen_bytes_wide(compiled: list[Card]) -> None:
    wide = [card for card in compiled if card["case"].startswith(WIDE)]
    assert len(wide) >= 20
    for card in wide:
        assert card["widest_load"] == 128, card


def test_no_card_is_worse_than_its_record(compiled: list[Card], record: dict[str, Any]) -> None:
    if describe()["versions"]["triton"] != record["versions"]["triton"]:
        pytest.skip("the record is of another Triton, whose code differs")
    assert {card["name"] for card in compiled} <= {card["name"] for card in record["kernels"]}, "make the record again"
    assert worse(record["kernels"], compiled) == []


def test_the_page_of_cards_is_that_of_the_record(record: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "reference" / "kernel_cards.md").read_text(encoding="utf-8")
    assert markdown(record["kernels"]) in page, (
        f"print it by python -m sector.benchmarks.kernel_card --markdown {RECORD}"
    )


SASS = """
_kernel:
.text._kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 BRA `(.L_x_0) ;
.L_x_2:
        /*0020*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0030*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
.L_x_1:
        /*0040*/                   LDGSTS.E.BYPASS.LTC128B.128 [R3], desc[UR4][R2.64] ;
        /*0050*/               @P1 LDG.E.U16 R4, desc[UR4][R2.64] ;
        /*0060*/               @P1 BRA `(.L_x_1) ;
        /*0070*/               @P0 BRA `(.L_x_2) ;
.L_x_0:
        /*0080*/               @P2 EXIT ;
        /*0090*/                   EXIT ;
.L_x_3:
        /*00a0*/                   LDG.E R4, desc[UR4][R2.64] ;
.L_x_4:
        /*00b0*/                   BRA `(.L_x_4);
        /*00c0*/                   NOP;
"""


def test_machine_code_is_counted() -> None:
    assert Code.parse(SASS).card() == {
        "instructions": 12,
        "barriers": 1,
        "loads": {"16": 1, "32": 1, "128": 2},
        "main_path": 10,
        "loops": [
            {"depth": 0, "instructions": 6, "barriers": 1, "loads": {"16": 1, "128": 2}},
            {"depth": 1, "instructions": 3, "barriers": 0, "loads": {"16": 1, "128": 1}},
        ],
    }


def test_a_worse_card_is_told(compiled: list[Card]) -> None:
    before = [card for card in compiled if card["case"] == "decode_attention base bf16"]
    assert worse(before, before) == []
    assert changes(before, before).row_count == 0
    (card,) = before
    # Loads of 2 bytes, as they were when strides were not specialized; a spill; one register more.
    after = [{**card, "widest_load": 16, "stack": 8, "registers": card["registers"] + 1}]
    assert worse(before, after) == [
        f"{card['name']}: stack 0 -> 8",
        f"{card['name']}: widest load 128 -> 16 bits",
    ]
    longer = [{**loop, "instructions": loop["instructions"] * 11 // 10} for loop in card["loops"]]
    (line,) = worse(before, [{**card, "loops": longer}])
    assert line.startswith(f"{card['name']}: loop {card['loops'][1]['instructions']} -> ")
    assert changes(before, []).row_count == changes([], before).row_count == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify"], "there is no case 'verify'; kernel_cases.py lists them in CASES"),
        (["--against", "none.json"], "argument --against: none.json is no record of kernel cards (FileNotFoundError"),
        (["--markdown", "pyproject.toml"], "argument --markdown: pyproject.toml is no record of kernel cards"),
    ],
    ids=["case", "against", "markdown"],
)
def test_bad_arguments_are_named(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["kernel_card", *words])
    with pytest.raises(SystemExit) as exit_:
        kernel_card.main()
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
