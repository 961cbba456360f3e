"""Read and write examples and candidates as parquet, with a short JSONL preview of examples for users."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sector.engine.errors import InputError, first_line
from sector.engine.files import write_atomically, write_text
from sector.engine.language.examples import Examples
from sector.engine.language.layout import Batch, Layout, Mode
from sector.engine.language.operands import plain_decimals
from sector.engine.language.tokens import MAX_DIGITS
from sector.engine.policy.improve import BELIEVED, Improved
from sector.engine.tasks import task_of
from sector.engine.tasks.task import Task
from sector.engine.training.columns import TASK, read_columns
from sector.engine.training.locations import Location

PREVIEW_ROWS = 20
# Exceptions that malformed rows can raise while they are parsed.
_MALFORMED = (ValueError, TypeError, AttributeError, RuntimeError, LookupError)

# Columns of examples.
#
# problem: its text, every operand with all its digits.
# answer: the voted answer or the label, in plain decimals.
# prompt_ids: token ids of the prompt that asks for the answer.
# answer_ids: token ids of the answer, end included.
# simplification: the remaining problem and the digit split off, as `12+45|9`; '' if there is none.
# direct: the fast answer; null if the fast policy was not asked.
# guesses: the K guesses of simplify-then-guess; empty for a label.
# votes: count of guesses that equal the answer; 0 for a label.
# commutes: whether the commutativity check agreed.
# digits: N of the problem.
# task: name of the task; readers take it from here.
# round: digits of the round; 0 for the supervised phase.
# seed: seed of the run.
# engine: engine that generated the row, or `oracle`.
# weights_sha256: digest of the weights that generated the row; '' for the oracle.
# index: number of the problem in its stream.
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
        (TASK, pa.string()),
        ("round", pa.int32()),
        ("seed", pa.uint64()),
        ("engine", pa.string()),
        ("weights_sha256", pa.string()),
        ("index", pa.int64()),
    ]
)

# Columns of candidates.
#
# problem, direct, answer, votes, task: as above; also of rejected candidates.
# verdict: the filter's, in the names of `Improved.verdicts`.
CANDIDATES = pa.schema(
    [
        ("problem", pa.string()),
        ("direct", pa.string()),
        ("answer", pa.string()),
        ("votes", pa.int64()),
        ("verdict", pa.string()),
        (TASK, pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Origin of examples.

    round: digits of the round; 0 for the supervised phase.
    seed: seed of the run.
    engine: name of the engine, or `oracle`.
    weights_sha256: digest of the weights that generated them; '' for the oracle.
    """

    round: int
    seed: int
    engine: str
    weights_sha256: str


def improved_table(improved: Improved, rows: Tensor, layout: Layout, provenance: Provenance) -> pa.Table:
    """Build the table of examples from the accepted rows of an improved batch.

    If the task distills every step of a chain, each step is a row.

    rows: `[B]` indices of the problems in their stream.
    """
    keep = improved.accepted
    ballot = improved.ballot
    k = ballot.guesses.shape[1]
    tables = []
    for step, examples in enumerate(improved.examples_by_step()):
        # Without the digits split off before, a guess of the whole answer is one of the remaining problem's.
        guesses = task_of(examples.problems).rest_answers(ballot.guesses[keep], examples.problems.answer_width)
        flat = plain_decimals(guesses.flatten(0, 1))
        tables.append(
            _table(
                examples,
                layout,
                provenance,
                # The fast policy was asked the whole problem, not the remaining ones.
                direct=[None] * len(guesses) if step else plain_decimals(ballot.direct[keep]),
                guesses=[flat[row * k : (row + 1) * k] for row in range(len(guesses))],
                votes=ballot.votes[keep].tolist(),
                commutes=improved.commutes[keep].tolist(),
                index=rows[keep].tolist(),
            )
        )
    return pa.concat_tables(tables)


