"""Divide the time of a run among its phases: seconds, tokens/s and share of the machine's matrix-product rate.

    python -m sector.benchmarks.where_time_goes runs/first

The rate is measured when the command runs: the fastest of many float32 products of the sizes that training uses (8,192
tokens times each matrix of a block), with one thread per core, as in the engine. Only operations of matrix products
count: 2 per parameter and token forward, 6 in training, as if no layer skipped any; attention is not counted. In
generation only generated tokens count, not the tokens of prompts; in the audit, the tokens of answers and
simplifications.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sector.benchmarks.machine import describe, one_line
from sector.benchmarks.roofline import matrix_rate
from sector.engine.language.layout import Layout
from sector.engine.models.checkpoint import load_sector, task_and_layout
from sector.engine.run.directory import RunDir
from sector.engine.run.records import RoundMetrics
from sector.engine.threads import num_cores


def phases(
    lines: list[RoundMetrics], matrices: int, rate: float, layout: Layout, audit_samples: int
) -> list[dict[str, Any]]:
    """Return one row per phase, summed over the run.

    lines: lines of metrics.jsonl; rounds may leap any number of digits.
    matrices: count of parameters in matrices.
    rate: operations per second in matrix products.
    layout: token layout of the run.
    audit_samples: problems per length in an audit.
    """
    rounds = [line for line in lines if line.is_round]
    supervised = [line for line in lines if not line.is_round]
    audited = sum(_tokens_audited(line, layout, audit_samples) for line in lines)
    parts: list[tuple[str, float, float, int]] = [
        ("supervise", _sum(supervised, "seconds_train"), _sum(supervised, "tokens_trained"), 6),
        ("generate", _sum(rounds, "seconds_generate"), _sum(rounds, "tokens_generated"), 2),
        ("distill", _sum(rounds, "seconds_train"), _sum(rounds, "tokens_trained"), 6),
        ("probes", _sum(lines, "seconds_probe"), _sum(lines, "tokens_probed"), 2),
        ("audits", _sum(lines, "seconds_audit"), audited, 2),
    ]
    rows: list[dict[str, Any]] = [
        {
            "phase": name,
            "seconds": seconds,
            "tokens": tokens,
            "tokens_per_s": tokens / seconds,
            "share_of_rate": operations * matrices * tokens / seconds / rate,
        }
        for name, seconds, tokens, operations in parts
        if seconds
    ]
    rest = lines[-1].seconds_total - sum(row["seconds"] for row in rows)
    # Older runs have no separate time for probes.
    name = "files" if any("seconds_probe" in line.model_fields_set for line in lines) else "probes and files"
    return [*rows, {"phase": name, "seconds": max(0.0, rest)}]


def _sum(lines: list[RoundMetrics], name: str) -> float:
    """Return the sum of a figure over lines."""
    return sum(getattr(line, name) for line in lines)


def _tokens_audited(line: RoundMetrics, layout: Layout, samples: int) -> int:
    """Return the count of tokens of an audit: an answer per problem and length.

    At the frontier the answers are generated twice, and a simplification as well.
    """
    answers = sum(layout.answer_length(digits) for digits in line.accuracy)
    frontier = line.digits + 1
    return samples * (answers + layout.answer_length(frontier) + layout.simplification_length(frontier))


def main() -> None:
    """Print the table to stderr, and the figures as JSON to stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = RunDir(parser.parse_args().run)
    model = load_sector(run.root)
    matrices = sum(weight.numel() for weight in model.blocks.parameters() if weight.ndim == 2)
    rate, machine = matrix_rate(model), describe()
    rows = phases(run.metrics(), matrices, rate, task_and_layout(model)[1], run.read_config().audit_samples)
    table = Table(title=f"{run.root}: matrix products at {rate / 1e9:.0f} GFLOP/s on {num_cores()} cores")
    for column in ("phase", "seconds", "of the run", "tokens", "tokens/s", "of the rate"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    whole = sum(row["seconds"] for row in rows)
    for row in rows:
        figures = ["", "", ""]
        if "tokens" in row:
            figures = [f"{row['tokens']:,}", f"{row['tokens_per_s']:,.0f}", f"{row['share_of_rate']:.0%}"]
        table.add_row(row["phase"], f"{row['seconds']:.0f}", f"{row['seconds'] / whole:.0%}", *figures)
    console = Console(stderr=True)
    console.print(table)
    console.print(one_line(machine))
    print(json.dumps({"run": run.root.name, "gflops": rate / 1e9, "seconds": whole, "phases": rows, **machine}))


if __name__ == "__main__":
    main()
