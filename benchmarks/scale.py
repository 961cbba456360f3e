"""Scaling of `sector generate --out DIR/` beyond this machine: workers that only wait as long as a GPU would.

    python -m sector.benchmarks.scale --workers 1,8,64,256 --json scale.json

The driver's side is real: Ray, the queue of parts, their records, the manifest. Each part is a real file, of a few
bytes, that a stand-in for a worker writes. A few actor processes are the stand-ins of all workers, since one that waits
needs no core. The wait for a part is that of a GPU (`--rate` candidates a second, by default that of an H200 with
`tiny` at 20 digits: benchmarks/results/2026-11-27_h200) plus the time to make and encode the table of the part,
measured here first, with real candidates.

Efficiency compares with perfect workers: the longest queue of parts that even division leaves to one worker. Time to
start the workers is told apart. With `--deaths` and `--spread` stand-ins die at random, together with all others of
their process, and parts take differently long; the files must have the same bytes.
"""

import argparse
import asyncio
import hashlib
import math
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sector.benchmarks.cells import numbers, printed
from sector.benchmarks.small_run import write_record
from sector.engine.config import FILTERS
from sector.engine.models.checkpoint import Model, load_checkpoint, task_and_layout
from sector.engine.outside import Origin
from sector.engine.policy.generate import BLOCK, Assignment, generate_blocks
from sector.engine.policy.improve import Improved
from sector.engine.policy.worker import Proof, prove
from sector.engine.policy.workers import Actor, Workers
from sector.engine.run.generate_folder import collect
from sector.engine.run.part_folder import PartFolder
from sector.engine.run.parts import DatasetSettings, PartRecord, encoded, record_of, write_file
from sector.engine.run.records import Fates
from sector.engine.samplers import make_sampler
from sector.engine.samplers.protocol import Sampler
from sector.engine.training.dataset import Provenance, improved_table

# Candidates a second of an H200: `tiny`, 20 digits, the filter strict, float32, 4,000 rows at once.
H200_RATE = 16_200.0
_DIGITS = 20
_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Costs:
    """Processor time of one block of candidates, in seconds, on this machine.

    table: to make its rows.
    encode: to encode them as parquet.
    """

    table: float
    encode: float


@dataclass(frozen=True, slots=True)
class Weather:
    """Conditions of a run.

    rate: candidates a second of a worker.
    host: seconds a block that a worker's processor needs for the table.
    spread: standard deviation of the logarithm of the time of a part; 0 makes all parts alike.
    deaths: probability that a worker dies at the end of a part, before it has written.
    """

    rate: float
    host: float
    spread: float
    deaths: float

    def seconds(self, candidates: int, start: int) -> float:
        """Return the time of a part; equal for equal parts."""
        alike = candidates / self.rate + self.host * candidates / BLOCK
        return alike * math.exp(random.Random(start).gauss(0.0, self.spread) if self.spread else 0.0)


@dataclass(frozen=True, slots=True)
class StandInMaker:
    """Function that writes a small file in the place of a part.

    folder: folder of the data set.
    settings: its settings.
    """

    folder: Path
    settings: DatasetSettings

    def __call__(self, sampler: Sampler | None, assignment: Assignment, start: int) -> PartRecord:
        """Write the file of the part that begins with a candidate, and return its record."""
        tried = _candidates(self.settings, start)
        path, content = self.folder / self.settings.file_of(start), hashlib.sha256(str(start).encode()).digest()
        write_file(path, content)
        fates = Fates(tried=tried, accepted=tried, agreed=tried, tokens=640 * tried, rejected={})
        return record_of(path, start, fates, tried, content)


class StandIn:
    """A Ray actor that stands for many workers: it waits for many parts at the same time."""

    def __init__(self, proof: Proof, weather: Weather, seed: int) -> None:
        self._proof, self._weather = proof, weather
        self._chance = random.Random(seed)

    async def load(self, files: Mapping[str, bytes], code: Sequence[Origin] = ()) -> Proof:
        """Return the proof that the driver expects."""
        return self._proof

    async def make(self, start: int, assignment: Assignment, make_part: StandInMaker) -> PartRecord:
        """Wait as long as a worker needs for the part, and write it; or die, with all workers of this process."""
        await asyncio.sleep(self._weather.seconds(_candidates(make_part.settings, start), start))
        if self._chance.random() < self._weather.deaths:
            os._exit(1)
        return make_part(None, assignment, start)


