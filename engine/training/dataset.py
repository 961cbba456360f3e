"""Accepted examples on disk: parquet with provenance, and a short JSONL preview for people."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sector.engine.errors import InputError
from sector.engine.files import write_atomically, write_text
from sector.engine.language.examples import Examples
from sector.engine.language.layout import Batch, Layout, Mode
from sector.engine.language.operands import plain_decimals
from sector.engine.policy.improve import Improved, Verdict
from sector.engine.tasks import DEFAULT, find_task
from sector.engine.tasks.task import Task

PREVIEW_ROWS = 20
# What values that are not ours make of the code that reads them.
_NOT_OURS = (ValueError, TypeError, AttributeError, RuntimeError, LookupError)

SCHEMA = pa.schema(
    [
        ("problem", pa.string()),
        ("answer", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("answer_ids", pa.list_(pa.int32())),
        ("simplification", pa.string()),
        ("direct", pa.string()),
        ("guesses", pa.list_(pa.string())),
        ("votes", pa.int32()),
        ("commutes", pa.bool_()),
        ("digits", pa.int32()),
        ("round", pa.int32()),
        ("seed", pa.uint64()),
        ("engine", pa.string()),
        ("weights_sha256", pa.string()),
        ("index", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where examples come from.

    round: the digits of the round, 0 for the supervised phase. seed: of the run. engine: its name, or `oracle`.
    weights_sha256: of the weights that generated them, empty for the oracle.
    """

    round: int
    seed: int
    engine: str
    weights_sha256: str


def improved_table(improved: Improved, rows: Tensor, layout: Layout, provenance: Provenance) -> pa.Table:
    """The accepted rows of an improved batch; `rows [B]` are the problems' indices in their stream.

    Where every step of a chain is distilled, a row a step.
    """
    keep = improved.accepted
    first = improved.first
    k = first.guesses.shape[1]
    tables = []
    for step, lesson in enumerate(improved.lessons()):
        # A guess at the whole is, without the digits found on the way, one at what remained.
        guesses = first.guesses[keep][:, :, : lesson.problems.answer_width]
        flat = plain_decimals(guesses.flatten(0, 1))
        tables.append(
            _table(
                lesson,
                layout,
                provenance,
                # The fast policy was asked the whole problem, not what remained of it.
                direct=[None] * len(guesses) if step else plain_decimals(first.direct[keep]),
                guesses=[flat[row * k : (row + 1) * k] for row in range(len(guesses))],
                votes=first.votes[keep].tolist(),
                commutes=improved.agrees[keep].tolist(),
                index=rows[keep].tolist(),
            )
        )
    return pa.concat_tables(tables)


def labelled_table(examples: Examples, layout: Layout, provenance: Provenance) -> pa.Table:
    """Supervised examples of one length: no guesses, no votes."""
    count = len(examples)
    return _table(
        examples,
        layout,
        provenance,
        direct=[None] * count,
        guesses=[[] for _ in range(count)],
        votes=[0] * count,
        commutes=[False] * count,
        index=list(range(count)),
    )


def candidates_table(improved: Improved) -> pa.Table:
    """Everything tried, for the audit and for people who study what a filter throws away."""
    table = pa.table(
        {
            "problem": improved.problems.texts(),
            "direct": plain_decimals(improved.first.direct),
            "answer": plain_decimals(improved.first.answers),
            "votes": improved.first.votes.tolist(),
            "verdict": [Verdict(value).name.lower() for value in improved.verdict.tolist()],
        }
    )
    return _of_task(table, improved.problems.task)


def read_candidates(path: Path, digits: int) -> tuple[Any, Tensor]:
    """What a round tried: the problems, and the fast policy's direct answers `[B, W]`."""
    task, (texts, direct) = _read_columns(path, ("problem", "direct"))
    try:
        problems = task.parse(texts, digits)
        return problems, _answers(direct, problems)
    except _NOT_OURS as error:
        raise InputError(f"{path} holds a row that is no candidate ({_first_line(error)})") from error


def read_votes(path: Path, digits: int) -> tuple[Any, Tensor, Tensor, Tensor]:
    """What a round tried and made of it: problems, voted answers `[B, N+1]`, votes `[B]`, and accepted `[B]`.

    InputError if the file is none of ours, or a row does not fit.
    """
    try:
        table = pq.read_table(path, columns=["problem", "answer", "votes", "verdict"])
        texts, answers, votes, verdicts = (column.to_pylist() for column in table.columns)
        believed = {verdict.name.lower() for verdict in Verdict if verdict.accepts}
        accepted = [verdict in believed for verdict in verdicts]
        problems = _task_in(table).parse(texts, digits)
        read = problems, _answers(answers, problems), torch.tensor(votes), torch.tensor(accepted)
    except (pa.ArrowException, OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"{path} holds no candidates of {digits} digits ({str(error).splitlines()[0]})") from error
    return read


def write_table(path: Path, table: pa.Table) -> None:
    """Write a parquet file atomically."""
    write_atomically(path, lambda aside: pq.write_table(table, aside))


