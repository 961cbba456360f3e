"""The improved policy: simplify-then-guess, vote, and checks (SECToR sections 3.1 and 3.2).

Chain of thought as a policy improvement operator: simplify a problem K times and guess the rest fast after each
simplification. Each guess, joined to the digits found so far, is one vote. An answer is accepted if no check of the
filter contradicts it. If a check fails, the problem may be thought through: simplified until nothing is left to guess.
No true answer is used here.

In the shape descriptions B is the batch, W the digits of an answer (N+1 for sums), K the number of guesses, R the rows
that a check takes.

A rejected candidate is no example: `Improved.examples` leaves it out, so that no weights are trained on it. It stays in
candidates.parquet with its verdict (`run/phases.py`).
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Generic

import torch
from torch import Tensor

from sector.engine.config import CHECKS, MAX_CHECKS, Filter
from sector.engine.language.examples import Examples
from sector.engine.language.layout import B, Layout, Simplifications
from sector.engine.language.rows import move
from sector.engine.policy import think_through as thinking
from sector.engine.policy.ballot import Ballot, entropies, hold_vote
from sector.engine.policy.chain import STAGES_OF_A_CHAIN, answer, simplify_then_guess, think_branch, to_the_end
from sector.engine.policy.checks import THROUGH, checks_of, posed_elsewhere, shifts_of
from sector.engine.policy.think_through import think_through
from sector.engine.samplers.protocol import Sampler, Sampling
from sector.engine.spans import span
from sector.engine.tasks import task_of
from sector.engine.tasks.check import Check, Solve
from sector.engine.threads import one_thread

# Random streams of one problem: for the vote, for each check, and for thinking through.
STAGES = (1 + MAX_CHECKS) * STAGES_OF_A_CHAIN + thinking.STAGES


class Verdict(IntEnum):
    """The verdict on a candidate; `len(Verdict) + i` means that the i-th check was the first to fail.

    ACCEPTED: vote and checks agree.
    THOUGHT_THROUGH: a check failed, but all chains of thought to the end agree.
    UNPARSABLE: too few guesses parsed.
    OUTVOTED: too few guesses agree.
    """

    ACCEPTED = 0
    THOUGHT_THROUGH = 1
    UNPARSABLE = 2
    OUTVOTED = 3


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of one check.

    name: name of the check.
    reason: verdict on a candidate that fails it.
    answers: `[B, W]` answers to the problems that the check poses; zeros for rows that did not take it.
    taken: `[B]` bool, rows that took the check.
    agrees: `[B]` bool, rows whose answers are as expected.
    """

    name: str
    reason: str
    answers: Tensor
    taken: Tensor
    agrees: Tensor


