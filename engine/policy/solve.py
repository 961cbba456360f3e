"""Problems as people type them, solved by any policy, with the thinking for those who want to read it.

In the shape descriptions B is the batch, N the digits per operand and S the simplifications of a chain of thought.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from sector.engine.config import Filter
from sector.engine.errors import InputError
from sector.engine.language.layout import Batch, Layout
from sector.engine.language.operands import batches, digit_strings, plain_decimals
from sector.engine.language.tokens import MAX_DIGITS
from sector.engine.policy import improve
from sector.engine.policy.checks import checks_of
from sector.engine.samplers.protocol import Sampler, Sampling
from sector.engine.tasks.task import Task

BATCH = 1000

_UNPARSABLE = "what the model wrote does not parse"
_DISAGREE = "the looks disagree"


@dataclass(frozen=True, slots=True)
class Step:
    """One simplification: the problem that remains, and the last digits of the answer found so far."""

    rest: str
    found: str


@dataclass(frozen=True, slots=True)
class Tried:
    """A check that was tried: the problem that it poses, the answer, None if that does not count, and is it right?"""

    check: str
    label: str
    problem: str
    answer: str | None
    agrees: bool


@dataclass(frozen=True, slots=True)
class Thought:
    """How an answer came about.

    steps: the chain of thought.
    guesses: the full answer that each step votes for, None where it did not parse; the slow policy guesses after its
        last step only.
    vote: the answer with most votes, or where it was thought through, that of the whole chain.
    votes: how many guesses gave it.
    direct: the fast answer to the whole problem.
    checks: those that were tried on other problems.
    through: was it thought through?
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
    """A problem as typed, and its answer in plain decimals, or None and why there is none.

    unread: is the text no problem, so that nothing was asked?
    """

    problem: str
    answer: str | None
    policy: str
    error: str | None = None
    thought: Thought | None = None
    unread: bool = False

    def as_json(self) -> dict[str, Any]:
        """What is there, and `answer` in any case."""
        values = asdict(self)
        del values["unread"]
        return {key: value for key, value in values.items() if value is not None or key == "answer"}


# What became of one problem: the answer, why there is none, and the thought.
_Outcome = tuple[str | None, str | None, Thought | None]