def preview_of(path: Path) -> Path:
    """Where the preview of a file of examples lies."""
    return path.with_suffix(".preview.jsonl")


def write_examples(path: Path, table: pa.Table) -> None:
    """Write the table, and a preview of its first rows beside it."""
    write_table(path, table)
    lines = [
        json.dumps(row) for row in table.slice(0, PREVIEW_ROWS).drop_columns(["prompt_ids", "answer_ids"]).to_pylist()
    ]
    write_text(preview_of(path), "".join(line + "\n" for line in lines))


def read_examples(path: Path, missed: bool = False) -> dict[Any, Examples]:
    """Examples of a file by length, and by size where a length has several.

    missed: only those to which the fast policy said something else when it was asked directly.
    InputError if it is no parquet of ours or a row does not fit its own length.
    """
    by_size: dict[Any, list[tuple[str, str, str]]] = {}
    columns_read = ("problem", "answer", "simplification", "digits", *["direct"] * missed)
    task, columns = _read_columns(path, columns_read)
    try:
        for problem, answer, simplification, digits, *direct in zip(*columns, strict=True):
            if missed and direct[0] in (None, answer):
                continue
            by_size.setdefault((digits, task.size_of(problem, digits)), []).append((problem, answer, simplification))
        sizes = sorted(by_size)
        # Of several sizes of one length the last is the largest; it is the one that goes by the length alone.
        names = {size[0]: size for size in sizes}
        return {
            size[0] if names[size[0]] == size else size[1]: _examples(task, by_size[size], size[0]) for size in sizes
        }
    except _NOT_OURS as error:
        raise InputError(f"{path} holds a row that is no example ({_first_line(error)})") from error


def _read_columns(path: Path, names: Sequence[str]) -> tuple[Task, list[list[Any]]]:
    """Columns of a parquet file, and the task that it is of. InputError if it is none, or lacks one."""
    try:
        table = pq.read_table(path)
        missing = [name for name in names if name not in table.column_names]
        if missing:
            raise InputError(f"{path} lacks the column {missing[0]!r}; write it with `sector generate`")
        return _task_in(table), [table.column(name).to_pylist() for name in names]
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a readable parquet file ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def simplification_texts(rest: Batch, digit: Tensor) -> list[str]:
    """`12+45+1|9`: the remaining problem, and the digit split off; '' where nothing was simplified."""
    if rest.is_nothing:
        return [""] * len(rest)
    return [f"{text}|{last}" for text, last in zip(rest.texts(), digit.tolist(), strict=True)]


def _table(examples: Examples, layout: Layout, provenance: Provenance, **columns: list[Any]) -> pa.Table:
    count = len(examples)
    values = {
        "problem": examples.problems.texts(),
        "answer": plain_decimals(examples.answers),
        "prompt_ids": _without(layout.pad_id, layout.prompt_ids(examples.problems, Mode.ANSWER)),
        "answer_ids": _without(layout.pad_id, layout.answer_ids(examples.answers)),
        "simplification": simplification_texts(examples.rest, examples.digit),
        "digits": [examples.digits] * count,
        "round": [provenance.round] * count,
        "seed": [provenance.seed] * count,
        "engine": [provenance.engine] * count,
        "weights_sha256": [provenance.weights_sha256] * count,
        **columns,
    }
    return _of_task(pa.table(values, schema=SCHEMA), examples.problems.task)


def _without(pad: int, ids: Tensor) -> list[list[int]]:
    """Rows of ids, padding left out."""
    return [[each for each in row if each != pad] for row in ids.tolist()]


def _examples(task: Task, rows: list[tuple[str, str, str]], digits: int) -> Examples:
    problems = task.parse([row[0] for row in rows], digits)
    answers = _answers([row[1] for row in rows], problems)
    if not any(row[2] for row in rows):
        return Examples(problems, answers, problems.without_digits(), answers[:, -1])
    simplified = [row[2].rpartition("|") for row in rows]
    rest = task.parse([part[0] for part in simplified], digits - 1)
    return Examples(problems, answers, rest, torch.tensor([int(part[2]) for part in simplified]))


def _answers(texts: list[str], problems: Batch) -> Tensor:
    """Decimal strings -> `[B, W]` digits."""
    width = problems.answer_width
    if bad := next((text for text in texts if not text.isdecimal() or len(text) > width), None):
        raise ValueError(f"answer {bad!r} to a problem of {problems.digits} digits")
    return torch.tensor([[int(digit) for digit in text.zfill(width)] for text in texts]).view(len(texts), width)


def _of_task(table: pa.Table, task: str) -> pa.Table:
    """The table with its task's name on it; what bears none is of the first task there was."""
    return table if task == DEFAULT else table.replace_schema_metadata({"task": task})


def _task_in(table: pa.Table) -> Task:
    """The task that a table is of. InputError if it is none of ours."""
    return find_task((table.schema.metadata or {}).get(b"task", DEFAULT.encode()).decode())
