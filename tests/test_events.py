"""Events of a run as JSON: keys, their order and values are promised to readers of `sector run --json`."""

import json

import pytest
from recorded import round_metrics

from sector.engine.run.events import (
    Event,
    FileMended,
    FrontierMoved,
    Generated,
    GoalMeasured,
    PhaseAudited,
    RolledBack,
    TrainingStep,
)

METRICS = round_metrics(7, tried=10, accepted=10, label_error=0.0)

LINES = {
    FileMended("metrics.jsonl"): '{"event": "mended", "file": "metrics.jsonl"}',
    Generated(7, tried=2, of=4, accepted=1, tokens_per_s=0.5): (
        '{"event": "generate", "digits": 7, "tried": 2, "of": 4, "accepted": 1, "tokens_per_s": 0.5}'
    ),
    TrainingStep(0, cycle=1, step=2, of=4, loss=1.5, tokens_per_s=0.5): (
        '{"event": "train", "digits": 0, "cycle": 1, "step": 2, "of": 4, "loss": 1.5, "tokens_per_s": 0.5}'
    ),
    GoalMeasured(7, cycle=1, met=True, agreement=0.75, accuracy=None, trained=0.5): (
        '{"event": "goal", "digits": 7, "cycle": 1, "met": true, "agreement": 0.75, "accuracy": null, "trained": 0.5}'
    ),
    RolledBack(7, failed=1, before=0.75, trained=0.5): (
        '{"event": "rollback", "digits": 7, "failed": 1, "before": 0.75, "trained": 0.5}'
    ),
    FrontierMoved(7): '{"event": "frontier", "digits": 7}',
}


@pytest.mark.parametrize(("event", "line"), LINES.items(), ids=lambda value: getattr(value, "kind", ""))
def test_an_event_has_the_keys_that_are_promised(event: Event, line: str) -> None:
    assert json.dumps(event.as_json()) == line


def test_the_event_of_an_audit_has_the_keys_of_its_metrics() -> None:
    assert list(PhaseAudited(METRICS).as_json().items()) == [("event", "round"), *METRICS.as_json().items()]