class StandIns(Workers):
    """Many workers that a few processes stand for.

    num_processes: processes that stand for all workers.
    num_started: processes that were started, those in the place of dead ones included.
    """

    def __init__(self, count: int, processes: int, proof: Proof, weather: Weather) -> None:
        super().__init__(count, "native")
        self.num_processes = min(count, processes)
        self._of_actor = proof, weather
        self._hosts: list[Actor] = []
        self.num_started = 0

    def _start(self, num_bytes: int) -> None:
        """Start Ray with a CPU for each process, which mostly waits; then the processes."""
        self._ray.init(
            address="local", num_cpus=self.num_processes, include_dashboard=False, log_to_driver=False,
            logging_level="error",
        )  # fmt: skip
        self._hosts = [self._start_actor() for _ in range(self.num_processes)]
        self._actors = [self._hosts[index % self.num_processes] for index in range(self._count)]

    def _start_actor(self) -> Actor:
        """Return a process that stands for several workers."""
        actor = self._ray.remote(num_cpus=1, max_restarts=0, max_concurrency=self._count + 1)(StandIn)
        self.num_started += 1
        return actor.remote(*self._of_actor, self.num_started)

    def unpack_seconds(self, block: object) -> float:
        """Return the processor time to unpack a block from a worker, as the driver does for `--out FILE.parquet`."""
        reference = self._ray.put(block)
        return _seconds(lambda: self._ray.get(reference))

    def _replace(self, index: int) -> None:
        """Start a process in the place of a dead one and all its workers, when the first of them reports the death."""
        place = index % self.num_processes
        if self._actors[index] is self._hosts[place]:
            self._ray.kill(self._hosts[place])
            self._hosts[place] = self._start_actor()
        self._actors[index] = self._hosts[place]
        self.proofs.pop(index, None)


@dataclass(frozen=True, slots=True)
class Setup:
    """Work of all runs.

    model: the model whose weights are sent.
    sampler: the driver's engine.
    assignment: the work.
    settings: settings of the data set.
    solved: its first block, candidate indices and improved batch, for measuring.
    """

    model: Model
    sampler: Sampler
    assignment: Assignment
    settings: DatasetSettings
    solved: tuple[Tensor, Improved]


def main() -> None:
    """Measure, print a line for each count of workers, and write the record."""
    arguments = _arguments()
    torch.set_num_threads(1)
    setup = work_of(arguments.candidates, arguments.part_rows)
    costs = measured_costs(setup)
    weather = Weather(arguments.rate, costs.table + costs.encode, arguments.spread, arguments.deaths)
    printed([{"costs_of_a_block": _named(costs)}])
    cells = printed(scaled(setup, count, arguments.processes, weather, costs) for count in arguments.workers)
    same = {cell["sha256"] for cell in cells} == {undisturbed(setup)}
    printed([{"same_bytes": same}])
    write_record(arguments.json, "scale", costs=_named(costs), weather=_named(weather), cells=cells, same_bytes=same)


def measured_costs(setup: Setup) -> Costs:
    """Return the cost of the table of a block."""
    rows, block = setup.solved
    provenance = Provenance(_DIGITS, 0, "native", setup.settings.weights_sha256)
    layout, fates = setup.assignment.layout, Fates.of(block)
    table = improved_table(block, rows, layout, provenance)
    return Costs(
        _seconds(lambda: improved_table(block, rows, layout, provenance)),
        _seconds(lambda: encoded(table, fates, setup.settings.compression)),
    )


