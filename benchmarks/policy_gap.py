"""Compare the label errors of the fast policy, of a chain of thought and of the filters on the same problems.

    .venv/bin/python -m sector.benchmarks.policy_gap RUN ... --digits 7,8 --json gap.json

The question of the paper at one digit more than was taught (section 4): fast answers are wrong for 28 % of the
problems, accepted ones for 0.7 %. All policies get the same problems with uniform digits, greedily. A way without a
filter answers all problems, and its label error is the share of wrong answers among them; a filter's is the share among
the accepted.
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from sector.benchmarks.cells import numbers, printed
from sector.benchmarks.small_run import write_record
from sector.engine.config import FILTERS, Filter
from sector.engine.models.checkpoint import open_trained, task_and_layout
from sector.engine.policy.solver import Solver
from sector.engine.run.audit import answers_correct, outputs_correct
from sector.engine.samplers import make_sampler
from sector.engine.seeding import generator
from sector.engine.shares import wilson

# Label-free ways to a label, from the fast policy alone to what the loop believes.
WAYS = {
    "fast answer": Filter(vote="off", k=1, use_chain=False, checks=(), think_through=False),
    "majority of 5 fast answers": Filter(vote="majority", use_chain=False, checks=(), think_through=False),
    "simplify, then guess": FILTERS["none"],
    "filter paper": FILTERS["paper"],
    "filter strict": FILTERS["strict"],
    "filter thorough": FILTERS["thorough"],
}


def gaps(path: Path, lengths: Sequence[int], count: int, seed: int) -> Iterator[dict[str, object]]:
    """Yield a row for each length and way: candidates, accepted ones, wrong ones of these with their interval.

    The way `simplification` is the slow policy: the remaining problem and the digit are exactly right.
    """
    model = open_trained(path).model
    task, layout = task_and_layout(model)
    sampler = make_sampler("native", model)
    for digits in lengths:
        problems = task.draw(digits, count, generator(seed, "gap", digits), hard_share=0.0)
        slow = outputs_correct(Solver(sampler, layout, "slow", FILTERS["none"], seed), problems)
        yield row(path, digits, "simplification", count, count, int((~slow).sum()))
        for way, settings in WAYS.items():
            improved = Solver(sampler, layout, "improved", settings, seed).improve(problems)
            wrong = improved.accepted & ~answers_correct(problems, improved.ballot.answers)
            yield row(path, digits, way, count, int(improved.accepted.sum()), int(wrong.sum()))


def row(path: Path, digits: int, way: str, tried: int, accepted: int, wrong: int) -> dict[str, object]:
    """Return the figures of one way at one length."""
    shares = {"label_error": wrong / accepted, "interval": wilson(wrong, accepted)} if accepted else {}
    counts = {"tried": tried, "accepted": accepted, "wrong": wrong}
    return {"model": path.name, "digits": digits, "way": way, **counts, **shares}


def main() -> None:
    """Measure, and print a row a way."""
    parser = argparse.ArgumentParser(description="Compare policies on the same problems.")
    parser.add_argument("models", type=Path, nargs="+", metavar="RUN", help="run directories or checkpoints")
    parser.add_argument("--digits", type=numbers, default=[7], help="lengths, as 7,8")
    parser.add_argument("--count", type=int, default=1000, help="problems of a length")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the record")
    options = parser.parse_args()
    found = (gaps(path, options.digits, options.count, options.seed) for path in options.models)
    write_record(options.json, "policy_gap", rows=printed(chain.from_iterable(found)))


if __name__ == "__main__":
    main()
