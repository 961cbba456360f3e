"""`sector generate --out DIR/`: a data set as a folder of parts, which goes on where it was interrupted."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from sector.engine.config import COMPRESSION, PART_ROWS, Compression
from sector.engine.errors import InputError
from sector.engine.files import check_writable
from sector.engine.models.checkpoint import TrainedModel
from sector.engine.policy.generate import BLOCK
from sector.engine.policy.workers import make_parts, start_workers
from sector.engine.run.labels import Labels, ThisCall
from sector.engine.run.made_with import code_sha256, task_sha256
from sector.engine.run.part_folder import PartFolder
from sector.engine.run.parts import DatasetSettings, PartMaker, PartRecord
from sector.engine.run.records import Fates
from sector.engine.run.request import Request
from sector.engine.run.steps import OnProgress, check_digits
from sector.engine.training.locations import Location, exists


def generate_folder(
    model: Path | TrainedModel,
    out: Location,
    request: Request,
    part_rows: int | None = None,
    compression: str | None = None,
) -> Labels:
    """Make the missing parts of a data set, and return the counts of the whole and of this call.

    Memory does not grow with `count`: a part is in memory only while it is made.

    model: as in `Request.open`.
    out: folder, which need not exist, or its address in a store.
    part_rows: candidates of a part, whole blocks; None for PART_ROWS.
    compression: compression of the parquet files; None for COMPRESSION.
    """
    check_digits(request.digits)
    part_rows, compression = _check_form(PART_ROWS if part_rows is None else part_rows, compression or COMPRESSION)
    if isinstance(out, Path):
        check_writable(out, folder=True)
    opened = request.open(model)
    described = DatasetSettings(
        task=opened.assignment.task.name,
        task_sha256=task_sha256(opened.assignment.task.name),
        code_sha256=code_sha256(request.engine, request.settings.checks),
        digits=request.digits,
        count=request.count,
        seed=request.seed,
        engine=request.engine,
        dtype=opened.vllm.dtype if request.engine == "vllm" else None,
        weights_sha256=opened.sampler.weights_sha256,
        hard_share=request.hard_share,
        filter=request.settings.model_dump(mode="json"),
        part_rows=part_rows,
        compression=compression,
    )
    folder = PartFolder(out, described)
    with folder.held():
        folder.open()
        missing, start = folder.missing(), time.perf_counter()
        if missing:
            folder.begin()
            maker = PartMaker(out.absolute(), described)
            with start_workers(request.workers, request.engine, opened.vllm) as crew:
                parts = make_parts(crew, opened.model, opened.sampler, missing, opened.assignment, maker)
                collect(folder, parts, request.on_progress)
        seconds = time.perf_counter() - start
        folder.finish()
    return _labels(folder, missing, seconds)


def collect(folder: PartFolder, parts: Iterable[tuple[int, PartRecord]], on_progress: OnProgress) -> None:
    """Add parts to a folder as they are made: all that the driver does for a part.

    Raise InputError if a worker writes where the driver does not look.

    parts: first candidate and record of each part.
    """
    whole = Fates.sum(folder.parts.values())
    for start, record in parts:
        if not exists(folder.root / record.file):
            raise InputError(f"a worker wrote {record.file} elsewhere; name a folder in --out that all workers share")
        folder.parts[start] = record
        whole = Fates.sum([whole, record])
        on_progress(whole.tried, folder.settings.count, f"{whole.accepted} accepted")


def _labels(folder: PartFolder, missing: list[int], seconds: float) -> Labels:
    """Return the result of a call that made the missing parts."""
    whole = Fates.sum(folder.parts.values())
    made = Fates.sum(folder.parts[start] for start in missing)
    call = ThisCall(
        parts=len(missing), tried=made.tried, accepted=made.accepted, tokens=made.tokens, mended=folder.mended
    )
    return Labels(
        None,
        folder.settings.digits,
        whole.generation(seconds, folder.settings.engine, folder.settings.weights_sha256),
        folder.root,
        len(folder.parts),
        call,
    )


def _check_form(part_rows: int, compression: str) -> tuple[int, str]:
    """Return the form of the parts. Raise InputError unless a part is whole blocks and the compression is known."""
    if part_rows < 1 or part_rows % BLOCK:
        raise InputError(
            f"part_rows is {part_rows}, but problems are drawn in blocks of {BLOCK}; choose a multiple of {BLOCK}"
        )
    if compression not in (names := get_args(Compression)):
        raise InputError(f"unknown compression {compression!r}; choose one of {', '.join(names)}")
    return part_rows, compression
