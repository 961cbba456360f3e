"""Rows of an exported dataset: prompt and completion as text, with the whole chain of thought and the guesses.

An accepted example gives up to two rows: problem -> answer (`kind` answer), and problem -> first simplification.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from sector.engine.config import RunConfig
from sector.engine.errors import InputError
from sector.engine.language.operands import batches, digit_strings
from sector.engine.language.writing import Writing, written_texts
from sector.engine.models.checkpoint import task_and_layout
from sector.engine.policy.solve import BATCH, think
from sector.engine.policy.solver import Solver
from sector.engine.run.directory import RunDir
from sector.engine.run.phase import Phase
from sector.engine.run.records import RoundMetrics
from sector.engine.run.teacher import load_teacher
from sector.engine.samplers import make_sampler
from sector.engine.tasks.task import Task
from sector.engine.training.columns import TASK, read_columns
from sector.engine.training.dataset import SCHEMA, read_sets, simplification_texts

# Columns of an example that each of its rows keeps.
_KEPT = (
    "problem", "answer", "simplification", "guesses", "votes", "direct", "digits", "round", "seed", "engine",
    "weights_sha256", "index",
)  # fmt: skip
# Columns in the order of the file.
#
# prompt: problem and mark, `123+456=` for the answer or `123+456>` for the simplification.
# completion: the answer with as many digits as an operand at least, or the simplification. A task that writes numbers
#     with marks between them has all digits in its answers, and its steps as its models write them.
# kind: `answer` or `simplification`.
# chain: the simplifications of the chain of thought, `rest|digit` each; a guess follows each.
COLUMNS = pa.schema(
    [
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("kind", pa.string()),
        ("chain", pa.list_(pa.string())),
        *(SCHEMA.field(name) for name in _KEPT),
        SCHEMA.field(TASK),
    ]
)

_Row = dict[str, Any]


def exported_rows(run: RunDir, config: RunConfig, metrics: Sequence[RoundMetrics]) -> Iterator[pa.Table]:
    """Yield a table of rows for each finished phase, in order. Raise InputError naming a file that cannot be read."""
    phases = [run.round(line.digits) if line.is_round else run.supervised(line.digits) for line in metrics]
    for number, phase in enumerate(phases):
        task, columns = read_columns(phase.examples, SCHEMA, _KEPT, optional=("direct",))
        examples = [dict(zip(_KEPT, row, strict=True)) for row in zip(*columns, strict=True)]
        chains = _chains(task, examples, phases[:number], config) if phase.is_round else {}
        texts = _texts(examples) if task.writing is None else _written_texts(task.writing, phase)
        rows = [
            row | {TASK: task.name, "chain": _chain(example, chains)}
            for example in examples
            for row in _forms(example, texts[_key(example)])
        ]
        yield pa.Table.from_pylist(rows, schema=COLUMNS)


class _Texts(NamedTuple):
    """An example as text.

    problem: the problem.
    answer: its answer.
    step: its simplification; '' if it has none.
    """

    problem: str
    answer: str
    step: str


def _forms(example: _Row, texts: _Texts) -> Iterator[_Row]:
    """Yield the rows of an example: its answer, and its simplification if it has one."""
    yield example | {"prompt": f"{texts.problem}=", "completion": texts.answer, "kind": "answer"}
    if texts.step:
        yield example | {"prompt": f"{texts.problem}>", "completion": texts.step, "kind": "simplification"}


def _key(example: _Row) -> tuple[int, str]:
    """Return the key of the texts of an example: its digits and its problem."""
    return example["digits"], example["problem"]


def _texts(examples: list[_Row]) -> dict[tuple[int, str], _Texts]:
    """Return the texts of examples, as their columns hold them, by digits and problem."""
    return {
        _key(example): _Texts(example["problem"], example["answer"].zfill(example["digits"]), example["simplification"])
        for example in examples
    }


def _written_texts(writing: Writing, phase: Phase) -> dict[tuple[int, str], _Texts]:
    """Return the examples of a phase as text as models of a task with this writing write them, by digits and problem.

    The columns of examples hold problems in a form of their own, in which a remaining product ends in its work.
    """
    texts: dict[tuple[int, str], _Texts] = {}
    for examples in read_sets(phase.examples).values():
        problems = written_texts(writing.problem, writing.problem_numbers(examples.problems))
        steps = [""] * len(examples)
        if not examples.rest.is_nothing:
            steps = written_texts(writing.step, writing.step_numbers(examples.rest, examples.digit))
        written = map(_Texts, problems, digit_strings(examples.answers), steps)
        texts.update(zip([(examples.digits, text) for text in examples.problems.texts()], written, strict=True))
    return texts


def _chain(example: _Row, chains: dict[str, list[str]]) -> list[str]:
    """Return the chain of an example: the one made again if it begins as recorded, else the recorded step alone."""
    step = example["simplification"]
    again = chains.get(example["problem"], [])
    return again if again[:1] == [step] else [step] * bool(step)


def _chains(task: Task, examples: list[_Row], before: Sequence[Phase], config: RunConfig) -> dict[str, list[str]]:
    """Return the chain of thought of each problem, made again by the weights that generated it.

    The loop keeps only the first step of a chain, and greedy decoding gives the same steps. Return nothing if the steps
    were drawn at random, if a task records every step as an example, or if the weights are not those of the examples.

    before: phases before the round.
    """
    if not examples or config.filter.temperature or task.at_once is not None:
        return {}
    try:
        model = load_teacher(config.round, before)
    except InputError:
        return {}
    sampler = make_sampler("native", model)
    if sampler.weights_sha256 != examples[0]["weights_sha256"]:
        return {}
    solver = Solver(sampler, task_and_layout(model)[1], "slow", config.filter)
    texts = [example["problem"] for example in examples]
    chains: dict[str, list[str]] = {}
    for batch in batches(task.parse(texts, examples[0]["digits"]), BATCH):
        chain = think(solver, batch, task.num_simplifications(batch, len(examples[0]["guesses"])))
        steps = [simplification_texts(step.rest, step.digit) for step in chain.steps]
        for row, (text, length) in enumerate(zip(batch.texts(), chain.num_parsed.tolist(), strict=True)):
            chains[text] = [texts[row] for texts in steps[:length]]
    return chains
