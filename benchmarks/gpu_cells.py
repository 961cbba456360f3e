"""Measure the improved policy on a GPU cell by cell, one JSON line per cell.

    python -m sector.benchmarks.gpu_cells MODEL [--rows 250,1000] [--dtypes float32,bfloat16] [--decode kernels,hf] ...
    python -m sector.benchmarks.gpu_cells MODEL --kernels [--rows 4096]

GPU time is lent in short slices that may end at any time. So each cell is written as soon as it is measured, and a cell
that fails is a line that says why; then the exit code is 1. A cell is a dtype, a way to decode and a count of rows,
which are solved at once. Every result is compared with that of the native engine on the CPU in float32, on the first
rows (`--compare`), and `unlike_repetitions` is the largest count of rows on which a repetition differs from the last
one. With `--kernels` a cell is a kernel by itself.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path

import torch

from sector.benchmarks.cells import measured, names_of, number, numbers, printed
from sector.benchmarks.contest import Contender, Contest, ContestResult, Workload, differs
from sector.benchmarks.kernel_times import measure_kernels
from sector.benchmarks.machine import describe
from sector.benchmarks.memory import peak_bytes, reset_peak
from sector.benchmarks.roofline import measure_ceilings
from sector.engine.config import FILTERS, RunConfig
from sector.engine.errors import InputError
from sector.engine.models.checkpoint import load_sector, task_and_layout, weights_sha256
from sector.engine.models.sector import SectorForCausalLM
from sector.engine.policy.improve import Improved
from sector.engine.samplers.gpu import CACHE_BYTES, Decode, GpuSampler
from sector.engine.samplers.hf import HuggingFaceSampler
from sector.engine.samplers.native import NativeSampler
from sector.engine.samplers.protocol import Sampler

# A cell whose repetition takes longer is measured once.
_SLOW_SECONDS = 4.0
# Memory for keys and values: enough for 16,000 rows of the preset base at 20 digits.
_CACHE_BYTES = 24 << 30
_DTYPES = ["float32", "bfloat16"]
_WAYS = [*Decode, "hf"]


class GpuCells:
    """The problems and terms that all cells share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        task, layout = task_and_layout(load_sector(arguments.model))
        hard_share = RunConfig().hard_share
        self._contest = Contest(FILTERS[arguments.filter], task, layout, temperature=0.0, seed=0, hard_share=hard_share)
        self._problems = self._workload(max([*arguments.rows, arguments.compare])).problems(task, 0, hard_share)
        self._expected: Improved | None = None

    def lines(self) -> Iterator[dict[str, object]]:
        """Yield a description of the machine, the result on the CPU, and then each cell."""
        arguments = self._arguments
        yield {**describe(), "model": str(arguments.model), "weights_sha256": weights_sha256(self._model("float32"))}
        if arguments.kernels:
            yield from self._kernels()
            return
        if arguments.compare:
            cell = {"dtype": "float32", "decode": "cpu", "rows": arguments.compare}
            yield cell | self._compared(arguments.compare)
        for dtype, rows, decode in product(arguments.dtypes, arguments.rows, arguments.decode):
            cell = {"dtype": dtype, "decode": decode, "rows": rows}
            yield measured(cell, partial(self._figures, dtype, rows, decode))

    def _figures(self, dtype: str, rows: int, decode: str) -> dict[str, object]:
        contender = Contender(decode, _sampler(self._model(dtype), decode))
        improved, figures = self._timed(contender, rows, self._arguments.repeats)
        return figures | self._differing(improved)

    def _kernels(self) -> Iterator[dict[str, object]]:
        """Yield the limits of the hardware, and each kernel by itself, for each dtype."""
        for dtype in self._arguments.dtypes:
            model = self._model(dtype)
            ceilings = measure_ceilings(model)
            yield {"dtype": dtype, **asdict(ceilings)}
            for rows in self._arguments.rows:
                for line in measure_kernels(model, self._arguments.digits, rows, ceilings.copy_bytes_per_s):
                    yield {"dtype": dtype, **line}

    def _model(self, dtype: str) -> SectorForCausalLM:
        """Load the model in a dtype onto the best device."""
        return load_sector(self._arguments.model).to(getattr(torch, dtype))

    def _compared(self, rows: int) -> dict[str, object]:
        """Solve the first rows on the CPU, and keep the result."""
        on_cpu = Contender("cpu", NativeSampler(load_sector(self._arguments.model).cpu()))
        self._expected, figures = self._timed(on_cpu, rows, repeats=1)
        return figures

    def _differing(self, improved: Improved) -> dict[str, object]:
        """Return the count of rows on which a result differs from that on the CPU, and the count of rows compared."""
        if self._expected is None:
            return {}
        rows = slice(min(len(improved.verdict), len(self._expected.verdict)))
        return {"compared": rows.stop, "differing": int(differs(self._expected, improved, rows).sum())}

    def _workload(self, rows: int) -> Workload:
        return Workload(self._arguments.digits, rows, batch=0)

    def _timed(self, contender: Contender, rows: int, repeats: int) -> tuple[Improved, dict[str, object]]:
        """Solve the first rows repeatedly, after a warm-up of the same size; return the result and the figures."""
        device = contender.sampler.device
        reset_peak(device)
        seconds: list[float] = []
        results: list[Improved] = []
        for turn in range(1 + repeats):
            start = time.perf_counter()
            results.append(self._contest.improve(contender, self._problems[slice(rows)], batch=0))
            seconds.append(time.perf_counter() - start)
            if turn and seconds[-1] > _SLOW_SECONDS:
                break
        warm_up, *seconds = seconds
        improved = results[-1]
        # Not 0 if threads race for memory.
        unlike = max(int(differs(improved, other).sum()) for other in results[:-1])
        accepted = int(improved.accepted.sum())
        cell = ContestResult(
            contender.name, self._workload(rows), seconds, improved.tokens, accepted, peak_bytes(device)
        )
        own = {"filter": self._arguments.filter, "warm_up_seconds": warm_up, "unlike_repetitions": unlike}
        return improved, own | cell.as_json()


def _sampler(model: SectorForCausalLM, decode: str) -> Sampler:
    """Return an engine: a way to decode of the native one, or `hf`."""
    cache_bytes = _CACHE_BYTES if model.device.type == "cuda" else CACHE_BYTES
    return HuggingFaceSampler(model) if decode == "hf" else GpuSampler(model, Decode(decode), cache_bytes)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint or run directory")
    parser.add_argument("--rows", type=numbers, default=[250, 1000, 4000, 16000], help="problems solved at once")
    parser.add_argument("--dtypes", type=names_of(_DTYPES), default=_DTYPES)
    parser.add_argument(
        "--decode", type=names_of(_WAYS), default=["kernels", "megakernel"], help=f"of {', '.join(_WAYS)}"
    )
    parser.add_argument("--kernels", action="store_true", help="measure each kernel by itself")
    parser.add_argument("--digits", type=number, default=20)
    parser.add_argument("--filter", choices=list(FILTERS), default="strict")
    parser.add_argument("--repeats", type=number, default=3)
    parser.add_argument("--compare", type=int, default=1000, help="rows to solve on the CPU, too; 0 compares nothing")
    return parser.parse_args()


def main() -> int:
    """Print the lines. Return 1 if a cell failed, and 2, with a message, if the model cannot be loaded."""
    arguments = _arguments()
    try:
        cells = GpuCells(arguments)
    except InputError as error:
        print(f"gpu_cells: {error}", file=sys.stderr)
        return 2
    return int(any("failed" in line for line in printed(cells.lines())))


if __name__ == "__main__":
    sys.exit(main())
