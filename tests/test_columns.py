"""Parquet that other libraries have rewritten: it trains the same, or is refused in one line."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from sector.engine.errors import InputError
from sector.engine.models.checkpoint import save_checkpoint
from sector.engine.models.sector import new_model
from sector.engine.run.steps import distill_files
from sector.engine.tasks import find_task
from sector.engine.training.columns import TASK, read_columns
from sector.engine.training.dataset import (
    CANDIDATES,
    SCHEMA,
    Provenance,
    labelled_table,
    read_candidates,
    read_examples,
    read_votes,
    write_examples,
)
from sector.engine.training.supervised import label

ROWS = 24


def table_of(task: str, digits: int = 4) -> pa.Table:
    task_itself = find_task(task)
    examples = label(task_itself.draw(digits, ROWS, torch.Generator().manual_seed(digits)))
    return labelled_table(examples, task_itself.layout("msd"), Provenance(0, 2**63, "oracle", ""))


def candidates() -> pa.Table:
    """Two rows of subtraction as a round of it leaves them."""
    rows = {"problem": ["52-19", "52-20"], "direct": ["33", "31"], "answer": ["33", "32"], "votes": [5, 4]}
    return pa.table({**rows, "verdict": ["accepted", "outvoted"], TASK: ["subtraction"] * 2}, schema=CANDIDATES)


def trained(model: Path, data: Path, out: Path) -> str:
    report = distill_files(model, [data], [], out, steps=2, seed=3, on_progress=lambda *_: None)
    return str(report.weights_sha256)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "subtraction"
    save_checkpoint(new_model("tiny", 0, task="subtraction"), path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Subtraction of two lengths."""
    path = tmp_path_factory.mktemp("data") / "ours.parquet"
    write_examples(path, pa.concat_tables([table_of("subtraction", 3), table_of("subtraction")]))
    return path


