"""Filter labels by a check of your own, and count the wrong ones with and without it.

The check casts out nines. A number and its digit sum leave the same remainder modulo 9, so a sum keeps its remainder if
the digits of the operands change places. The model adds other numbers then, with other carries, and the remainders of
its two answers are compared. A carry that is missed or invented changes a sum by a power of ten, which is 1 modulo 9.
No true answer is used: Python's own sums only count the errors, at lengths that the shipped weights have not learned.

In a run: sector run --set 'filter.checks=["direct", "examples/own_check.py:residues"]'
"""

import argparse
import re
from typing import Any

import sector


def rotated(problem: str, answer: str) -> tuple[str, str]:
    """Pose a+b with the first digit of each operand at its end; the answer must have the remainder of the voted one."""
    first, second, *carry = problem.split("+")
    return "+".join([first[1:] + first[0], second[1:] + second[0], *carry]), answer


def same_remainder(answer: str, expected: str) -> bool:
    """Return whether two numbers leave the same remainder modulo 9."""
    return int(answer) % 9 == int(expected) % 9


residues = sector.text_check("residues", "casting out nines", rotated, sector.Solve.AT_ONCE, same_remainder)

# The filter of the example, and the same without the check.
FILTER = {"vote": "off", "checks": (), "think_through": False}
CHECKED = FILTER | {"checks": (f"{__file__}:residues",)}


def is_right(row: dict[str, Any]) -> bool:
    """Return whether a label is the true sum."""
    return int(row["answer"]) == sum(map(int, re.findall(r"\d+", row["problem"])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="addition", help="checkpoint, run directory, or name of shipped weights")
    parser.add_argument("--digits", type=int, nargs="+", default=[29, 35, 40, 45, 50, 55])
    parser.add_argument("--small", action="store_true", help="try 50 problems per length instead of 1,000")
    options = parser.parse_args()
    model, count = sector.load(options.model), 50 if options.small else 1000
    print("digits  labels  wrong  with the check  wrong")
    for digits in options.digits:
        figures = []
        for chosen in (FILTER, CHECKED):
            rows = sector.generate(model, digits, count, filter=chosen).table.to_pylist()
            figures += [len(rows), sum(not is_right(row) for row in rows)]
        print(f"{digits:6}  {figures[0]:6}  {figures[1]:5}  {figures[2]:14}  {figures[3]:5}")


if __name__ == "__main__":
    main()
