"""Problems of Reasoning Gym's arithmetic generators as an evaluation: `sector.evaluate_gym`, `sector eval --gym`.

A generator poses problems in words; the expression in them is read as a problem of the model's task. Each answer is
scored twice, by the generator's own scorer and by the truth of the task.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Protocol, TypedDict

from sector.engine.api.answers import check_policy
from sector.engine.api.choice import ModelLike, opened
from sector.engine.api.settings import check_numbers, filter_settings
from sector.engine.config import Filter, PolicyName, Values
from sector.engine.errors import InputError, first_line
from sector.engine.language.operands import plain_decimals
from sector.engine.policy.solve import Solution, solve
from sector.engine.policy.solver import Solver
from sector.engine.run.steps import OnProgress, no_progress, open_engine
from sector.engine.shares import wilson
from sector.engine.tasks import true_answers
from sector.engine.tasks.task import Task

# Answers on which scorer and truth differ that a report shows.
_SHOWN = 3
_BATCH = 1000


class _Entry(TypedDict):
    """A problem of a generator."""

    question: str
    metadata: dict[str, object]


class _Dataset(Protocol):
    """Problems of a generator, as Reasoning Gym makes them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> _Entry: ...

    def score_answer(self, answer: str | None, entry: _Entry) -> float: ...


@dataclass(slots=True)
class GymLength:
    """Answers to the problems of one length.

    digits: digits of the problems.
    samples: count of the problems.
    correct: answers that are right by the truth of the task.
    scored: answers that are right by the generator's scorer.
    """

    digits: int
    samples: int = 0
    correct: int = 0
    scored: int = 0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson 95 % interval of the share of `correct`."""
        return wilson(self.correct, self.samples)


@dataclass(slots=True)
class GymReport:
    """Scores of a model on problems of a generator.

    generator: name of the generator.
    task: name of the model's task, which reads the problems.
    policy: policy that answered.
    asked: count of the generator's problems.
    unread: count of those that are no problems of the task.
    first_unread: the first one of them; None if there is none.
    lengths: scores by digits, shortest first.
    differing: first answers on which the scorer and the truth differ, as `problem = answer`.
    """

    generator: str
    task: str
    policy: str
    asked: int
    unread: int = 0
    first_unread: str | None = None
    lengths: list[GymLength] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """Return the report as a JSON object."""
        lengths = [{**asdict(length), "low": length.interval[0], "high": length.interval[1]} for length in self.lengths]
        return asdict(self) | {"lengths": lengths}


def evaluate_gym(
    generator: str,
    model: ModelLike = None,
    samples: int = 1000,
    policy: PolicyName = "fast",
    *,
    options: Values | None = None,
    engine: str = "native",
    filter: str | Filter | Values = "strict",
    k: int | None = None,
    settings: Values | None = None,
    seed: int = 0,
    on_progress: OnProgress = no_progress,
) -> GymReport:
    """Measure accuracy on problems of a generator of Reasoning Gym, and count those that the model's task cannot read.

    generator: name of an arithmetic generator, such as `chain_sum`.
    model: as in `load`.
    samples: count of problems that the generator makes.
    policy: `fast`, `slow` or `improved`.
    options: settings of the generator, such as `{"max_terms": 2}`.
    engine: engine that generates.
    filter: checks of the improved policy, by name or as a `Filter`.
    k: guesses of a vote; by default that of the filter.
    settings: settings of the engine vllm, nested as in a config file.
    seed: seed of the generator.
    on_progress: called with the problems done, their total, and a note.

    Raise InputError if Reasoning Gym is not installed, or for bad input.
    """
    check_numbers(seed, samples=samples)
    name, checks = check_policy(policy), filter_settings(filter, k)
    dataset = _dataset(generator, {**(options or {}), "size": samples, "seed": seed})
    sampler, task, layout = open_engine(opened(model), engine, settings)
    solver = Solver(sampler, layout, name, checks)
    report = GymReport(generator, task.name, name, samples)
    lengths: dict[int, GymLength] = {}
    for done, digits, entries in _batches(dataset, task, report):
        texts = [text for text, _ in entries]
        truths = plain_decimals(true_answers(task.parse(texts)))
        length = lengths.setdefault(digits, GymLength(digits))
        for (_, entry), solution, truth in zip(entries, solve(solver, task, texts), truths, strict=True):
            scored = dataset.score_answer(solution.answer, entry) == 1
            _count(length, report, solution, truth, scored)
        on_progress(done, samples, f"{report.unread} unread")
    report.lengths = [lengths[digits] for digits in sorted(lengths)]
    return report


def _count(length: GymLength, report: GymReport, solution: Solution, truth: str, scored: bool) -> None:
    """Add an answer to the counts."""
    is_right = solution.answer == truth
    length.samples += 1
    length.correct += is_right
    length.scored += scored
    if is_right != scored and len(report.differing) < _SHOWN:
        report.differing.append(f"{solution.problem} = {solution.answer}")


def _batches(dataset: _Dataset, task: Task, report: GymReport) -> Iterator[tuple[int, int, list[tuple[str, _Entry]]]]:
    """Yield problems that a task reads, with their entries, of one length each time.

    Before them come the count of entries read so far, and the digits of the problems.

    Entries that it does not read are counted in the report.
    """
    by_digits: defaultdict[int, list[tuple[str, _Entry]]] = defaultdict(list)
    for index in range(len(dataset)):
        entry = dataset[index]
        text = _expression(entry)
        try:
            digits = task.digits_of(text)
        except InputError:
            report.unread += 1
            report.first_unread = report.first_unread or text
            continue
        by_digits[digits].append((text, entry))
        if len(by_digits[digits]) == _BATCH:
            yield index + 1, digits, by_digits.pop(digits)
    for digits, rest in by_digits.items():
        yield len(dataset), digits, rest


def _expression(entry: _Entry) -> str:
    """Return the expression of an entry; its question if it has none."""
    return str(entry["metadata"].get("expression") or entry["question"])


def _dataset(generator: str, options: dict[str, object]) -> _Dataset:
    """Return the problems of a generator. Raise InputError if the generator is unknown, or its options are wrong."""
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise InputError("--gym needs Reasoning Gym; pip install 'sector-lm[gym]'") from error
    names = sorted(name for name, (cls, _) in DATASETS.items() if ".arithmetic." in cls.__module__)
    if generator not in names:
        raise InputError(f"unknown generator {generator!r}; choose one of {', '.join(names)}")
    try:
        return create_dataset(generator, **options)
    # Generators check their options by assertions.
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(
            f"{generator} does not take these options ({first_line(error)}); change them with --gym-set"
        ) from error
