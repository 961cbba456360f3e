"""The improved policy: simplify-then-guess, vote, and the looks that must agree (SECToR sections 3.1 and 3.2).

Chain of thought as a policy improvement operator: simplify a problem K times; after each simplification guess the rest
fast; each guess joined to the digits found so far is one vote. An answer is accepted when the looks that the filter
asks for agree. Where they do not, the problem may be thought through: simplified to its end, where nothing is left to
guess. Nothing true is known here, and none is needed.

In the shape descriptions B is the batch, N the digits of a problem, W those of its answer (of sums N+1), K the number
of simplifications.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from enum import IntEnum, StrEnum
from typing import Any

import torch
from torch import Tensor

from sector.engine.language import tokens
from sector.engine.language.examples import Examples
from sector.engine.language.layout import Batch, Layout, Simplifications
from sector.engine.policy.chain import answer, guess_at_once, simplify_then_guess, think_branch, to_the_end
from sector.engine.samplers.protocol import Sampler, Sampling
from sector.engine.spans import span
from sector.engine.tasks import task_of
from sector.engine.threads import one_thread
from sector.kernels.consistency import majority

# Generations of one problem take random streams of their own: up to two branches a stage, K + 1 stages a look.
_STAGES_PER_LOOK = 2 * (tokens.MAX_DIGITS + 1)
# First look, complement, second look, chains to the end, one that waits for their answer, and one that confirms.
STAGES = 6 * _STAGES_PER_LOOK
# Of the counter of a row; what lies above tells apart chains that share a batch.
_BITS_OF_A_ROW = 40


class Vote(StrEnum):
    """How K guesses become one answer: the first alone, the most frequent, or only one they all give."""

    OFF = "off"
    MAJORITY = "majority"
    UNANIMOUS = "unanimous"


class SecondLook(StrEnum):
    """The consistency check: none, the other problem (of sums the swapped order), or that at shifted places."""

    OFF = "off"
    SWAPPED = "swapped"
    SHIFTED = "shifted"


class Through(StrEnum):
    """Which candidates are thought through: none, those that a look rejected, or also those that all looks accept."""

    OFF = "off"
    REJECTED = "rejected"
    ALL = "all"


class Verdict(IntEnum):
    """What became of a candidate; the first look that fails names the reason.

    THOUGHT_THROUGH is accepted too, by chains of thought to the end after a look had failed. NOT_THROUGH: a chain of
    thought to the end gives another answer than the looks.
    """

    ACCEPTED = 0
    UNPARSABLE = 1
    OUTVOTED = 2
    NOT_DIRECT = 3
    NOT_COMMUTATIVE = 4
    NOT_COMPLEMENT = 5
    THOUGHT_THROUGH = 6
    NOT_THROUGH = 7

    @property
    def accepts(self) -> bool:
        """Is the answer believed?"""
        return self in (Verdict.ACCEPTED, Verdict.THOUGHT_THROUGH)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which looks must agree.

    vote: how the K guesses are counted.
    second_look: how another problem whose answer follows is solved (`Task.second_look`; of sums the swapped operands).
    direct: must the fast answer to the whole problem equal the vote too?
    complement: and the fast answer to the nines' complement be the complement of the vote, where the task has one? All
        other looks read the same carries and miss the same ones; in the complement every carry is the other one.
    think: simplify before guessing? If not, the guesses are fast answers to the whole problem (`guess_at_once`).
    through: which candidates are simplified to the end. Where a look fails: the problem, its complement if that is
        asked for, and the one whose answer follows, and what these agree on is accepted. All looks guess most of an
        answer, so that what cannot be guessed is what they reject; and what is always rejected is never learned. A
        chain to the end guesses nothing. Where all looks agree: the problem alone, and another answer is a look that
        failed. For all looks may guess alike, and wrong, at a length far beyond those that were trained.
    """

    vote: Vote
    second_look: SecondLook
    direct: bool
    complement: bool
    think: bool = True
    through: Through = Through.OFF


FILTERS = {
    "none": Filter(Vote.OFF, SecondLook.OFF, direct=False, complement=False),
    "paper": Filter(Vote.MAJORITY, SecondLook.SWAPPED, direct=False, complement=False),
    "strict": Filter(Vote.UNANIMOUS, SecondLook.SHIFTED, direct=True, complement=True, through=Through.REJECTED),
    "thorough": Filter(Vote.UNANIMOUS, SecondLook.SHIFTED, direct=True, complement=True, through=Through.ALL),
}