@dataclass(frozen=True, slots=True)
class Mind:
    """What solves: an engine, what its weights have learned, and what must agree before it believes an answer."""

    sampler: Sampler
    task: Task
    layout: Layout
    settings: Filter

    def solve(self, texts: Sequence[str], policy: str, show: bool = False) -> list[Solution]:
        """Solutions in the order of the problems; problems of one length are solved together.

        A text that is no problem gets an error, not an answer. show: keep the thoughts.
        """
        solutions: dict[int, Solution] = {}
        by_length: dict[int, list[int]] = {}
        for index, text in enumerate(texts):
            try:
                by_length.setdefault(check_problem(self.task, text), []).append(index)
            except InputError as error:
                solutions[index] = Solution(text, None, policy, str(error), unread=True)
        ways: dict[str, Callable[[Any, bool], list[_Outcome]]] = {
            "fast": self._fast,
            "slow": self._slow,
            "improved": self._improved,
        }
        for digits, rows in by_length.items():
            problems = self.task.parse([texts[row] for row in rows], digits)
            outcomes = [outcome for batch in batches(problems, BATCH) for outcome in ways[policy](batch, show)]
            for row, (answer, reason, thought) in zip(rows, outcomes, strict=True):
                solutions[row] = Solution(texts[row], answer, policy, reason, thought)
        return [solutions[index] for index in range(len(texts))]

    def _fast(self, problems: Batch, show: bool) -> list[_Outcome]:
        """The direct answer, no thinking."""
        answers, valid, _ = improve.answer_fast(self.sampler, problems, self.layout, _greedy(problems))
        return [
            (answer, None, Thought([], [], direct=answer) if show else None) if ok else (None, _UNPARSABLE, None)
            for answer, ok in zip(plain_decimals(answers), valid.tolist(), strict=True)
        ]

    def _slow(self, problems: Batch, show: bool) -> list[_Outcome]:
        """Chain of thought to the end: simplify down to one digit, and answer that one fast."""
        chain = self._think(problems, problems.digits - 1)
        last = chain.rests[-1] if chain.rests else problems
        answers, valid, _ = improve.answer_fast(self.sampler, last, self.layout, _greedy(problems))
        valid &= chain.parsed == problems.digits - 1
        full = plain_decimals(torch.cat([answers, chain.found], dim=1))
        steps = chain.steps()
        return [
            (answer, None, Thought(steps[row], [answer]) if show else None)
            if valid[row]
            else (None, f"{_UNPARSABLE}, after {len(steps[row])} steps", Thought(steps[row], []) if show else None)
            for row, answer in enumerate(full)
        ]

    def _improved(self, problems: Batch, show: bool) -> list[_Outcome]:
        """The improved policy: simplify-then-guess, vote, and the looks that must agree."""
        result = improve.improve(self.sampler, problems, self.settings, self.layout, _greedy(problems))
        answers = plain_decimals(result.ballot.answers)
        thoughts = self._thoughts(problems, result) if show else [None] * len(problems)
        reasons = self._reasons()
        return [
            (None if verdict in reasons else answer, reasons.get(verdict), thought)
            for answer, verdict, thought in zip(answers, result.verdicts, thoughts, strict=True)
        ]

    def _reasons(self) -> dict[str, str]:
        """Why there is no answer, by verdict."""
        checks = checks_of(self.settings, self.task)
        return {
            "unparsable": _UNPARSABLE,
            "outvoted": f"{_DISAGREE}: the guesses differ",
            **{check.reason: f"{_DISAGREE}: {check.label}" for check in checks},
        }

    def _thoughts(self, problems: Batch, result: improve.Improved) -> list[Thought | None]:
        """What the improved policy saw. It keeps no chain of thought but the first step, so that is thought again.

        Greedy decoding gives the same steps.
        """
        ballot = result.ballot
        through = [verdict == "thought_through" for verdict in result.verdicts]
        guessed = self.task.num_simplifications(problems, ballot.guesses.shape[1])
        chains = self._think(problems, problems.digits - 1 if any(through) else guessed).steps()
        steps = [chain if whole else chain[:guessed] for chain, whole in zip(chains, through, strict=True)]
        guesses = [
            _where(plain_decimals(row), valid) for row, valid in zip(ballot.guesses, ballot.valid.tolist(), strict=True)
        ]
        columns = (
            steps,
            guesses,
            _where(plain_decimals(ballot.answers), (result.accepted | (ballot.votes > 0)).tolist()),
            ballot.votes.tolist(),
            _where(plain_decimals(ballot.direct), ballot.direct_valid.tolist()),
            self._tried(problems, result),
            through,
        )
        return [Thought(*values) for values in zip(*columns, strict=True)]

    def _tried(self, problems: Batch, result: improve.Improved) -> list[list[Tried]]:
        """The checks that were tried on other problems, a list a problem."""
        rows: list[list[Tried]] = [[] for _ in range(len(problems))]
        checks = {check.name: check for check in checks_of(self.settings, self.task)}
        for found in result.checks:
            check = checks[found.name]
            posed = check.pose(problems, result.ballot.answers)
            if posed is None or posed[0] is problems:
                continue
            columns = (posed[0].texts(), plain_decimals(found.answers), found.agrees.tolist(), found.taken.tolist())
            for row, (problem, answer, agrees, taken) in zip(rows, zip(*columns, strict=True), strict=True):
                if taken:
                    row.append(Tried(check.name, check.label, problem, answer, agrees))
        return rows

    def _think(self, problems: Batch, num_steps: int) -> "_Chain":
        """Simplify so many times."""
        rests: list[Any] = []
        found = torch.zeros(len(problems), 0, dtype=torch.int64)
        parsed = torch.zeros(len(problems), dtype=torch.int64)
        current: Any = problems
        for step in range(num_steps):
            simplified, _ = improve.simplify(self.sampler, current, self.layout, _greedy(problems))
            parsed += simplified.valid & (parsed == step)
            found = torch.cat([simplified.digit.unsqueeze(1), found], dim=1)
            current = simplified.rest
            rests.append(current)
        return _Chain(rests, found, parsed)


@dataclass(frozen=True, slots=True)
class _Chain:
    """S simplifications in a row: what remains after each, the digits found `[B, S]`, and how many parsed `[B]`."""

    rests: list[Any]
    found: Tensor
    parsed: Tensor

    def steps(self) -> list[list[Step]]:
        """The chains as text, up to the first step that does not parse."""
        texts = [rest.texts() for rest in self.rests]
        found = digit_strings(self.found) if self.rests else []
        return [
            [Step(texts[step][row], found[row][-1 - step :]) for step in range(length)]
            for row, length in enumerate(self.parsed.tolist())
        ]


def check_problem(task: Task, text: str) -> int:
    """Digits of a typed problem. InputError if it is none, or longer than any model reads."""
    digits = task.digits_of(text)
    if digits > MAX_DIGITS:
        raise InputError(f"an operand has {digits} digits; the longest that can be read has {MAX_DIGITS}")
    return digits


def read_problems(text: str, source: str) -> list[str]:
    """The problems of a text, one a line, blank lines left out. InputError if there is none."""
    # Other characters than these end a line for `splitlines`, in the middle of what someone wrote as one.
    lines = [line.strip() for line in re.split(r"\r\n|\n|\r", text)]
    if not any(lines):
        raise InputError(f"{source} is empty; write one problem a line, as 123+456")
    return [line for line in lines if line]


def _greedy(problems: Batch) -> Sampling:
    return Sampling(0.0, 0, torch.arange(len(problems)), stage=0)


def _where(values: list[str], keep: list[bool]) -> list[str | None]:
    return [value if kept else None for value, kept in zip(values, keep, strict=True)]
