"""`sector generate --out FILE.parquet`: examples that the filter accepted, in memory, and as one file."""

import time
from pathlib import Path

import pyarrow as pa

from sector.engine.files import check_writable
from sector.engine.models.checkpoint import TrainedModel
from sector.engine.policy.workers import start_workers, with_weights
from sector.engine.run.labels import Labels
from sector.engine.run.records import Fates
from sector.engine.run.request import Request
from sector.engine.run.steps import check_digits
from sector.engine.training.dataset import Provenance, improved_table, write_examples


def generate_examples(model: Path | TrainedModel, out: Path | None, request: Request) -> Labels:
    """Try problems, and return those that the filter accepts, with counts, tokens and seconds.

    model: as in `Request.open`.
    out: file of the examples; None writes none.
    """
    check_digits(request.digits)
    if out is not None:
        check_writable(out)
    opened = request.open(model)
    sampler, layout = opened.sampler, opened.assignment.layout
    provenance = Provenance(request.digits, request.seed, request.engine, sampler.weights_sha256)
    fates, tables = Fates.sum([]), []
    with start_workers(request.workers, request.engine, opened.vllm) as crew:
        solve = with_weights(crew, opened.model, sampler)
        start = time.perf_counter()
        for rows, block in solve(opened.assignment):
            tables.append(improved_table(block, rows, layout, provenance))
            fates = Fates.sum([fates, Fates.of(block)])
            request.on_progress(fates.tried, request.count, f"{fates.accepted} accepted")
        seconds = time.perf_counter() - start
    table = pa.concat_tables(tables)
    if out is not None:
        write_examples(out, table)
    generation = fates.generation(seconds, request.engine, sampler.weights_sha256)
    return Labels(table, request.digits, generation, out)
