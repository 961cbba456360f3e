"""Compile the kernels for an H100, and write a card of each. It needs no GPU, so a regression shows without one.

    python -m sector.benchmarks.kernel_card [CASE...] [--out FILE] [--against FILE]
    python -m sector.benchmarks.kernel_card --markdown FILE      the table of a record, as in docs/reference

The record is one JSON object: `kernels`, the list of cards, `target`, and the description of the machine. A card is a
line of `kernel_cases.py`, with

    name                  the case and the kernel; a number if a case calls a kernel repeatedly
    widest_load           bits of the widest load from device memory
    instructions_a_token  instructions that warps issue for a row or token, on the main path, or null: see `_a_token`

With `--against` it prints what changed since another record, and exits with 1 if a kernel got worse: see `worse`.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sector.benchmarks.kernel_cases import CASES
from sector.benchmarks.machine import describe
from sector.engine.files import write_text

Card = dict[str, Any]

TARGET = "sm_90"
# The share by which a figure may grow: small changes of a kernel move the compiler's choices by as much.
MARGIN = 0.05
# Figures that are better if smaller, and what they may grow by at least, whatever the share.
_SMALLER = {
    "registers": 8,
    "stack": 0,
    "shared": 0,
    "barriers": 1,
    "instructions_a_token": 0,
    "loop": 0,
    "instructions": 0,
}
_TITLES = ("kernel", "registers", "stack", "shared", "loads", "barriers", "instructions", "loops", "a token")
# Variables of the environment that change how Triton compiles, and may have been set by vLLM or Inductor in a process
# that loaded them. Only where the cache is stays.
_FOREIGN = ("TRITON_", "TORCHINDUCTOR_", "MLIR_", "LLVM_")
_OURS = ("TRITON_HOME", "TRITON_CACHE_DIR")


def compile_kernels(cases: Sequence[str] = ()) -> list[Card]:
    """Return the cards of some cases, or of all. Raise RuntimeError with the output if a kernel does not compile."""
    environment = {name: value for name, value in os.environ.items() if name in _OURS or not name.startswith(_FOREIGN)}
    # Without this the current folder would be on the path, and with it our folders by their bare names.
    environment["PYTHONSAFEPATH"] = "1"
    command = [sys.executable, "-m", "sector.benchmarks.kernel_cases", *cases]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"kernels do not compile (exit code {done.returncode}): {done.stderr[-4000:]}")
    return cards([json.loads(line) for line in done.stdout.splitlines()])


def cards(lines: list[dict[str, Any]]) -> list[Card]:
    """Return the cards of the lines that `kernel_cases.py` prints."""
    calls: Counter[str] = Counter()
    result = []
    for line in lines:
        name = f"{line['case']}: {line['kernel'].strip('_').removesuffix('_kernel')}"
        calls[name] += 1
        result.append(
            {
                "name": name if calls[name] == 1 else f"{name} {calls[name]}",
                **line,
                "widest_load": max(map(int, line["loads"]), default=0),
                "instructions_a_token": _a_token(line),
            }
        )
    return result


def worse(before: Sequence[Card], after: Sequence[Card], margin: float = MARGIN) -> list[str]:
    """Return a line for each figure that got worse by more than the margin, for kernels that are in both lists.

    Worse is: more registers, stack, shared memory, barriers or instructions; or narrower loads.
    """
    lines = []
    for old, new in _pairs(before, after):
        for figure, least in _SMALLER.items():
            earlier, later = _figure(old, figure), _figure(new, figure)
            if earlier is not None and later is not None and later > earlier + max(least, margin * earlier):
                lines.append(f"{new['name']}: {figure} {earlier:,} -> {later:,}")
        if new["widest_load"] < old["widest_load"]:
            lines.append(f"{new['name']}: widest load {old['widest_load']} -> {new['widest_load']} bits")
    return lines


def changes(before: Sequence[Card], after: Sequence[Card]) -> Table:
    """Return a table of the kernels whose figures differ, and of those that are in one list only."""
    table = Table(title="Changes")
    figures = [*_SMALLER, "widest_load"]
    for column in ("kernel", *figures):
        table.add_column(column.replace("_", " "), justify="left" if column == "kernel" else "right")
    for old, new in _pairs(before, after):
        pairs = [(_figure(old, figure), _figure(new, figure)) for figure in figures]
        if any(earlier != later for earlier, later in pairs):
            cells = ["" if earlier == later else f"{_cell(earlier)} -> {_cell(later)}" for earlier, later in pairs]
            table.add_row(new["name"], *cells)
    names = [{card["name"] for card in cards} for cards in (before, after)]
    for name in sorted(names[0] - names[1]):
        table.add_row(f"{name} (gone)")
    for name in sorted(names[1] - names[0]):
        table.add_row(f"{name} (new)")
    return table


def markdown(cards: Sequence[Card]) -> str:
    """Return the table of the cards in Markdown."""
    titles, *lines = (" | ".join(cells) for cells in _rows(cards))
    rule = " | ".join("---" for _ in _TITLES)
    return "\n".join(f"| {line} |" for line in (titles, rule, *lines)) + "\n"


def _rows(cards: Sequence[Card]) -> Iterator[list[str]]:
    """Yield the cells of a table: a row for each card, below a row of the titles."""
    yield list(_TITLES)
    for card in cards:
        loads = " ".join(f"{count}x{width}" for width, count in card["loads"].items())
        loops = " ".join(">" * loop["depth"] + str(loop["instructions"]) for loop in card["loops"])
        figures = [card[figure] for figure in ("registers", "stack", "shared")]
        counts = [card[figure] for figure in ("barriers", "instructions")]
        a_token = _cell(card["instructions_a_token"])
        yield [card["name"], *map(_cell, figures), loads, *map(_cell, counts), loops, a_token]


def _a_token(line: dict[str, Any]) -> int | None:
    """Return the instructions that warps issue for a row or token of the call, or None if the loops are not known.

    All programs of the call, all their warps, the main path once, and the loop on it as often as `trips` says.
    """
    count = line["main_path"]
    if line["loops"]:
        if line["trips"] is None:
            return None
        # A second one is a copy for diverged warps, behind the main path.
        count += (line["trips"] - 1) * line["loops"][0]["instructions"]
    return round(count * line["warps"] * line["programs"] / line["tokens"])


def _figure(card: Card, figure: str) -> int | None:
    """Return a figure of a card; `loop` is the instructions of its innermost loop that is the longest."""
    if figure != "loop":
        value: int | None = card[figure]
        return value
    deepest = max((loop["depth"] for loop in card["loops"]), default=0)
    return max((loop["instructions"] for loop in card["loops"] if loop["depth"] == deepest), default=None)


def _pairs(before: Sequence[Card], after: Sequence[Card]) -> Iterator[tuple[Card, Card]]:
    """Yield the cards, before and after, of the kernels that are in both lists."""
    earlier = {card["name"]: card for card in before}
    return ((earlier[card["name"]], card) for card in after if card["name"] in earlier)


def _cell(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _table(cards: Sequence[Card]) -> Table:
    titles, *lines = _rows(cards)
    table = Table(title=f"Kernels compiled for {TARGET}")
    for title in titles:
        table.add_column(title, justify="left" if title in ("kernel", "loads", "loops") else "right")
    for line in lines:
        table.add_row(*line)
    return table


def _recorded(file: str) -> list[Card]:
    """Return the cards of a record, the type of an argument."""
    try:
        recorded: list[Card] = json.loads(Path(file).read_text(encoding="utf-8"))["kernels"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{file} is no record of kernel cards ({error!r})") from None
    return recorded


def main() -> int:
    """Print the table to stderr, and write the record to a file or to stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="cases of kernel_cases.py (default: all)")
    parser.add_argument("--out", type=Path, help="file for the record (default: stdout)")
    parser.add_argument("--against", type=_recorded, metavar="FILE", help="an earlier record to compare with")
    parser.add_argument("--margin", type=float, default=MARGIN, help="share by which a figure may grow")
    parser.add_argument(
        "--markdown", type=_recorded, metavar="FILE", help="print the table of a record, and compile nothing"
    )
    options = parser.parse_args()
    if unknown := [case for case in options.cases if case not in CASES]:
        parser.error(f"there is no case {unknown[0]!r}; kernel_cases.py lists them in CASES")
    if options.markdown:
        print(markdown(options.markdown), end="")
        return 0
    before = options.against or []
    after = compile_kernels(options.cases)
    record = json.dumps({"target": TARGET, "kernels": after, **describe()}, indent=1) + "\n"
    console = Console(stderr=True)
    console.print(_table(after))
    if options.out:
        write_text(options.out, record)
    else:
        print(record, end="")
    if options.against is None:
        return 0
    console.print(changes(before, after))
    lines = worse(before, after, options.margin)
    for line in lines:
        console.print(f"worse: {line}")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
