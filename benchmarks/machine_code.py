"""Read the machine code of a compiled kernel: registers, memory, loads, instructions and loops, without a GPU."""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from sector.kernels._triton import triton

_INSTRUCTION = re.compile(
    r"/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<predicate>@!?U?P\w+\s+)?(?P<operation>[A-Z][\w.]*)(?P<rest>[^;]*);"
)
_LABEL = re.compile(r"^(?P<label>\.L\w+):", re.MULTILINE)
_TARGET = re.compile(r"`\((?P<label>\.L\w+)\)")
# Widths in bits by the modifier that names them. A load without one is of 32 bits.
_WIDTHS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128}


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction of a kernel.

    address: its offset in bytes.
    operation: its name with its modifiers, as `LDG.E.128`.
    target: the label that it branches to, or None.
    conditional: whether it runs under a predicate.
    """

    address: int
    operation: str
    target: str | None
    conditional: bool


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop, found by a branch backwards.

    first, last: addresses of its first instruction and of the branch.
    """

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Code:
    """The instructions of a kernel, in order, without padding, and its loops, outer ones first."""

    instructions: list[Instruction]
    loops: list[Loop]

    @classmethod
    def parse(cls, text: str) -> "Code":
        """Return the code in the output of `nvdisasm -c`."""
        instructions: list[Instruction] = []
        labels: dict[str, int] = {}
        waiting: list[str] = []
        for line in text.splitlines():
            if label := _LABEL.match(line):
                waiting.append(label["label"])
            elif found := _INSTRUCTION.search(line):
                address = int(found["address"], 16)
                labels |= dict.fromkeys(waiting, address)
                waiting.clear()
                if found["operation"] != "NOP":
                    target = _TARGET.search(found["rest"]) if found["operation"].startswith("BRA") else None
                    instructions.append(
                        Instruction(
                            address,
                            found["operation"],
                            target["label"] if target else None,
                            found["predicate"] is not None,
                        )
                    )
        return cls(instructions, _loops(instructions, labels))

    def card(self) -> dict[str, object]:
        """Return counts: instructions, barriers, loads by width in bits, the main path, and the loops.

        main_path: instructions up to the end of the program; behind it are rare paths, as slow divisions.
        loops: counts of each loop, with the loops in it; `depth` is the count of loops around it.
        """
        return {
            **_counts(self.instructions),
            "main_path": self._main_path(),
            "loops": [
                {
                    "depth": sum(_contains(outer, loop) for outer in self.loops),
                    **_counts(self.inside(loop)),
                }
                for loop in self.loops
            ],
        }

    def _main_path(self) -> int:
        """Return the count of instructions up to the first unconditional exit; all of them if there is none."""
        for number, instruction in enumerate(self.instructions, start=1):
            if instruction.operation == "EXIT" and not instruction.conditional:
                return number
        return len(self.instructions)

    def inside(self, loop: Loop) -> list[Instruction]:
        """Return the instructions of a loop."""
        return [instruction for instruction in self.instructions if loop.first <= instruction.address <= loop.last]


def read(cubin: bytes) -> dict[str, object]:
    """Return the card of a compiled kernel.

    registers: registers a thread.
    stack: bytes a thread of local memory; 0 means that nothing spilled.
    The other entries are those of `Code.card`.
    """
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        commands = [
            [str(tools / "cuobjdump"), "-res-usage", file.name],
            [str(tools / "nvdisasm"), "-c", file.name],
        ]
        usage, code = (subprocess.run(line, capture_output=True, text=True, check=True).stdout for line in commands)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise ValueError(f"cuobjdump names no registers: {usage}")
    return {"registers": int(found[1]), "stack": int(found[2]), **Code.parse(code).card()}


def _loops(instructions: list[Instruction], labels: dict[str, int]) -> list[Loop]:
    """Return the loops, outer ones first."""
    last: dict[int, int] = {}
    for instruction in instructions:
        first = labels.get(instruction.target or "", instruction.address)
        # A branch to itself is the trap after the end.
        if first < instruction.address:
            last[first] = max(instruction.address, last.get(first, 0))
    return [Loop(first, end) for first, end in sorted(last.items(), key=lambda ends: (ends[0], -ends[1]))]


def _contains(outer: Loop, inner: Loop) -> bool:
    return outer != inner and outer.first <= inner.first and inner.last <= outer.last


def _counts(instructions: list[Instruction]) -> dict[str, object]:
    """Return the counts of instructions, barriers, and loads from device memory by width in bits."""
    loads: Counter[int] = Counter()
    barriers = 0
    for instruction in instructions:
        name, *modifiers = instruction.operation.split(".")
        barriers += name == "BAR"
        if name in ("LDG", "LDGSTS"):
            loads[next((_WIDTHS[modifier] for modifier in modifiers if modifier in _WIDTHS), 32)] += 1
    return {
        "instructions": len(instructions),
        "barriers": barriers,
        "loads": {str(width): loads[width] for width in sorted(loads)},
    }