def labelled_table(examples: Examples, layout: Layout, provenance: Provenance) -> pa.Table:
    """Build the table of supervised examples of one length: no guesses, no votes."""
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
    """Build the table of all candidates, for the audit and for studies of the filter."""
    columns = {
        "problem": improved.problems.texts(),
        "direct": plain_decimals(improved.ballot.direct),
        "answer": plain_decimals(improved.ballot.answers),
        "votes": improved.ballot.votes.tolist(),
        "verdict": improved.verdicts,
        TASK: [improved.problems.task] * len(improved.problems),
    }
    return pa.table(columns, schema=CANDIDATES)


def read_candidates(path: Path, digits: int) -> tuple[Batch, Tensor]:
    """Read the problems that a round tried, and the fast answers `[B, W]`.

    Raise InputError if the file is not readable or a row does not fit.
    """
    task, (texts, direct) = read_columns(path, CANDIDATES, ("problem", "direct"))
    try:
        problems = task.parse(texts, digits)
        return problems, _answers(direct, problems)
    except _MALFORMED as error:
        raise InputError(f"{path} holds a row that is no candidate ({first_line(error)})") from error


def read_votes(path: Path, digits: int) -> tuple[Batch, Tensor, Tensor, Tensor]:
    """Read problems, voted answers `[B, W]`, votes `[B]` and whether each was accepted `[B]`, of a round's candidates.

    Raise InputError if the file is not readable or a row does not fit.
    """
    task, (texts, answers, votes, verdicts) = read_columns(path, CANDIDATES, ("problem", "answer", "votes", "verdict"))
    try:
        problems = task.parse(texts, digits)
        accepted = [verdict in BELIEVED for verdict in verdicts]
        return problems, _answers(answers, problems), torch.tensor(votes), torch.tensor(accepted)
    except _MALFORMED as error:
        raise InputError(f"{path} holds no candidates of {digits} digits ({first_line(error)})") from error


def write_table(path: Path, table: pa.Table) -> None:
    """Write a parquet file atomically; its name may hold any bytes."""

    def write(aside: Path) -> None:
        with aside.open("wb") as file:
            pq.write_table(table, file)

    write_atomically(path, write)


def preview_of(path: Path) -> Path:
    """Return the path of the preview of a file of examples."""
    return path.with_suffix(".preview.jsonl")


def write_examples(path: Path, table: pa.Table) -> None:
    """Write a table of examples, and a preview of its first rows beside it."""
    write_table(path, table)
    lines = [
        json.dumps(row) for row in table.slice(0, PREVIEW_ROWS).drop_columns(["prompt_ids", "answer_ids"]).to_pylist()
    ]
    write_text(preview_of(path), "".join(line + "\n" for line in lines))


def read_examples(path: Location) -> dict[Any, Examples]:
    """Read the examples of a file by length; by size (`Task.size_of`) for all but the largest size of a length.

    Raise InputError if the file is not readable or a row does not fit its own length.
    """
    sets = read_sets(path)
    # Sizes are in order, so the last one of a length is the largest; its key is the length.
    largest = {size[0]: size for size in sets}
    return {size[0] if largest[size[0]] == size else size[1]: examples for size, examples in sets.items()}


def read_sets(path: Location) -> dict[tuple[int, Any], Examples]:
    """Read the examples of a file by length and size, in order. Raise InputError as `read_examples`."""
    task, columns = read_columns(path, SCHEMA, _LEARNED)
    return {size: examples for size, examples, _ in _sets(path, task, [*columns, [None] * len(columns[0])])}


def read_missed(path: Path) -> list[tuple[Examples, Tensor]]:
    """Read the sets of `read_examples`, each with the indices `[M]` of the rows that the fast policy missed.

    A row is missed if its direct answer differs from its answer.
    """
    task, columns = read_columns(path, SCHEMA, (*_LEARNED, "direct"), optional=("direct",))
    return [(examples, missed) for _, examples, missed in _sets(path, task, columns)]


# Columns that training reads.
_LEARNED = ("problem", "answer", "simplification", "digits")