@dataclass(frozen=True, slots=True)
class Look:
    """One solution of each problem by simplify-then-guess.

    guesses: `[B, K, W]` full answers, one a simplification. valid: `[B, K]` which of them parsed.
    answers: `[B, W]` the vote. votes: `[B]` guesses that gave it.
    parsed: `[B]` did the vote get what it needs? decided: `[B]` and does the filter's vote accept it?
    rest, digit: the first simplification. chain: all of them, where each is distilled (`Task.at_once`).
    direct: `[B, W]` the fast answer to the whole problem, with direct_valid `[B]`.
    """

    guesses: Tensor
    valid: Tensor
    answers: Tensor
    votes: Tensor
    parsed: Tensor
    decided: Tensor
    rest: Any
    digit: Tensor
    direct: Tensor
    direct_valid: Tensor
    tokens: int | Tensor
    chain: tuple[Simplifications, ...] = ()


@dataclass(frozen=True, slots=True)
class Improved:
    """The improved policy's output for B candidates.

    first: the look at `a+b`. second: `[B, W]` voted answers to the other problem, `b+a`, zeros where that look was not
    taken. agrees: `[B]` did both looks agree? complement: `[B, W]` what follows from the answer to the nines'
    complement, -1 where that look was not taken or gave none. verdict: `[B]` values of `Verdict`. tokens: generated by
    all looks.
    """

    problems: Any
    first: Look
    second: Tensor
    agrees: Tensor
    complement: Tensor
    verdict: Tensor
    tokens: int

    @property
    def accepted(self) -> Tensor:
        return (self.verdict == Verdict.ACCEPTED) | (self.verdict == Verdict.THOUGHT_THROUGH)

    @property
    def agreement(self) -> float:
        """Share of the candidates on which all looks agreed: what the loop knows of its own quality."""
        return (self.verdict == Verdict.ACCEPTED).double().mean().item()

    @property
    def num_thought_through(self) -> int:
        """Candidates that were accepted after a look had failed."""
        return int((self.verdict == Verdict.THOUGHT_THROUGH).sum())

    def rejected(self) -> dict[str, int]:
        """Rejected candidates by reason."""
        reasons = [reason for reason in Verdict if not reason.accepts]
        return {reason.name.lower(): int((self.verdict == reason).sum()) for reason in reasons}

    def examples(self) -> Examples:
        """The accepted problems with their voted answers and first simplifications."""
        keep = self.accepted
        first = self.first
        return Examples(self.problems[keep], first.answers[keep], first.rest[keep], first.digit[keep])

    def lessons(self) -> list[Examples]:
        """What is to be distilled: the examples, and the further steps of a chain with what remained of the answers."""
        sets, keep = [self.examples()], self.accepted
        for step in self.first.chain[1:]:
            problems, answers = sets[-1].rest, sets[-1].answers[:, :-1]
            sets.append(Examples(problems, answers, step.rest[keep], step.digit[keep]))
        if self.first.chain:
            problems, answers = sets[-1].rest, sets[-1].answers[:, :-1]
            sets.append(Examples(problems, answers, problems.without_digits(), answers[:, -1]))
        return sets


def answer_fast(sampler: Sampler, problems: Batch, layout: Layout, sampling: Sampling) -> tuple[Tensor, Tensor, int]:
    """The fast policy: answers `[B, W]`, which parsed `[B]`, and the tokens it took.

    Problems that are not answered at once are simplified until they are: one chain of thought, one guess, no check.
    """
    problems, sampling = problems.to(sampler.device), _on(sampling, sampler.device)
    if task_of(problems).answers_at_once(problems):
        answers, parsed, spent = answer(sampler, problems, layout, sampling, draft=None)
    else:
        chain = simplify_then_guess(sampler, problems, 1, layout, sampling, draft=None)
        answers, parsed, spent = chain.guesses[0], chain.valid[0], torch.as_tensor(chain.tokens)
    return answers.cpu(), parsed.cpu(), int(spent)


def simplify(sampler: Sampler, problems: Batch, layout: Layout, sampling: Sampling) -> tuple[Simplifications, int]:
    """The slow policy, once: what it wrote and the tokens it took. N must be at least 2."""
    problems = problems.to(sampler.device)
    branch = think_branch(problems, layout, draft=None)
    with span("think"):
        (ids,) = sampler.sample(layout.prefix_ids(problems), [branch], _on(sampling, sampler.device))
    said = layout.parse_simplifications(ids, problems.size)
    cpu = torch.device("cpu")
    return Simplifications(said.rest.to(cpu), said.digit.cpu(), said.valid.cpu()), int(layout.count_tokens(ids))


