"""Where the time of a run went: seconds, tokens/s and share of the machine's matrix-product rate, by phase.

    .venv/bin/python -m sector.benchmarks.where_time_goes runs/first

The rate is measured here and now: the best of several float32 products of the sizes that training uses (8,192 tokens
against each matrix of a block), one thread a core side by side, as the engine runs them. Operations are those of the
matrix products alone (2 a parameter and token forward, 6 trained), as if no layer left anything out; attention is not
counted. Of generation only the tokens that came out count, not the prompts read for them.
"""

import json
import sys
from os import cpu_count
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from sector.benchmarks.roofline import matrix_rate
from sector.engine.checkpoint import load_sector
from sector.engine.rundir import RunDir


def phases(lines: list[dict[str, Any]], matrices: int, rate: float) -> list[dict[str, Any]]:
    """One row a phase, summed over the run."""
    rounds = [line for line in lines if line["phase"] == "round"]
    supervised = [line for line in lines if line["phase"] == "sft"]
    rows = []
    for name, some, kind, operations in (
        ("supervise", supervised, "train", 6),
        ("generate", rounds, "generate", 2),
        ("distill", rounds, "train", 6),
    ):
        seconds = sum(line[f"seconds_{kind}"] for line in some)
        tokens = sum(line["tokens_trained" if kind == "train" else "tokens_generated"] for line in some)
        per_second = tokens / seconds
        share = operations * matrices * per_second / rate
        rows.append(
            {"phase": name, "seconds": seconds, "tokens": tokens, "tokens_per_s": per_second, "share_of_rate": share}
        )
    counted = sum(row["seconds"] for row in rows)
    rest = {"phase": "probe, audit, files", "seconds": lines[-1]["seconds_total"] - counted}
    return [*rows, rest]


def main() -> None:
    root = Path(sys.argv[1])
    model = load_sector(root)
    matrices = sum(weight.numel() for weight in model.blocks.parameters() if weight.ndim == 2)
    rate = matrix_rate(model)
    rows = phases(RunDir(root).metrics(), matrices, rate)
    table = Table(title=f"{root}: matrix products at {rate / 1e9:.0f} GFLOP/s on {cpu_count()} cores")
    for column in ("phase", "seconds", "tokens", "tokens/s", "share of rate"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for row in rows:
        figures = ["", "", ""]
        if "tokens" in row:
            figures = [f"{row['tokens']:,}", f"{row['tokens_per_s']:,.0f}", f"{row['share_of_rate']:.0%}"]
        table.add_row(row["phase"], f"{row['seconds']:.0f}", *figures)
    Console(stderr=True).print(table)
    print(json.dumps({"run": root.name, "gflops": rate / 1e9, "torch": torch.__version__, "phases": rows}))


if __name__ == "__main__":
    main()