def _sets(path: Location, task: Task, columns: list[list[Any]]) -> list[tuple[Any, Examples, Tensor]]:
    """Sort rows into sets of one size; return size, examples and indices of missed rows of each, in order of size."""
    by_size: dict[Any, list[tuple[Any, ...]]] = {}
    try:
        for row in zip(*columns, strict=True):
            by_size.setdefault((row[3], task.size_of(row[0], row[3])), []).append(row)
        return [(size, _examples(task, by_size[size], size[0]), _missed(by_size[size])) for size in sorted(by_size)]
    except _MALFORMED as error:
        raise InputError(f"{path} holds a row that is no example ({first_line(error)})") from error


def _missed(rows: list[tuple[Any, ...]]) -> Tensor:
    """Return the indices of rows with a direct answer that is not the answer."""
    return torch.tensor([index for index, row in enumerate(rows) if row[4] not in (None, row[1])], dtype=torch.int64)


def simplification_texts(rest: Batch, digit: Tensor) -> list[str]:
    """Format simplifications as remaining problem and digit, `12+45+1|9`; '' if no problem remains."""
    if rest.is_nothing:
        return [""] * len(rest)
    return [f"{text}|{last}" for text, last in zip(rest.texts(), digit.tolist(), strict=True)]


def _table(examples: Examples, layout: Layout, provenance: Provenance, **columns: list[Any]) -> pa.Table:
    """Build a table of examples from the columns that all kinds share, and the given ones."""
    count = len(examples)
    values = {
        "problem": examples.problems.texts(),
        "answer": plain_decimals(examples.answers),
        "prompt_ids": _without(layout.pad_id, layout.prompt_ids(examples.problems, Mode.ANSWER)),
        "answer_ids": _without(layout.pad_id, layout.answer_ids(examples.answers)),
        "simplification": simplification_texts(examples.rest, examples.digit),
        "digits": [examples.digits] * count,
        TASK: [examples.problems.task] * count,
        "round": [provenance.round] * count,
        "seed": [provenance.seed] * count,
        "engine": [provenance.engine] * count,
        "weights_sha256": [provenance.weights_sha256] * count,
        **columns,
    }
    return pa.table(values, schema=SCHEMA)


def _without(pad: int, ids: Tensor) -> list[list[int]]:
    """Return rows of ids without padding."""
    return [[token for token in row if token != pad] for row in ids.tolist()]


def _examples(task: Task, rows: list[tuple[Any, ...]], digits: int) -> Examples:
    """Parse rows of the columns `_LEARNED` into examples of one size. Raise ValueError for a row that is no example."""
    # Before anything is padded with zeros to this length.
    if not 0 <= digits <= MAX_DIGITS:
        raise ValueError(f"no problems of {digits} digits exist, only of 0 to {MAX_DIGITS}")
    problems = task.parse([row[0] for row in rows], digits)
    answers = _answers([row[1] for row in rows], problems)
    if not any(row[2] for row in rows):
        return Examples(problems, answers, problems.without_digits(), answers[:, -1])
    simplified = [row[2].rpartition("|") for row in rows]
    rest = task.parse([part[0] for part in simplified], digits - 1)
    for rest_text, mark, digit in simplified:
        if len(digit) != 1 or not digit.isdecimal():
            raise ValueError(f"simplification {rest_text + mark + digit!r} splits no digit off")
    return Examples(problems, answers, rest, torch.tensor([int(part[2]) for part in simplified]))


def _answers(texts: list[str], problems: Batch) -> Tensor:
    """Parse decimal strings into `[B, W]` digits. Raise ValueError for one that is no answer to these problems."""
    width = problems.answer_width
    if (bad := next((text for text in texts if not text.isdecimal() or len(text) > width), None)) is not None:
        raise ValueError(f"answer {bad!r} to a problem of {problems.digits} digits")
    return torch.tensor([[int(digit) for digit in text.zfill(width)] for text in texts]).view(len(texts), width)