def improve(
    sampler: Sampler,
    problems: Batch,
    settings: Filter,
    k: int,
    layout: Layout,
    sampling: Sampling,
    drop_decided: bool = True,
) -> Improved:
    """The improved policy on B candidates. `sampling.stage` must be `STAGES` apart between calls on a row.

    The looks are taken one after another, the cheap one first. drop_decided: a row whose fate is sealed takes no
    further one; without it all rows take all looks, and only the tokens spent differ.

    Everything happens where the engine lies. The host waits for it between looks, to see which rows are left, and not
    in them (but for what an engine does itself).
    """
    # The native engine has a thread a core; a second one for laying out and parsing would only be in their way.
    with one_thread() if sampler.name == "native" else nullcontext():
        return _improve(sampler, problems, settings, k, layout, sampling, drop_decided)


def _improve(
    sampler: Sampler, problems: Batch, settings: Filter, k: int, layout: Layout, sampling: Sampling, drop_decided: bool
) -> Improved:
    """See `improve`."""
    task, tried = task_of(problems), problems
    problems, sampling = problems.to(sampler.device), _on(sampling, sampler.device)
    with span("first look"):
        first = _look(sampler, problems, settings, k, layout, sampling, draft=None)
    verdict = torch.full_like(first.votes, Verdict.ACCEPTED)
    verdict[~first.parsed] = Verdict.UNPARSABLE
    verdict[first.parsed & ~first.decided] = Verdict.OUTVOTED
    if settings.direct and task.answers_at_once(problems):
        direct_agrees = first.direct_valid & (first.direct == first.answers).all(dim=1)
        verdict[(verdict == Verdict.ACCEPTED) & ~direct_agrees] = Verdict.NOT_DIRECT
    second = torch.zeros_like(first.answers)
    agrees = torch.zeros_like(first.parsed)
    complement = torch.full_like(first.answers, -1)
    total = first.tokens
    if settings.complement and task.has_complement:
        rows = _to_look_at(verdict, drop_decided)
        expected = task.complement_answers(first.answers[rows])
        with span("complement"):
            answers, parsed, spent = answer(
                sampler, task.complement(problems[rows]), layout, _at_look(sampling, rows, 1), draft=expected
            )
        complement[rows] = torch.where(parsed.unsqueeze(1), task.complement_answers(answers), -1)
        _reject(verdict, rows[(complement[rows] != first.answers[rows]).any(dim=1)], Verdict.NOT_COMPLEMENT)
        total += spent
    if settings.second_look is not SecondLook.OFF:
        rows = _to_look_at(verdict, drop_decided)
        other, expected = task.second_look(problems[rows], first.answers[rows])
        variant = _second_variant(settings.second_look, sampling.rows[rows], layout)
        with span("second look"):
            again = _look(
                sampler,
                other,
                settings,
                k,
                layout.shifted(variant),
                _at_look(sampling, rows, 2),
                draft=expected,
            )
        same = again.decided & (again.answers == expected).all(dim=1)
        counts = verdict[rows] == Verdict.ACCEPTED
        second[rows[counts]], agrees[rows[counts]] = again.answers[counts], same[counts]
        _reject(verdict, rows[~same], Verdict.NOT_COMMUTATIVE)
        total += again.tokens
    if settings.through is not Through.OFF and task.at_once is None and problems.digits > 1:
        if settings.through is Through.ALL:
            rows = (verdict == Verdict.ACCEPTED).nonzero().squeeze(1)
            with span("confirm"):
                same, spent = _confirm(
                    sampler, problems[rows], first.answers[rows], layout, _at_look(sampling, rows, 5)
                )
            _reject(verdict, rows[~same], Verdict.NOT_THROUGH)
            total += spent
        rows = (verdict != Verdict.ACCEPTED).nonzero().squeeze(1)
        if len(rows):
            with span("think through"):
                through = _think_through(sampler, problems, settings, first, rows, layout, sampling)
            sound = through.rows
            first.answers[sound], second[sound], agrees[sound] = through.answers, through.second, True
            if settings.complement and task.has_complement:
                complement[sound] = through.answers
            votes = first.valid[sound] & (first.guesses[sound] == through.answers.unsqueeze(1)).all(dim=2)
            first.votes[sound], verdict[sound] = votes.sum(dim=1), Verdict.THOUGHT_THROUGH
            total += through.tokens
    return Improved(tried, _home(first), second.cpu(), agrees.cpu(), complement.cpu(), verdict.cpu(), int(total))


