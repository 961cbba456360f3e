"""Filter labels by a check of your own, and count the wrong ones with and without it.

The check poses a+b as (a-1)+b+1: a computation with other digits and a carry-in, which has the same answer. It uses no
true answer. Python's own sums only count the errors, at lengths that the shipped weights have not learned.
"""

import argparse
import re
from typing import Any

import sector


def restated(problem: str) -> str:
    """Return a problem with the same answer: one less in the first operand, one more at the end."""
    first, second, *carry = map(int, problem.split("+"))
    return f"{first - 1}+{second}+1" if first and not carry else f"{second}+{first}" + "+1" * len(carry)


def is_right(row: dict[str, Any]) -> bool:
    """Return whether a label is the true sum."""
    return int(row["answer"]) == sum(map(int, re.findall(r"\d+", row["problem"])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="addition", help="checkpoint, run directory, or name of shipped weights")
    parser.add_argument("--digits", type=int, nargs="+", default=[29, 35, 40, 45, 50, 55])
    parser.add_argument("--small", action="store_true", help="try 50 problems per length instead of 1,000")
    options = parser.parse_args()
    model = sector.load(options.model)
    print("digits  labels  wrong  with the check  wrong")
    for digits in options.digits:
        rows = sector.generate(model, digits, 50 if options.small else 1000, filter="none").table.to_pylist()
        checked = sector.solve([restated(row["problem"]) for row in rows], model, "fast", show=False)
        kept = [row for row, solution in zip(rows, checked, strict=True) if solution.answer == row["answer"]]
        wrong, still_wrong = (sum(not is_right(row) for row in labels) for labels in (rows, kept))
        print(f"{digits:6}  {len(rows):6}  {wrong:5}  {len(kept):14}  {still_wrong:5}")


if __name__ == "__main__":
    main()