def _seconds(work: Callable[[], object]) -> float:
    """Return the processor time of work, in the median of some repeats."""
    times = []
    for _ in range(_REPEATS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def scaled(setup: Setup, count: int, processes: int, weather: Weather, costs: Costs) -> dict[str, object]:
    """Return the figures of a data set that a count of workers makes."""
    settings = setup.settings
    with _folder() as out:
        folder = PartFolder(out, settings)
        folder.open()
        folder.begin()
        proof = prove(setup.sampler, setup.assignment.task, setup.assignment.layout)
        with StandIns(count, processes, proof, weather) as crew:
            started = time.perf_counter()
            crew.load(setup.model, setup.sampler)
            loaded = time.perf_counter()
            unpack = crew.unpack_seconds(setup.solved)
            ready, used = time.perf_counter(), time.process_time()
            maker = StandInMaker(out, settings)
            collect(folder, crew.make_parts(folder.missing(), setup.assignment, maker), lambda *_: None)
            seconds, used = time.perf_counter() - ready, time.process_time() - used
            deaths = crew.num_started - crew.num_processes
        folder.finish()
        digest = _digest(out)
    parts = len(settings.starts)
    work = [weather.seconds(_candidates(settings, start), start) for start in settings.starts]
    best = max(math.ceil(parts / count) * statistics.fmean(work), max(work))
    before = (unpack + costs.table) / BLOCK
    return {
        "workers": count,
        "candidates": settings.count,
        "parts": parts,
        "part_seconds": statistics.fmean(work),
        "start_up_seconds": loaded - started,
        "seconds": seconds,
        "seconds_of_perfect_workers": best,
        "efficiency": best / seconds,
        "efficiency_of_even_division": sum(work) / count / best,
        "parts_per_s": parts / seconds,
        "driver_seconds": used,
        "driver_us_per_candidate": 1e6 * used / settings.count,
        "driver_us_per_candidate_of_a_file": 1e6 * before,
        "unpack_seconds": unpack,
        "deaths_of_processes": deaths,
        "sha256": digest,
    }


def undisturbed(setup: Setup) -> str:
    """Return the digest of the data set as this process makes it, without workers."""
    with _folder() as out:
        folder, maker = PartFolder(out, setup.settings), StandInMaker(out, setup.settings)
        folder.open()
        folder.parts |= {start: maker(None, setup.assignment, start) for start in folder.missing()}
        folder.finish()
        return _digest(out)


def work_of(candidates: int, part_rows: int) -> Setup:
    """Return the work of a number of candidates, with the shipped weights of addition."""
    model = load_checkpoint(Path("addition"))
    task, layout = task_and_layout(model)
    sampler = make_sampler("native", model, num_threads=1)
    assignment = Assignment(task, layout, _DIGITS, candidates, FILTERS["strict"], 0, 0.45)
    settings = DatasetSettings(
        task=task.name,
        task_sha256=None,
        code_sha256={},
        digits=_DIGITS,
        count=candidates,
        seed=0,
        engine="native",
        dtype=None,
        weights_sha256=sampler.weights_sha256,
        hard_share=0.45,
        filter=FILTERS["strict"].model_dump(mode="json"),
        part_rows=part_rows,
        compression="zstd",
    )
    return Setup(model, sampler, assignment, settings, generate_blocks(sampler, 0, assignment))


def _candidates(settings: DatasetSettings, start: int) -> int:
    """Return the number of candidates of the part that begins with a candidate; the last part may have fewer."""
    return min(settings.part_rows, settings.count - start)


@contextmanager
def _folder() -> Iterator[Path]:
    """Yield an empty folder, and remove it."""
    folder = Path(tempfile.mkdtemp(prefix="sector-scale-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _digest(folder: Path) -> str:
    """Return a digest of the names and the contents of all files of a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _named(values: Costs | Weather) -> dict[str, float]:
    return {name: getattr(values, name) for name in values.__slots__}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=numbers, default=[1, 8, 64, 256])
    parser.add_argument("--candidates", type=int, default=10_000_000)
    parser.add_argument("--part-rows", type=int, default=20 * BLOCK)
    parser.add_argument("--rate", type=float, default=H200_RATE, help="candidates a second of a worker")
    parser.add_argument("--processes", type=int, default=8, help="actor processes that stand for the workers, at most")
    parser.add_argument("--deaths", type=float, default=0.0, help="probability that a part ends in a death")
    parser.add_argument("--spread", type=float, default=0.0, help="spread of the time of a part")
    parser.add_argument("--json", type=Path, help="file of the record")
    return parser.parse_args()


if __name__ == "__main__":
    main()