@dataclass(frozen=True, slots=True)
class Improved(Generic[B]):
    """The improved policy's output for B candidates.

    problems: the candidates.
    ballot: the vote; a problem that was thought through has the answer of that chain.
    checks: the result of each check.
    verdict: `[B]` a `Verdict`, or `len(Verdict)` plus the index of the check that failed first.
    tokens: count of all generated tokens.
    drawn: `[B]` bool, candidates that a gate of chance accepts (`chance.py`); None if the verdicts decide.
    """

    problems: B
    ballot: Ballot[B]
    checks: tuple[Checked, ...]
    verdict: Tensor
    tokens: int
    drawn: Tensor | None = None

    @property
    def reasons(self) -> list[str]:
        """Names of all verdicts, in the order of their numbers."""
        return [*(verdict.name.lower() for verdict in Verdict), *(check.reason for check in self.checks)]

    @property
    def verdicts(self) -> list[str]:
        """Name of the verdict on each candidate.

        Where a gate of chance decides otherwise than the verdict: `leaked` if it accepts, `not_drawn` if it rejects.
        """
        names = [self.reasons[value] for value in self.verdict.tolist()]
        if self.drawn is None:
            return names
        passes = (self.verdict <= Verdict.THOUGHT_THROUGH).tolist()
        return [
            name if passed == drawn else LEAKED if drawn else NOT_DRAWN
            for name, passed, drawn in zip(names, passes, self.drawn.tolist(), strict=True)
        ]

    @property
    def accepted(self) -> Tensor:
        """Whether each candidate is accepted, `[B]` bool."""
        return self.verdict <= Verdict.THOUGHT_THROUGH if self.drawn is None else self.drawn

    @property
    def agreement(self) -> float:
        """Share of the candidates on which vote and checks agree: the loop's label-free estimate of its quality."""
        return (self.verdict == Verdict.ACCEPTED).double().mean().item()

    @property
    def num_agreed(self) -> int:
        """Count of the candidates on which vote and checks agree."""
        return int((self.verdict == Verdict.ACCEPTED).sum())

    @property
    def num_thought_through(self) -> int:
        """Count of candidates that were accepted after a check failed."""
        return int((self.accepted & (self.verdict == Verdict.THOUGHT_THROUGH)).sum())

    @property
    def num_leaked(self) -> int:
        """Count of candidates that were accepted by chance."""
        return int((self.accepted & (self.verdict > Verdict.THOUGHT_THROUGH)).sum())

    @property
    def disagreement(self) -> float | None:
        """Share of the candidates with a decided vote that a check contradicts; None without such a candidate."""
        return 1 - self.num_agreed / self.num_decided if self.num_decided else None

    @property
    def num_decided(self) -> int:
        """Count of the candidates with a decided vote."""
        return int((self.ballot.decided & self.ballot.parsed).sum())

    @property
    def vote_entropy(self) -> float:
        """Mean entropy of the guesses of a candidate, in bits."""
        return entropies(self.ballot.guesses, self.ballot.valid).mean().item()

    @property
    def commutes(self) -> Tensor:
        """Whether the commutativity check agrees, `[B]` bool; problems that were thought through have passed it."""
        agrees = [check.agrees for check in self.checks if check.name == "commutative"]
        return (self.verdict == Verdict.THOUGHT_THROUGH) | (agrees[0] if agrees else False)

    def rejected(self) -> dict[str, int]:
        """Return the count of rejected candidates by reason; reasons that the filter cannot give have 0."""
        verdicts = self.verdicts
        names = [reason for reason in (*self.reasons, *verdicts) if reason not in BELIEVED]
        return {reason: verdicts.count(reason) for reason in dict.fromkeys([*_USUAL, *names])}

    def examples(self) -> Examples[B]:
        """Return the accepted problems with their voted answers and first simplifications."""
        rows, ballot = self.accepted, self.ballot
        return Examples(self.problems[rows], ballot.answers[rows], ballot.rest[rows], ballot.digit[rows])

    def examples_by_step(self) -> list[Examples[B]]:
        """Return the examples to distill: the accepted ones, and one set per further step of their chains.

        The problems of a further step are the remaining problems of the step before; their answers lack its digit.
        """
        sets, rows = [self.examples()], self.accepted
        for step in self.ballot.chain[1:]:
            sets.append(Examples(*_remaining(sets[-1]), step.rest[rows], step.digit[rows]))
        if self.ballot.chain:
            problems, answers = _remaining(sets[-1])
            sets.append(Examples(problems, answers, problems.without_digits(), answers[:, -1]))
        return sets


def _remaining(examples: Examples[B]) -> tuple[B, Tensor]:
    """Return the remaining problems of simplified examples, and their answers."""
    rest = examples.rest
    return rest, task_of(rest).rest_answers(examples.answers, rest.answer_width)


# Answers `[R, W]` to the problems of a check, which of them are valid `[R]`, and the count of tokens.
_Answered = tuple[Tensor, Tensor, int | Tensor]
# Verdicts of chance: on a candidate that the filter rejects, and on one that passes it.
LEAKED, NOT_DRAWN = "leaked", "not_drawn"
# Names of the verdicts that accept an answer.
BELIEVED = (Verdict.ACCEPTED.name.lower(), Verdict.THOUGHT_THROUGH.name.lower(), LEAKED)
# Reasons that every count of rejected candidates names.
_USUAL = ("unparsable", "outvoted", *(f"not_{name}" for name in CHECKS))


def answer_fast(sampler: Sampler, problems: B, layout: Layout[B], sampling: Sampling) -> tuple[Tensor, Tensor, int]:
    """Run the fast policy; return answers `[B, W]`, which parsed `[B]`, and the count of tokens.

    Problems that are too long to be answered at once are simplified until they are short enough: one chain of thought
    with one guess and no check.
    """
    problems, sampling = problems.to(sampler.device), _on(sampling, sampler.device)
    if task_of(problems).answers_at_once(problems):
        answers, parsed, tokens = answer(sampler, problems, layout, sampling, draft=None)
    else:
        chain = simplify_then_guess(sampler, problems, 1, layout, sampling, draft=None)
        answers, parsed, tokens = chain.guesses[0], chain.valid[0], torch.as_tensor(chain.tokens)
    return answers.cpu(), parsed.cpu(), int(tokens)


