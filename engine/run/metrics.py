"""Audit of a phase: a line of metrics.jsonl, which the loop never reads for training.

To add a field: declare it with a default in `RoundMetrics` (`records.py`), fill it in here, and describe it in
`docs/reference/metrics.md`.
"""

import time
from functools import partial
from typing import NamedTuple

from sector.engine.config import RunConfig
from sector.engine.language.layout import Layout
from sector.engine.policy.workers import Measure
from sector.engine.run import audit
from sector.engine.run.phase import Phase
from sector.engine.run.records import FrontierMistakes, GenerationRecord, RoundMetrics
from sector.engine.seeding import generator
from sector.engine.tasks.task import Task
from sector.engine.training.dataset import read_candidates, read_examples


def audit_phase(
    phase: Phase, config: RunConfig, task: Task, layout: Layout, measure: Measure, started: float
) -> RoundMetrics:
    """Audit a phase with the fast policy of its weights.

    measure: calls jobs with engines that hold the weights.
    started: start of the run by `time.perf_counter`, moved back by the time that earlier commands took.
    """
    start = time.perf_counter()
    training, generation = phase.training, phase.read(GenerationRecord)
    assert (generation is not None) == phase.is_round, "rounds generate, the supervised phase does not"
    scores = measure(
        [
            audit.Exam(task, layout, "fast", config.filter, config.seed, length, config.audit_samples)
            for length in range(1, _furthest(phase, config) + 1)
        ]
    )
    draws = generator(config.seed, "frontier", phase.digits + 1)
    ahead = task.draw(phase.digits + 1, config.audit_samples, draws, config.hard_share)
    (frontier,) = measure([partial(audit.frontier_mistakes, layout=layout, problems=ahead)])
    errors = _label_errors(phase)
    now = time.perf_counter()
    return RoundMetrics(
        phase=phase.name,
        digits=phase.digits,
        tried=generation.tried if generation else 0,
        accepted=generation.accepted if generation else 0,
        thought_through=generation.thought_through if generation else 0,
        leaked=generation.leaked if generation else 0,
        rejected=generation.rejected if generation else {},
        label_error=errors.accepted,
        fast_label_error=errors.fast,
        label_mistakes=errors.mistakes,
        agreement=generation.agreement if generation else None,
        vote_entropy=generation.vote_entropy if generation else None,
        disagreement=generation.disagreement if generation else None,
        next_agreement=training.agreement,
        trained_agreement=training.trained_agreement,
        leap=training.leap,
        accuracy={score.digits: score.accuracy for score in scores},
        frontier=FrontierMistakes(**frontier),
        cycles=training.cycles,
        taken_back=phase.num_failed,
        tokens_generated=generation.tokens if generation else 0,
        tokens_trained=training.tokens,
        tokens_probed=training.tokens_probed,
        seconds_generate=generation.seconds if generation else 0.0,
        seconds_train=training.seconds,
        seconds_probe=training.seconds_probe,
        seconds_audit=now - start,
        seconds_total=now - started,
    )


class _LabelErrors(NamedTuple):
    """Errors of the labels of a round: shares of accepted and of fast answers, and mistakes of the accepted."""

    accepted: float | None = None
    fast: float | None = None
    mistakes: dict[str, int] = {}


def _label_errors(phase: Phase) -> _LabelErrors:
    """Compare the labels of a round with the truth. The supervised phase has no labels of its own."""
    if not phase.is_round:
        return _LabelErrors()
    examples = read_examples(phase.examples).get(phase.digits)
    problems, direct = read_candidates(phase.candidates, phase.digits)
    fast = 1 - audit.answers_correct(problems, direct).double().mean().item()
    if not examples:
        return _LabelErrors(fast=fast)
    return _LabelErrors(audit.label_error(examples), fast, audit.label_mistakes(examples))


def _furthest(phase: Phase, config: RunConfig) -> int:
    """Return the longest length to audit: one digit past the phase.

    After the supervised phase it is one digit past `until`, so that plots can show the gain of the loop.
    """
    return 1 + (phase.digits if phase.is_round else max(phase.digits, config.until))
