"""Export of a run as two folders in the form of a hub: `sector.export`. Nothing is uploaded."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from sector.engine.api.cards import Exported, dataset_card, model_card
from sector.engine.api.hub_rows import exported_rows
from sector.engine.errors import InputError, made_again
from sector.engine.files import check_writable, write_text
from sector.engine.models.checkpoint import Model, load_checkpoint, save_checkpoint, weights_sha256
from sector.engine.models.text import TextModel
from sector.engine.models.wide_heads import with_wide_heads
from sector.engine.run.directory import RunDir
from sector.engine.run.records import RoundMetrics
from sector.engine.run.steps import OnProgress, no_progress
from sector.engine.training.dataset import write_table

_PARQUET = Path("data") / "train-00000-of-00001.parquet"


@dataclass(frozen=True, slots=True)
class Export:
    """Folders that an export wrote.

    model: weights, config, tokenizer and card, as transformers reads them.
    dataset: parquet and card, as `datasets` reads them.
    rows: count of rows of the dataset.
    weights_sha256: digest of the weights.
    """

    model: Path
    dataset: Path
    rows: int
    weights_sha256: str

    def as_json(self) -> dict[str, str | int]:
        """Return the values as the object that `sector export --json` prints."""
        return {
            "model": str(self.model),
            "dataset": str(self.dataset),
            "rows": self.rows,
            "weights_sha256": self.weights_sha256,
        }


def export(
    run: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    wide_heads: bool = False,
    on_progress: OnProgress = no_progress,
) -> Export:
    """Write the best weights of a run to `to/model`, and its examples to `to/dataset`.

    Both are written aside and renamed, so `to` is complete or missing. The run is only read.

    run: run directory.
    to: new directory.
    wide_heads: whether to widen the heads of a model of text for vLLM on a CPU; its answers stay the same.
    on_progress: called with the phases that are read, their total, and a note.

    Raise InputError if `to` exists or cannot be written, if `run` has no trained weights, or if its heads cannot be
    widened.
    """
    source, target = RunDir(Path(run)), Path(to)
    if not source.exists:
        raise InputError(f"{source.root} is not a run directory; make one with `sector run`")
    if os.path.lexists(target):
        raise InputError(f"{target} exists; choose another --to")
    check_writable(target, folder=True)
    done = [line for line in source.metrics() if line.digits <= source.frontier]
    if not done:
        raise InputError(f"{source.root} has no trained weights yet; {made_again(source.root)}")
    aside = target.absolute().with_name(f".{target.absolute().name}.partial")
    try:
        _remove(aside)
        num_rows, digest = _write(source, done, aside, wide_heads, on_progress)
        os.rename(aside, target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        _remove(aside)
    return Export(target / "model", target / "dataset", num_rows, digest)


def _write(
    run: RunDir, done: list[RoundMetrics], folder: Path, wide_heads: bool, on_progress: OnProgress
) -> tuple[int, str]:
    """Write model and data set with their cards; return the count of rows, and the digest of the written weights.

    done: audits of the phases whose examples are written.
    """
    model, config = load_checkpoint(run.root), run.read_config()
    digest, exported = weights_sha256(model), _widened(model) if wide_heads else model
    save_checkpoint(exported, folder / "model")
    tables = []
    for table in exported_rows(run, config, done):
        tables.append(table)
        on_progress(len(tables), len(done), f"{table.num_rows} rows")
    rows = pa.concat_tables(tables)
    write_table(folder / "dataset" / _PARQUET, rows)
    evaluation = run.read_evaluation()
    facts = Exported(
        config=config,
        metrics=done,
        evaluation=evaluation if evaluation and evaluation.weights_sha256 == digest else None,
        parameters=sum(tensor.numel() for tensor in exported.weights().values()),
        weights_sha256=digest,
        wide_heads=exported is not model,
    )
    write_text(folder / "model" / "README.md", model_card(facts))
    write_text(folder / "dataset" / "README.md", dataset_card(facts, rows.num_rows))
    return rows.num_rows, digest if exported is model else weights_sha256(exported)


def _widened(model: Model) -> Model:
    """Return a model of text with wide heads. Raise InputError for a model of ours, whose heads vLLM need not have."""
    if isinstance(model, TextModel):
        return with_wide_heads(model)
    raise InputError("only a model of text has wide heads; leave out --wide-heads, since vLLM takes this one as it is")


def _remove(aside: Path) -> None:
    """Remove the folder of an interrupted export; a link is removed, not followed."""
    if aside.is_symlink():
        aside.unlink()
    shutil.rmtree(aside, ignore_errors=True)