def simplify(sampler: Sampler, problems: B, layout: Layout[B], sampling: Sampling) -> tuple[Simplifications[B], int]:
    """Run the slow policy once; return the simplifications and the count of tokens. N must be at least 2."""
    problems = problems.to(sampler.device)
    branch = think_branch(problems, layout, draft=None)
    with span("think"):
        (ids,) = sampler.sample(layout.prefix_ids(problems), [branch], _on(sampling, sampler.device))
    simplified = layout.parse_simplifications(ids, problems.size)
    return move(simplified, torch.device("cpu")), int(layout.count_tokens(ids))


def improve(
    sampler: Sampler, problems: B, settings: Filter, layout: Layout[B], sampling: Sampling, drop_decided: bool = True
) -> Improved[B]:
    """Run the improved policy on B candidates; return the result on the CPU.

    The checks run one after another, on the engine's device. Outside of the engine, the host waits for the device only
    between checks, to see which rows are left.

    sampling: calls on the same row need stages that are `STAGES` apart.
    drop_decided: a rejected row takes no further check. Otherwise all rows take all checks; the verdicts are the same,
        the count of tokens is higher.
    """
    # Such an engine keeps a thread on each core; more threads for laying out and parsing would compete with them.
    with one_thread() if sampler.uses_all_cores else nullcontext():
        improved = _improve(sampler, problems, settings, layout, sampling, drop_decided)
    return move(improved, torch.device("cpu"))


def _improve(
    sampler: Sampler, candidates: B, settings: Filter, layout: Layout[B], sampling: Sampling, drop_decided: bool
) -> Improved[B]:
    """Run the improved policy; return the result on the engine's device. Arguments as in `improve`."""
    problems, sampling = candidates.to(sampler.device), _on(sampling, sampler.device)
    checks, checked = checks_of(settings, task_of(problems)), list[Checked]()
    with span("vote"):
        ballot = hold_vote(sampler, problems, settings, layout, sampling)
    tokens, verdict = ballot.tokens, _vote_verdict(ballot)
    for turn, check in enumerate(checks, start=1):
        undecided = verdict == Verdict.ACCEPTED
        rows = (undecided | (not drop_decided)).nonzero().squeeze(1)
        taken = take_check(sampler, check, problems, ballot, rows, settings, layout, _later(sampling, turn))
        if taken is None:
            continue
        answers, agrees, check_tokens = taken
        verdict[rows[~agrees & undecided[rows]]] = len(Verdict) + len(checked)
        checked.append(_scatter(check, answers, agrees, rows, undecided))
        tokens = tokens + check_tokens
    improved = Improved(candidates, ballot, tuple(checked), verdict, int(tokens))
    if settings.think_through and THROUGH.pose(problems, ballot.answers):
        others = posed_elsewhere(checks, problems, ballot.answers)
        improved = _rescue(sampler, problems, improved, others, layout, _later(sampling, 1 + MAX_CHECKS))
    return replace(improved, ballot=replace(improved.ballot, tokens=int(ballot.tokens)))


def take_check(
    sampler: Sampler,
    check: Check[B],
    problems: B,
    ballot: Ballot[B],
    rows: Tensor,
    settings: Filter,
    layout: Layout[B],
    sampling: Sampling,
) -> tuple[Tensor, Tensor, int | Tensor] | None:
    """Let some rows of a ballot take a check; None if it poses no problem.

    Return the answers `[R, W]` to the problems that it poses, which agree as expected `[R]`, and the count of tokens.

    rows: `[R]` indices of the rows.
    sampling: random streams of all rows.
    """
    taking = problems[rows]
    if (pose := check.pose(taking, ballot.answers[rows])) is None:
        return None
    posed, expected = pose
    if posed is taking and check.solve is Solve.AT_ONCE:
        answered: _Answered = ballot.direct[rows], ballot.direct_valid[rows], 0
    else:
        answered = _solve(sampler, check, posed, expected, settings, layout, sampling[rows])
    answers, valid, tokens = answered
    return answers, valid & check.compare(answers, expected), tokens


