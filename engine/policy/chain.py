"""Chains of thought: simplify, and simplify what is left; guess the rest fast where one likes (SECToR section 3.1).

In the shape descriptions B is the batch, N the digits of a problem, W those of its answer (of sums N+1).
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sector.engine.language.layout import Batch, Layout, Mode, Simplifications
from sector.engine.language.tokens import MAX_DIGITS
from sector.engine.samplers.protocol import Beginning, Branch, Sampler, Sampling
from sector.engine.spans import span
from sector.engine.tasks import task_of

# Random streams of a chain: up to two branches a stage, and a stage a digit.
STAGES_OF_A_CHAIN = 2 * (MAX_DIGITS + 1)


@dataclass(slots=True)
class Chain:
    """A chain of thought under way: the problem as far as it is simplified, and what was found so far.

    current: the remaining problems. found: `[B, j]` digits split off by j simplifications. alive: `[B]` rows of which
    every simplification parsed. steps: the simplifications. guesses, valid, direct, tokens: as in `Ballot`.
    """

    current: Any
    found: Tensor
    alive: Tensor
    guesses: list[Tensor] = field(default_factory=list)
    valid: list[Tensor] = field(default_factory=list)
    steps: list[Simplifications] = field(default_factory=list)
    direct: tuple[Tensor, Tensor] | None = None
    tokens: int | Tensor = 0

    @classmethod
    def begun(cls, problems: Batch) -> "Chain":
        """Before the first simplification."""
        found = torch.zeros(len(problems), 0, dtype=torch.int64, device=problems.device)
        return cls(problems, found, torch.ones(len(problems), dtype=torch.bool, device=problems.device))

    def guess(self, answers: Tensor, parsed: Tensor) -> Tensor:
        """Count a guess of the rest, joined to the digits found; returns the full answers."""
        full = torch.cat([answers, self.found], dim=1)
        self.guesses.append(full)
        self.valid.append(parsed & self.alive)
        return full

    def simplify(self, step: Simplifications) -> None:
        """Go on with what a simplification left over."""
        self.current, self.alive = step.rest, self.alive & step.valid
        self.found = torch.cat([step.digit.unsqueeze(1), self.found], dim=1)
        self.steps.append(step)


def simplify_then_guess(
    sampler: Sampler,
    problems: Batch,
    num_guesses: int,
    layout: Layout,
    sampling: Sampling,
    draft: Tensor | None,
) -> Chain:
    """Stage j holds the problem after j simplifications; its prefix is read once, for a guess and the next of them.

    Without a draft stage 0 is answered too: the direct answer, which drafts the guesses.
    """
    task = task_of(problems)
    num_simplifications = task.num_simplifications(problems, num_guesses)
    beginning = Beginning(layout.beginning_length(problems.size))
    chain = Chain.begun(problems)
    for stage in range(num_simplifications + 1):
        last = stage == num_simplifications
        current = chain.current
        branches = [] if last else [think_branch(current, layout, draft)]
        if asks := (stage > 0 or draft is None or last) and task.answers_at_once(current):
            branches.append(answer_branch(current, layout, draft))
        at_stage = Sampling(sampling.temperature, sampling.seed, sampling.rows, sampling.stage + 2 * stage)
        with span(" + ".join(["think"] * (not last) + ["answer"] * asks)):
            outputs = sampler.sample(layout.prefix_ids(current), branches, at_stage, beginning)
        chain.tokens += sum(layout.count_tokens(ids, chain.alive) for ids in outputs)
        if asks:
            answers, parsed = layout.parse_answers(outputs[-1], current.size)
            if stage == 0:
                chain.direct = answers, parsed
                draft = answers if draft is None else draft
            if stage > 0 or last:
                chain.guess(answers, parsed)
        if not last:
            chain.simplify(layout.parse_simplifications(outputs[0], current.size))
    return chain


def to_the_end(sampler: Sampler, problems: Batch, layout: Layout, sampling: Sampling, draft: Tensor) -> Chain:
    """Simplify until one digit is left, and answer that one: a chain with one guess, at next to nothing.

    draft: `[B, W]` an answer it is likely to come to.
    """
    chain = Chain.begun(problems)
    beginning = Beginning(layout.beginning_length(chain.current.size))
    while chain.current.digits > 1:
        at_stage = replace(sampling, stage=sampling.stage + 2 * len(chain.steps))
        branch = think_branch(chain.current, layout, draft)
        (ids,) = sampler.sample(layout.prefix_ids(chain.current), [branch], at_stage, beginning)
        chain.tokens += layout.count_tokens(ids, chain.alive)
        chain.simplify(layout.parse_simplifications(ids, chain.current.size))
    at_stage = replace(sampling, stage=sampling.stage + 2 * len(chain.steps))
    answers, parsed, spent = answer(sampler, chain.current, layout, at_stage, draft)
    chain.guess(answers, parsed)
    chain.tokens += spent
    return chain


def guess_at_once(sampler: Sampler, problems: Batch, num_guesses: int, layout: Layout, sampling: Sampling) -> Chain:
    """Fast answers alone, as a baseline: greedy, the same prompt has one answer only, so every guess reads another.

    Places and operand order change from guess to guess, six prompts in turn; the first is the plain one, and so the
    direct answer. At a temperature each guess is a sample of its own besides.
    """
    chain = Chain.begun(problems)
    task = task_of(problems)
    for turn in range(num_guesses):
        asked = task.swapped(problems) if turn % 2 else problems
        at_turn = replace(sampling, stage=sampling.stage + turn)
        draft = chain.direct[0] if chain.direct else None
        answers, parsed, spent = answer(sampler, asked, layout.shifted(turn % layout.num_variants), at_turn, draft)
        chain.direct = chain.direct or (answers, parsed)
        chain.guess(answers, parsed)
        chain.tokens += spent
    return chain


def answer(
    sampler: Sampler, problems: Batch, layout: Layout, sampling: Sampling, draft: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The fast policy, with a draft `[B, W]` of what it is likely to say."""
    branch = answer_branch(problems, layout, draft)
    with span("answer"):
        (ids,) = sampler.sample(layout.prefix_ids(problems), [branch], sampling)
    return *layout.parse_answers(ids, problems.size), layout.count_tokens(ids)


def think_branch(problems: Batch, layout: Layout, draft: Tensor | None) -> Branch:
    """Ask for a simplification, with what the task foretells of it (`draft` as for `answer_branch`)."""
    mark = layout.mark_ids(Mode.THINK, len(problems), problems.device)
    ids = task_of(problems).draft(problems, draft, layout)
    return Branch(mark, layout.simplification_length(problems.size), ids)


def answer_branch(problems: Batch, layout: Layout, draft: Tensor | None) -> Branch:
    """Ask for the fast answer; a draft of the full answer serves its remaining leading digits."""
    ids = None if draft is None else layout.answer_ids(draft[:, : problems.answer_width])
    mark = layout.mark_ids(Mode.ANSWER, len(problems), problems.device)
    return Branch(mark, layout.answer_length(problems.size), ids)
