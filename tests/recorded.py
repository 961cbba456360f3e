"""Records of a run that never was: each valid, with the values that a test cares about."""

from pathlib import Path
from typing import Any

from sector.engine.run.records import METRICS, GenerationRecord, RoundMetrics, TrainingRecord, dump_line

SHA = "0" * 64


def round_metrics(digits: int, first: int = 6, **changes: Any) -> RoundMetrics:
    """Return a line of metrics.jsonl: of the supervised phase up to `first` digits, of a round beyond."""
    is_round = digits > first
    tried, accepted = changes.get("tried", 100 if is_round else 0), changes.get("accepted", 80 if is_round else 0)
    values = {
        "phase": "round" if is_round else "sft",
        "digits": digits,
        "tried": tried,
        "accepted": accepted,
        "rejected": {"outvoted": tried - accepted} if is_round else {},
        "label_error": 0.0 if accepted else None,
        "fast_label_error": 0.2 if is_round else None,
        "agreement": 0.9 if is_round else None,
        "next_agreement": 0.9,
        "accuracy": dict.fromkeys(range(1, digits + 2), 1.0),
        "cycles": 1,
        "tokens_generated": 1000 if is_round else 0,
        "tokens_trained": 2000,
        "seconds_generate": 1.0 if is_round else 0.0,
        "seconds_train": 2.0,
        "seconds_audit": 0.5,
        "seconds_total": 10.0 * digits,
    }
    return RoundMetrics(**{**values, **changes})


def write_metrics(root: Path, *lines: RoundMetrics) -> None:
    """Write the metrics of a run."""
    (root / METRICS).write_text("".join(map(dump_line, lines)))


def generation(**changes: Any) -> GenerationRecord:
    """Return the record of generating a round."""
    tried, accepted = changes.get("tried", 10), changes.get("accepted", 8)
    values = {
        "tried": tried,
        "accepted": accepted,
        "rejected": {"outvoted": tried - accepted},
        "agreement": 0.8,
        "tokens": 100,
        "seconds": 1.0,
        "engine": "native",
        "weights_sha256": SHA,
    }
    return GenerationRecord(**{**values, **changes})


def training(**changes: Any) -> TrainingRecord:
    """Return the record of training a phase."""
    return TrainingRecord(**{"cycles": 1, "tokens": 100, "seconds": 1.0, "agreement": 1.0, **changes})
