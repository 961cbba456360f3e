"""Measure how independent the checks are on the candidates of runs, and why wrong answers pass all of them.

    .venv/bin/python -m sector.benchmarks.independence runs/first --rounds 5 --json independence.json

All candidates of the last rounds take all checks again, by the weights that tried them. The table shows which pairs of
checks miss the same wrong answers, and the label error that independent checks of the same quality would give.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from sector.benchmarks.small_run import write_record
from sector.engine.errors import InputError
from sector.engine.report.facts import run_roots
from sector.engine.report.independence import ALL_CHECKS, Independence, Looks, Rate, independence_of, look_at_round
from sector.engine.run.directory import RunDir
from sector.engine.shares import percent


def looks_of(roots: list[Path], rounds: int, names: list[str]) -> Iterator[Looks]:
    """Yield the looks at the last `rounds` rounds of each run that have candidates."""
    for root in roots:
        run = RunDir(root)
        config = run.read_config()
        done = [line.digits for line in run.metrics() if line.is_round]
        for digits in done[-rounds:]:
            yield look_at_round(run, config, run.round(digits), names)


def lines_of(result: Independence) -> Iterator[str]:
    """Yield the lines that show a result."""
    yield f"{result.tried:,} candidates, {result.wrong:,} with a wrong answer"
    yield "check          wrong answers missed       right answers passed"
    for name, rate in result.misses.items():
        yield f"{name:13}  {_shown(rate):25}  {_shown(result.passes_right[name])}"
    yield "pair                        phi (95 %)              missed by both"
    for pair in result.pairs:
        phi = "-" if pair.phi is None else f"{pair.phi:.2f}"
        shown = f"{phi} ({pair.low:.2f} to {pair.high:.2f})"
        yield f"{f'{pair.first}, {pair.second}':26}  {shown:22}  {pair.both} of {result.wrong}"
    product = "-" if result.independent is None else percent(result.independent, 4)
    yield f"label error: {_shown(result.seen)} seen, {product} if the checks were independent"
    for name, rate in result.without.items():
        yield f"without {name}: {_shown(rate)}"


def _shown(rate: Rate) -> str:
    return f"{rate.count} of {rate.of}" + (f" ({percent(rate.share, 2)})" if rate.of else "")


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description="Measure how independent the checks are.")
    parser.add_argument("runs", type=Path, nargs="+", help="run directories, or directories of grids")
    parser.add_argument("--rounds", type=int, default=5, help="last rounds of each run to look at")
    parser.add_argument("--checks", default=",".join(ALL_CHECKS), help="names of checks, with commas between them")
    parser.add_argument("--json", type=Path, help="file for the record")
    options = parser.parse_args()
    try:
        looks = list(looks_of(run_roots(options.runs), max(1, options.rounds), options.checks.split(",")))
        if not looks:
            raise InputError(f"{options.runs[0]} has no round yet; play one with `sector run`")
        result = independence_of(looks)
    except InputError as error:
        parser.error(str(error))
    for line in lines_of(result):
        print(line)
    write_record(options.json, "independence", **result.as_json())


if __name__ == "__main__":
    main()