@pytest.fixture(scope="module")
def untouched(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return trained(model, data, tmp_path_factory.mktemp("out") / "untouched")


def by_pandas(path: Path, out: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pandas.read_parquet(path).to_parquet(out)


def by_pandas_with_categories_and_an_index(path: Path, out: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(path)
    kinds = {"task": "category", "problem": "category", "digits": "float64", "votes": "float64"}
    frame = frame.astype({name: kind for name, kind in kinds.items() if name in frame})
    # As after a filter: an index that is written as a column.
    frame.set_axis(range(7, 7 + len(frame))).loc[list(range(7, 7 + len(frame)))].to_parquet(out, index=True)


def by_polars(path: Path, out: Path) -> None:
    polars = pytest.importorskip("polars")
    polars.read_parquet(path).with_columns(polars.col("task").cast(polars.Categorical)).write_parquet(out)


def by_duckdb(path: Path, out: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect() as connection:
        connection.sql(f"SELECT * FROM '{path}'").write_parquet(str(out), compression="zstd")


def by_datasets(path: Path, out: Path) -> None:
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(out.parent / "cache"))
    loaded.to_parquet(str(out))


def by_arrow_widened(path: Path, out: Path) -> None:
    """Every type as wide as the libraries make it; columns from last to first, one more, no metadata."""
    wide = {
        pa.string(): pa.large_string(),
        pa.int32(): pa.int64(),
        pa.bool_(): pa.uint8(),
        pa.list_(pa.int32()): pa.large_list(pa.int64()),
        pa.list_(pa.string()): pa.large_list(pa.large_string()),
    }
    table = pq.read_table(path)
    fields = [pa.field(field.name, wide.get(field.type, field.type), nullable=True) for field in table.schema]
    table = table.cast(pa.schema(fields)).select(table.column_names[::-1])
    pq.write_table(table.append_column("note", pa.nulls(len(table))), out, compression="zstd")


def by_arrow_views(path: Path, out: Path) -> None:
    table = pq.read_table(path)
    views = [pa.string_view() if kind == pa.string() else kind for kind in table.schema.types]
    pq.write_table(table.cast(pa.schema(list(zip(table.column_names, views, strict=True)))), out)


def by_arrow_dictionaries(path: Path, out: Path) -> None:
    table = pq.read_table(path)
    for at, name in enumerate(table.column_names):
        if table.schema.field(name).type == pa.string():
            table = table.set_column(at, name, table.column(name).dictionary_encode())
    pq.write_table(table, out)


def by_halves(path: Path, out: Path) -> None:
    """Cut in two files, and put together again."""
    table = pq.read_table(path)
    for part, rows in enumerate((table.slice(0, ROWS), table.slice(ROWS))):
        pq.write_table(rows, out.with_name(f"part{part}.parquet"))
    pq.write_table(pa.concat_tables(pq.read_table(out.with_name(f"part{part}.parquet")) for part in (0, 1)), out)


WAYS = pytest.mark.parametrize(
    "rewrite",
    [
        by_pandas,
        by_pandas_with_categories_and_an_index,
        by_polars,
        by_duckdb,
        by_datasets,
        by_arrow_widened,
        by_arrow_views,
        by_arrow_dictionaries,
        by_halves,
    ],
    ids=lambda way: way.__name__,
)


@WAYS
def test_what_was_rewritten_trains_to_the_same_weights(
    model: Path, data: Path, untouched: str, tmp_path: Path, rewrite: Callable[[Path, Path], None]
) -> None:
    rewrite(data, tmp_path / "theirs.parquet")
    assert trained(model, tmp_path / "theirs.parquet", tmp_path / "out") == untouched


@WAYS
def test_candidates_that_were_rewritten_are_read_the_same(
    tmp_path: Path, rewrite: Callable[[Path, Path], None]
) -> None:
    pq.write_table(candidates(), tmp_path / "ours.parquet")
    rewrite(tmp_path / "ours.parquet", tmp_path / "theirs.parquet")
    problems, direct = read_candidates(tmp_path / "theirs.parquet", 2)
    assert problems.task == "subtraction" and direct.tolist() == [[0, 3, 3], [0, 3, 1]]
    again, answers, votes, accepted = read_votes(tmp_path / "theirs.parquet", 2)
    assert again.texts() == ["52-19", "52-20"] and answers.tolist() == [[0, 3, 3], [0, 3, 2]]
    assert votes.tolist() == [5, 4] and accepted.tolist() == [True, False]


def test_some_rows_are_a_smaller_file(data: Path, tmp_path: Path) -> None:
    table = pq.read_table(data)
    pq.write_table(table.filter(pc.equal(table.column("digits"), 3)), tmp_path / "some.parquet")
    assert list(read_examples(tmp_path / "some.parquet")) == [3]


@pytest.mark.parametrize(
    ("metadata", "task"), [({"task": "subtraction"}, "subtraction"), (None, "addition")], ids=["of a task", "the first"]
)
def test_older_files_have_the_task_in_their_metadata(
    tmp_path: Path, metadata: dict[str, str] | None, task: str
) -> None:
    older = table_of(task).drop_columns([TASK])
    pq.write_table(older.replace_schema_metadata(metadata), tmp_path / "older.parquet")
    assert read_examples(tmp_path / "older.parquet")[4].problems.task == task


def test_rows_of_an_older_file_beside_newer_ones_are_of_the_first_task(tmp_path: Path) -> None:
    parts = [table_of("addition", 3).drop_columns([TASK]), table_of("addition")]
    pq.write_table(pa.concat_tables(parts, promote_options="default"), tmp_path / "both.parquet")
    assert list(read_examples(tmp_path / "both.parquet")) == [3, 4]


def replaced(name: str, values: object) -> Callable[[pa.Table], pa.Table]:
    def replace(table: pa.Table) -> pa.Table:
        array = values if isinstance(values, pa.Array) else pa.array([values] * len(table))
        return table.set_column(table.column_names.index(name), name, array)

    return replace


BROKEN = {
    "two tasks": (lambda table: pa.concat_tables([table, table_of("addition")]), "addition and subtraction"),
    "no task of ours": (replaced(TASK, "division"), "unknown task 'division'"),
    "a task by number": (replaced(TASK, 7), "column 'task'"),
    "answers as numbers": (replaced("answer", 7.0), "double in the column 'answer'"),
    "half a digit": (replaced("digits", 3.5), "column 'digits'"),
    "no digits": (replaced("digits", None), "no value in the column 'digits' of row 1"),
    "no answer": (replaced("answer", None), "no value in the column 'answer' of row 1"),
    "a list": (replaced("problem", ["1-1"]), "column 'problem'"),
    "two columns": (lambda table: table.append_column("problem", table.column("problem")), "several columns 'problem'"),
    "too long a number": (replaced("digits", 2**40), "column 'digits'"),
}


@pytest.mark.parametrize(("change", "said"), BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_read_right_is_refused_in_one_line(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], said: str
) -> None:
    path = tmp_path / "theirs.parquet"
    pq.write_table(change(table_of("subtraction")), path)
    with pytest.raises(InputError) as caught:
        read_examples(path)
    assert said in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_only_columns_that_are_asked_for_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_examples(tmp_path / "some.parquet", table_of("addition"))
    loaded: list[str] = []
    read = pq.ParquetFile.read

    def overheard(self: pq.ParquetFile, columns: list[str]) -> pa.Table:
        loaded.extend(columns)
        return read(self, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read", overheard)
    read_columns(tmp_path / "some.parquet", SCHEMA, ("problem", "digits"))
    assert sorted(loaded) == ["digits", "problem", TASK]


def test_data_of_another_task_is_refused_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    write_examples(tmp_path / "sums.parquet", table_of("addition"))
    with pytest.raises(InputError, match=r"sums\.parquet holds examples of addition, .* learned subtraction"):
        trained(model, tmp_path / "sums.parquet", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"sums.parquet", "sums.preview.jsonl"}
