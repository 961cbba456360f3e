"""Chains of thought: simplify a problem again and again, with a fast guess after any step (SECToR section 3.1).

In the shape descriptions B is the batch, N the digits of a problem, W the digits of its answer (N+1 for sums).
"""

from dataclasses import dataclass, field, replace
from typing import Generic, Self

import torch
from torch import Tensor

from sector.engine.language.layout import B, Layout, Mode, Simplifications
from sector.engine.language.tokens import MAX_DIGITS
from sector.engine.samplers.protocol import Beginning, Branch, Sampler, Sampling
from sector.engine.spans import span
from sector.engine.tasks import task_of

# Random streams of a chain: one stage per digit, and at most two branches per stage.
STAGES_OF_A_CHAIN = 2 * (MAX_DIGITS + 1)
# Operand orders at which guesses without chains of thought take turns.
NUM_VIEWS = 2


@dataclass(slots=True)
class Chain(Generic[B]):
    """A batch of chains of thought in progress.

    current: the problems that remain.
    found: `[B, j]` digits that j simplifications split off, the latest first.
    alive: `[B]` bool, rows in which every simplification parsed.
    guesses: `[B, W]` full answers, one tensor per guess.
    valid: `[B]` bool, guesses that parsed, one tensor per guess.
    steps: the simplifications so far.
    direct: fast answers `[B, W]` to the whole problems and which parsed `[B]`; None before they are generated.
    tokens: count of generated tokens.
    """

    current: B
    found: Tensor
    alive: Tensor
    guesses: list[Tensor] = field(default_factory=list)
    valid: list[Tensor] = field(default_factory=list)
    steps: list[Simplifications[B]] = field(default_factory=list)
    direct: tuple[Tensor, Tensor] | None = None
    tokens: int | Tensor = 0

    @classmethod
    def begun(cls, problems: B) -> Self:
        """Return the chains before their first simplification."""
        found = torch.zeros(len(problems), 0, dtype=torch.int64, device=problems.device)
        return cls(problems, found, torch.ones(len(problems), dtype=torch.bool, device=problems.device))

    @property
    def num_parsed(self) -> Tensor:
        """Count of simplifications in each row before the first that did not parse, `[B]`."""
        valid = torch.stack([torch.ones_like(self.alive), *(step.valid for step in self.steps)])
        return valid.long().cumprod(dim=0).sum(dim=0) - 1

    def guess(self, answers: Tensor, parsed: Tensor) -> Tensor:
        """Join a guess of the rest to the digits found, record it, and return the full answers `[B, W]`."""
        full = task_of(self.current).join(self.found, answers)
        self.guesses.append(full)
        self.valid.append(parsed & self.alive)
        return full

    def simplify(self, step: Simplifications[B]) -> None:
        """Record a simplification and continue with the problems that remain."""
        self.current, self.alive = step.rest, self.alive & step.valid
        self.found = torch.cat([step.digit.unsqueeze(1), self.found], dim=1)
        self.steps.append(step)


def simplify_then_guess(
    sampler: Sampler, problems: B, num_guesses: int, layout: Layout[B], sampling: Sampling, draft: Tensor | None
) -> Chain[B]:
    """Simplify, and guess the rest after each simplification, until there are `num_guesses` guesses.

    Stage j holds the problems after j simplifications. Its prefix is read once, for both the guess and the next
    simplification. Without a draft, stage 0 is answered too: this direct answer drafts the guesses.
    """
    task = task_of(problems)
    num_simplifications = task.num_simplifications(problems, num_guesses)
    beginning = Beginning(layout.beginning_length(problems.size))
    chain = Chain.begun(problems)
    for stage in range(num_simplifications + 1):
        last = stage == num_simplifications
        current = chain.current
        branches = {} if last else {"think": think_branch(current, layout, draft)}
        answering = (stage > 0 or draft is None or last) and task.answers_at_once(current)
        if answering:
            branches["answer"] = answer_branch(current, layout, draft)
        at_stage = replace(sampling, stage=sampling.stage + 2 * stage)
        with span(" + ".join(branches)):
            outputs = sampler.sample(layout.prefix_ids(current), list(branches.values()), at_stage, beginning)
        chain.tokens += sum(layout.count_tokens(ids, chain.alive) for ids in outputs)
        if answering:
            answers, parsed = layout.parse_answers(outputs[-1], current.size)
            if stage == 0:
                chain.direct = answers, parsed
                draft = answers if draft is None else draft
            if stage > 0 or last:
                chain.guess(answers, parsed)
        if not last:
            chain.simplify(layout.parse_simplifications(outputs[0], current.size))
    return chain


def to_the_end(sampler: Sampler, problems: B, layout: Layout[B], sampling: Sampling, draft: Tensor) -> Chain[B]:
    """Simplify until one digit is left, and answer the rest: a chain whose only guess is of one digit.

    draft: `[B, W]` likely answers.
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
    answers, parsed, tokens = answer(sampler, chain.current, layout, at_stage, draft)
    chain.guess(answers, parsed)
    chain.tokens += tokens
    return chain


def guess_at_once(
    sampler: Sampler, problems: B, num_guesses: int, layout: Layout[B], sampling: Sampling, views: bool = True
) -> Chain[B]:
    """Return fast answers without any simplification, as a baseline.

    Greedy decoding gives one answer per prompt, so each guess has a different prompt: six prompts take turns, with
    different places and operand orders. The first prompt is the plain one, so the first guess is the direct answer. At
    a temperature above 0 the guesses are different samples as well.

    views: whether the prompts take turns; otherwise all guesses are samples of the plain prompt.
    """
    chain = Chain.begun(problems)
    task = task_of(problems)
    for turn in range(num_guesses):
        posed = task.swapped(problems) if views and turn % NUM_VIEWS else problems
        laid_out = layout.shifted(turn % layout.num_variants) if views else layout
        at_turn = replace(sampling, stage=sampling.stage + turn)
        draft = None if chain.direct is None else chain.direct[0]
        answers, parsed, tokens = answer(sampler, posed, laid_out, at_turn, draft)
        chain.direct = chain.direct or (answers, parsed)
        chain.guess(answers, parsed)
        chain.tokens += tokens
    return chain


def answer(
    sampler: Sampler, problems: B, layout: Layout[B], sampling: Sampling, draft: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the fast policy; return answers `[B, W]`, which parsed `[B]`, and the count of tokens.

    draft: `[B, W]` likely answers.
    """
    branch = answer_branch(problems, layout, draft)
    with span("answer"):
        (ids,) = sampler.sample(layout.prefix_ids(problems), [branch], sampling)
    return *layout.parse_answers(ids, problems.size), layout.count_tokens(ids)


def think_branch(problems: B, layout: Layout[B], draft: Tensor | None) -> Branch:
    """Return the branch that generates a simplification, with the draft of it that the task derives.

    draft: `[B, W]` likely full answers.
    """
    mark = layout.mark_ids(Mode.THINK, len(problems), problems.device)
    ids = task_of(problems).draft(problems, draft, layout)
    return Branch(mark, layout.simplification_length(problems.size), ids)


def answer_branch(problems: B, layout: Layout[B], draft: Tensor | None) -> Branch:
    """Return the branch that generates the fast answer.

    draft: `[B, W]` likely full answers; the answers of the remaining problems within them are used.
    """
    ids = None
    if draft is not None:
        ids = layout.answer_ids(task_of(problems).rest_answers(draft, problems.answer_width))
    mark = layout.mark_ids(Mode.ANSWER, len(problems), problems.device)
    return Branch(mark, layout.answer_length(problems.size), ids)
