"""Solve typed problems by any policy, and show the chains of thought as text.

In the shape descriptions B is the batch, N the digits per operand and S the simplifications of a chain of thought.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from sector.engine.config import Filter
from sector.engine.errors import InputError
from sector.engine.language.layout import Batch
from sector.engine.language.operands import batches, digit_strings, plain_decimals
from sector.engine.language.tokens import MAX_DIGITS
from sector.engine.policy.chain import Chain
from sector.engine.policy.checks import checks_of
from sector.engine.policy.improve import Improved
from sector.engine.policy.solver import Solver
from sector.engine.tasks import task_of
from sector.engine.tasks.task import Task

BATCH = 1000

_UNPARSABLE = "the model's output does not parse"
_DISAGREE = "the model disagrees with itself"


@dataclass(frozen=True, slots=True)
class Step:
    """One simplification.

    rest: the problem that remains.
    found: the digits of the answer found so far, in their order in the answer.
    """

    rest: str
    found: str


@dataclass(frozen=True, slots=True)
class Tried:
    """A check that was tried on a problem.

    check: name of the check.
    label: the check in words.
    problem: the problem that it poses.
    answer: the model's answer to that problem; None if it is not valid.
    agrees: whether the answer is as expected.
    """

    check: str
    label: str
    problem: str
    answer: str | None
    agrees: bool


@dataclass(frozen=True, slots=True)
class Thought:
    """The reasoning behind an answer.

    steps: the chain of thought.
    guesses: the full answer that each step votes for, None if it did not parse; the slow policy guesses after its last
        step only.
    vote: the answer with most votes; if the problem was thought through, the answer of the whole chain.
    votes: count of guesses equal to it.
    direct: the fast answer to the whole problem.
    checks: the checks that were tried on other problems.
    through: whether the problem was thought through.
    """

    steps: list[Step]
    guesses: list[str | None]
    vote: str | None = None
    votes: int = 0
    direct: str | None = None
    checks: list[Tried] = field(default_factory=list)
    through: bool = False


@dataclass(frozen=True, slots=True)
class Solution:
    """A typed problem and its answer.

    problem: the text as typed.
    answer: plain decimals; None if there is no answer.
    policy: the policy that solved it.
    error: why there is no answer.
    thought: the reasoning; None unless it is to be shown.
    unread: whether the text is not a problem, so that the model never saw it.
    """

    problem: str
    answer: str | None
    policy: str
    error: str | None = None
    thought: Thought | None = None
    unread: bool = False

    def as_json(self) -> dict[str, object]:
        """Return the values that are not None, and `answer` in any case."""
        values = asdict(self)
        del values["unread"]
        return {key: value for key, value in values.items() if value is not None or key == "answer"}


# Result for one problem: the answer, why there is none, and the reasoning.
_Outcome = tuple[str | None, str | None, Thought | None]


def solve(solver: Solver, task: Task, texts: Sequence[str], show: bool = False) -> list[Solution]:
    """Return a solution for each text, in order; problems of one length are solved together.

    A text that is not a problem gets an error in the place of an answer.

    task: the task that the weights were trained on.
    show: keep the reasoning.
    """
    solutions: dict[int, Solution] = {}
    by_length: dict[int, list[int]] = {}
    for index, text in enumerate(texts):
        try:
            by_length.setdefault(check_problem(task, text), []).append(index)
        except InputError as error:
            solutions[index] = Solution(text, None, solver.policy, str(error), unread=True)
    policies: dict[str, Callable[[Solver, Batch, bool], list[_Outcome]]] = {
        "fast": _solve_fast,
        "slow": _solve_slowly,
        "improved": _solve_improved,
    }
    run = policies[solver.policy]
    for digits, rows in by_length.items():
        problems = task.parse([texts[row] for row in rows], digits)
        outcomes = [outcome for batch in batches(problems, BATCH) for outcome in run(solver, batch, show)]
        for row, (answer, reason, thought) in zip(rows, outcomes, strict=True):
            solutions[row] = Solution(texts[row], answer, solver.policy, reason, thought)
    return [solutions[index] for index in range(len(texts))]


def _solve_fast(solver: Solver, problems: Batch, show: bool) -> list[_Outcome]:
    """Answer directly, without a chain of thought."""
    outcomes: list[_Outcome] = []
    answers, parsed = solver.answer_fast(problems)
    for answer, is_parsed in zip(plain_decimals(answers), parsed.tolist(), strict=True):
        thought = Thought([], [], direct=answer) if show else None
        outcomes.append((answer, None, thought) if is_parsed else (None, _UNPARSABLE, None))
    return outcomes


def _solve_slowly(solver: Solver, problems: Batch, show: bool) -> list[_Outcome]:
    """Simplify down to one digit, and answer that problem fast: a chain of thought to the end."""
    outcomes: list[_Outcome] = []
    chain = think(solver, problems, problems.digits - 1)
    answers = chain.guess(*solver.answer_fast(chain.current))
    for answer, steps, is_parsed in zip(plain_decimals(answers), _steps(chain), chain.valid[0].tolist(), strict=True):
        guesses: list[str | None] = [answer] if is_parsed else []
        thought = Thought(steps, guesses) if show else None
        error = f"{_UNPARSABLE}, after {len(steps)} steps"
        outcomes.append((answer, None, thought) if is_parsed else (None, error, thought))
    return outcomes


def _solve_improved(solver: Solver, problems: Batch, show: bool) -> list[_Outcome]:
    """Run the improved policy: simplify-then-guess, vote, and checks."""
    improved = solver.improve(problems)
    answers = plain_decimals(improved.ballot.answers)
    thoughts = _thoughts(solver, problems, improved) if show else [None] * len(problems)
    errors = _errors(solver.settings, task_of(problems))
    return [
        (None if verdict in errors else answer, errors.get(verdict), thought)
        for answer, verdict, thought in zip(answers, improved.verdicts, thoughts, strict=True)
    ]


def _errors(settings: Filter, task: Task) -> dict[str, str]:
    """Return why there is no answer, by verdict."""
    return {
        "unparsable": _UNPARSABLE,
        "outvoted": f"{_DISAGREE}: the guesses differ",
        **{check.reason: f"{_DISAGREE}: {check.label}" for check in checks_of(settings, task)},
    }


def _thoughts(solver: Solver, problems: Batch, improved: Improved) -> list[Thought | None]:
    """Return the reasoning of the improved policy.

    The policy keeps only the first step of a chain, so the chains are generated again. Greedy decoding gives the same
    steps.
    """
    ballot = improved.ballot
    through = [verdict == "thought_through" for verdict in improved.verdicts]
    num_guessed = task_of(problems).num_simplifications(problems, ballot.guesses.shape[1])
    num_steps = problems.digits - 1 if any(through) else num_guessed
    chains = _steps(think(solver, problems, num_steps))
    steps = [chain if whole else chain[:num_guessed] for chain, whole in zip(chains, through, strict=True)]
    guesses = [
        _where(plain_decimals(row), valid) for row, valid in zip(ballot.guesses, ballot.valid.tolist(), strict=True)
    ]
    columns = (
        steps,
        guesses,
        _where(plain_decimals(ballot.answers), (improved.accepted | (ballot.votes > 0)).tolist()),
        ballot.votes.tolist(),
        _where(plain_decimals(ballot.direct), ballot.direct_valid.tolist()),
        _tried(solver.settings, problems, improved),
        through,
    )
    return [Thought(*values) for values in zip(*columns, strict=True)]


def _tried(settings: Filter, problems: Batch, improved: Improved) -> list[list[Tried]]:
    """Return the checks that were tried on other problems, one list per problem."""
    rows: list[list[Tried]] = [[] for _ in range(len(problems))]
    checks = {check.name: check for check in checks_of(settings, task_of(problems))}
    for checked in improved.checks:
        check = checks[checked.name]
        posed = check.pose(problems, improved.ballot.answers)
        if posed is None or posed[0] is problems:
            continue
        answers = plain_decimals(checked.answers)
        columns = (posed[0].texts(), answers, checked.agrees.tolist(), checked.taken.tolist())
        for row, (problem, answer, agrees, taken) in zip(rows, zip(*columns, strict=True), strict=True):
            if taken:
                row.append(Tried(check.name, check.label, problem, answer, agrees))
    return rows


def think(solver: Solver, problems: Batch, num_steps: int) -> Chain[Batch]:
    """Return a chain of thought of `num_steps` simplifications."""
    chain = Chain.begun(problems)
    for _ in range(num_steps):
        chain.simplify(solver.simplify(chain.current))
    return chain


def _steps(chain: Chain[Batch]) -> list[list[Step]]:
    """Return chains as text, up to the first step that does not parse."""
    texts = [step.rest.texts() for step in chain.steps]
    found = [
        digit_strings(task_of(step.rest).join(chain.found[:, -count:], chain.found[:, :0]))
        for count, step in enumerate(chain.steps, start=1)
    ]
    return [
        [Step(texts[step][row], found[step][row]) for step in range(length)]
        for row, length in enumerate(chain.num_parsed.tolist())
    ]


def check_problem(task: Task, text: str) -> int:
    """Return the digits of a typed problem. Raise InputError if it is not a problem, or too long for any model."""
    digits = task.digits_of(text)
    if digits > MAX_DIGITS:
        raise InputError(f"an operand has {digits} digits; the longest that can be read has {MAX_DIGITS}")
    return digits


def read_problems(text: str, source: str) -> list[str]:
    """Return the problems of a text, one per line, without blank lines. Raise InputError if there is no problem.

    source: name of the text in the error.
    """
    # `splitlines` would also split at characters that do not end a line in a text file.
    lines = [line.strip() for line in re.split(r"\r\n|\n|\r", text)]
    if not any(lines):
        raise InputError(f"{source} is empty; write one problem a line, as 123+456")
    return [line for line in lines if line]


def _where(values: list[str], valid: list[bool]) -> list[str | None]:
    """Replace values that are not valid by None."""
    return [value if is_valid else None for value, is_valid in zip(values, valid, strict=True)]