def cat_improved(parts: Sequence[Improved]) -> Improved:
    """Batches of one length, one after another."""
    looks = [part.first for part in parts]
    joined: dict[str, Any] = {}
    for each in fields(Look):
        values = [getattr(look, each.name) for look in looks]
        if each.name == "rest":
            joined[each.name] = type(values[0]).cat(values)
        elif each.name == "chain":
            joined[each.name] = tuple(map(_cat_steps, zip(*values, strict=True)))
        else:
            joined[each.name] = sum(values) if each.name == "tokens" else torch.cat(values)
    return Improved(
        type(parts[0].problems).cat(part.problems for part in parts),
        Look(**joined),
        torch.cat([part.second for part in parts]),
        torch.cat([part.agrees for part in parts]),
        torch.cat([part.complement for part in parts]),
        torch.cat([part.verdict for part in parts]),
        sum(part.tokens for part in parts),
    )


def _cat_steps(parts: Sequence[Simplifications]) -> Simplifications:
    return Simplifications(
        type(parts[0].rest).cat(part.rest for part in parts),
        torch.cat([part.digit for part in parts]),
        torch.cat([part.valid for part in parts]),
    )


def _to_look_at(verdict: Tensor, drop_decided: bool) -> Tensor:
    """Indices of the rows that take the next look: all, or those that no look has rejected so far."""
    return ((verdict == Verdict.ACCEPTED) | (not drop_decided)).nonzero().squeeze(1)


def _reject(verdict: Tensor, rows: Tensor, reason: Verdict) -> None:
    """Give rows a reason, in place, unless an earlier look gave them one."""
    verdict[rows[verdict[rows] == Verdict.ACCEPTED]] = reason


def _on(sampling: Sampling, device: torch.device) -> Sampling:
    """The same random streams, counters on a device."""
    return replace(sampling, rows=sampling.rows.to(device))


def _home(look: Look) -> Look:
    """A look on the CPU, its tokens a plain number."""
    values: dict[str, Any] = {each.name: getattr(look, each.name) for each in fields(Look)}
    cpu = torch.device("cpu")
    moved = {name: value.to(cpu) for name, value in values.items() if name not in ("tokens", "chain")}
    chain = tuple(Simplifications(each.rest.to(cpu), each.digit.to(cpu), each.valid.to(cpu)) for each in look.chain)
    return Look(**moved, tokens=int(look.tokens), chain=chain)


def _at_look(sampling: Sampling, rows: Tensor, look: int) -> Sampling:
    """The random streams of some rows in a later look."""
    return Sampling(sampling.temperature, sampling.seed, sampling.rows[rows], sampling.stage + look * _STAGES_PER_LOOK)


def _look(
    sampler: Sampler,
    problems: Batch,
    settings: Filter,
    k: int,
    layout: Layout,
    sampling: Sampling,
    draft: Tensor | None,
) -> Look:
    """Simplify-then-guess and vote. `draft [B, W]` is an answer the guesses are likely to repeat."""
    num_guesses = 1 if settings.vote is Vote.OFF else k
    if settings.think:
        chain = simplify_then_guess(sampler, problems, num_guesses, layout, sampling, draft)
    else:
        chain = guess_at_once(sampler, problems, num_guesses, layout, sampling)
    guesses, valid = torch.stack(chain.guesses, dim=1), torch.stack(chain.valid, dim=1)
    with span("vote"):
        answers, votes = majority(guesses, valid)
    unanimous, at_once = settings.vote is Vote.UNANIMOUS, task_of(problems).at_once is None
    parsed = valid.all(dim=1) if unanimous else votes > 0
    decided = votes == guesses.shape[1] if unanimous else parsed
    if not chain.steps:
        rest, digit = problems.without_digits(), answers[:, -1]
    else:
        rest, digit = chain.steps[0].rest, chain.steps[0].digit
    # Where nothing is answered at once, the fast policy is one chain of thought, and that is the first guess.
    instead = (torch.zeros_like(answers), torch.zeros_like(parsed)) if at_once else (guesses[:, 0], valid[:, 0])
    direct, direct_valid = chain.direct or instead
    steps = () if at_once else tuple(chain.steps)
    return Look(guesses, valid, answers, votes, parsed, decided, rest, digit, direct, direct_valid, chain.tokens, steps)