def _vote_verdict(ballot: Ballot) -> Tensor:
    """Return the verdicts `[B]` before any check."""
    verdict = torch.full_like(ballot.votes, Verdict.ACCEPTED)
    verdict[~ballot.decided] = Verdict.OUTVOTED
    verdict[~ballot.parsed] = Verdict.UNPARSABLE
    return verdict


def _solve(
    sampler: Sampler,
    check: Check[B],
    posed: B,
    expected: Tensor,
    settings: Filter,
    layout: Layout[B],
    sampling: Sampling,
) -> _Answered:
    """Solve the problems that a check poses.

    expected: `[R, W]` answers that they must have; used as drafts.
    """
    layout = layout.shifted(shifts_of(check, sampling.rows, layout))
    with span(check.name):
        if check.solve is Solve.AT_ONCE:
            return answer(sampler, posed, layout, sampling, expected)
        if check.solve is Solve.TO_THE_END:
            chain = to_the_end(sampler, posed, layout, sampling, expected)
            return chain.guesses[0], chain.valid[0], chain.tokens
        ballot = hold_vote(sampler, posed, settings, layout, sampling, expected)
        return ballot.answers, ballot.decided, ballot.tokens


def _scatter(check: Check[B], answers: Tensor, agrees: Tensor, rows: Tensor, undecided: Tensor) -> Checked:
    """Scatter the result of a check from R rows to all B candidates.

    undecided: `[B]` bool, candidates that no earlier check has rejected; the result of others is left out.
    """
    taken = undecided[rows]
    return Checked(
        check.name,
        check.reason,
        answers.new_zeros(len(undecided), answers.shape[1]).index_put((rows[taken],), answers[taken]),
        torch.zeros_like(undecided).index_put((rows,), taken),
        torch.zeros_like(undecided).index_put((rows,), agrees & taken),
    )


def _rescue(
    sampler: Sampler,
    problems: B,
    improved: Improved[B],
    checks: Sequence[Check[B]],
    layout: Layout[B],
    sampling: Sampling,
) -> Improved[B]:
    """Think the rejected candidates through, and accept those on which all chains to the end agree."""
    rows = (improved.verdict != Verdict.ACCEPTED).nonzero().squeeze(1)
    if not len(rows):
        return improved
    ballot = improved.ballot
    first = Simplifications(ballot.rest[rows], ballot.digit[rows], ballot.parsed[rows])
    with span("think through"):
        through = think_through(sampler, problems[rows], ballot.answers[rows], first, checks, layout, sampling[rows])
    rescued = (rows[through.rows],)
    votes = ballot.valid[rescued] & (ballot.guesses[rescued] == through.answers.unsqueeze(1)).all(dim=2)
    answers = {**through.said, THROUGH.name: through.answers}
    checked = tuple(
        _with_rescued(check, answers[check.name], rescued) if check.name in answers else check
        for check in improved.checks
    )
    ballot = replace(
        ballot,
        answers=ballot.answers.index_put(rescued, through.answers),
        votes=ballot.votes.index_put(rescued, votes.sum(dim=1)),
    )
    verdict = improved.verdict.index_put(rescued, torch.full_like(through.rows, Verdict.THOUGHT_THROUGH))
    return replace(
        improved, ballot=ballot, checks=checked, verdict=verdict, tokens=improved.tokens + int(through.tokens)
    )


def _with_rescued(check: Checked, answers: Tensor, rows: tuple[Tensor]) -> Checked:
    """Return the result of a check in which the rescued rows have taken it and agree."""
    true = torch.ones_like(rows[0], dtype=torch.bool)
    return replace(
        check,
        answers=check.answers.index_put(rows, answers),
        taken=check.taken.index_put(rows, true),
        agrees=check.agrees.index_put(rows, true),
    )


def _on(sampling: Sampling, device: torch.device) -> Sampling:
    """Return the same random streams with their row counters on a device."""
    return replace(sampling, rows=sampling.rows.to(device))


def _later(sampling: Sampling, chains: int) -> Sampling:
    """Return the random streams after those of `chains` chains."""
    return replace(sampling, stage=sampling.stage + chains * STAGES_OF_A_CHAIN)