@dataclass(frozen=True, slots=True)
class _Through:
    """Problems on which chains of thought to the end agree.

    rows: `[R]` which. answers: `[R, W]` to them, second: `[R, W]` to the other problems. tokens: of all chains, also
    those that disagree.
    """

    rows: Tensor
    answers: Tensor
    second: Tensor
    tokens: int | Tensor


def _think_through(
    sampler: Sampler, problems: Batch, settings: Filter, first: Look, rows: Tensor, layout: Layout, sampling: Sampling
) -> _Through:
    """Chains of thought to the end: some rows of a look, their complements if the filter asks for them, and `b+a`.

    Both orders alone are not enough. A column of two digits alike is the same column in `b+a`, so that one which the
    slow policy adds up wrongly, say 0+0 with a carry, goes wrong in both. A complement has no column of its problem.

    The chains are few and have a pass a column, so they go together, as one batch; but for a second look that is not
    known before the answer is.
    """
    task, asked, draft = task_of(problems), problems[rows], first.answers[rows]
    variant = _second_variant(settings.second_look, sampling.rows[rows], layout)
    chains = [(asked, draft, torch.zeros_like(variant))]
    if complement := settings.complement and task.has_complement:
        chains.append((task.complement(asked), task.complement_answers(draft), torch.zeros_like(variant)))
    if not task.second_look_needs_answers:
        chains.append((*task.second_look(asked, draft), variant))
    batches, drafts, variants = zip(*chains, strict=True)
    ran = to_the_end(
        sampler,
        type(asked).cat(batches),
        layout.shifted(torch.cat(variants)),
        _side_by_side(_at_look(sampling, rows, 3), len(chains)),
        torch.cat(drafts),
    )
    said = list(zip(ran.guesses[0].split(len(rows)), ran.valid[0].split(len(rows)), strict=True))
    answers, agree = said[0]
    # What is distilled is the first look's simplification, so the chain must have begun with that one.
    begun, step = ran.steps[0].rest[: len(rows)], ran.steps[0].digit[: len(rows)]
    kept = layout.simplification_ids(first.rest[rows], first.digit[rows])
    agree = agree & (layout.simplification_ids(begun, step) == kept).all(dim=1)
    if complement:
        theirs, parsed = said[1]
        agree = agree & parsed & (task.complement_answers(theirs) == answers).all(dim=1)
    left, tokens = agree.nonzero().squeeze(1), ran.tokens
    if not len(left):
        return _Through(rows[left], answers[left], answers[left], tokens)
    other, expected = task.second_look(asked[left], answers[left])
    if task.second_look_needs_answers:
        shifted = layout.shifted(variant[left])
        last = to_the_end(sampler, other, shifted, _at_look(sampling, rows[left], 4), expected)
        again, parsed, tokens = last.guesses[0], last.valid[0], tokens + last.tokens
    else:
        again, parsed = (each[left] for each in said[-1])
    same = parsed & (again == expected).all(dim=1)
    return _Through(rows[left[same]], answers[left[same]], again[same], tokens)


def _confirm(
    sampler: Sampler, problems: Batch, answers: Tensor, layout: Layout, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """`[B]` which answers `[B, W]` a chain of thought to the end gives too, and the tokens it took."""
    chain = to_the_end(sampler, problems, layout, sampling, answers)
    return chain.valid[0] & (chain.guesses[0] == answers).all(dim=1), torch.as_tensor(chain.tokens)


def _side_by_side(sampling: Sampling, count: int) -> Sampling:
    """The random streams of so many chains of each row in one batch, a chain after another."""
    chains = torch.arange(count, device=sampling.rows.device) << _BITS_OF_A_ROW
    return replace(sampling, rows=(chains.unsqueeze(1) + sampling.rows).flatten())


def _second_variant(second_look: SecondLook, rows: Tensor, layout: Layout) -> Tensor:
    """`[B]` start marks of the second look: plain, or a shifted variant that depends on the row's counter alone."""
    if second_look is SecondLook.SWAPPED or layout.num_variants == 1:
        return torch.zeros_like(rows)
    return 1 + rows % (layout.num_variants - 1)
