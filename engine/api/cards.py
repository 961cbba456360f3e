"""Cards of exported folders: what is in them, audited figures, and the commands that make them.

A card is made of validated settings and figures alone. It holds no text of a file, and no name that a user chose.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from sector import __version__
from sector.engine.api.templates import rendered
from sector.engine.config import RunConfig
from sector.engine.report.facts import changed_settings
from sector.engine.run.audit import Score
from sector.engine.run.records import EvaluationRecord, LengthScore, RoundMetrics
from sector.engine.tasks import find_task


@dataclass(frozen=True, slots=True)
class Exported:
    """Facts of an exported run.

    config: its settings.
    metrics: its finished phases.
    evaluation: the evaluation of the exported weights; None if there is none.
    parameters: count of the weights.
    weights_sha256: digest of the run's weights.
    wide_heads: whether the exported heads are wider than those of the run.
    """

    config: RunConfig
    metrics: list[RoundMetrics]
    evaluation: EvaluationRecord | None
    parameters: int
    weights_sha256: str
    wide_heads: bool

    @property
    def digits(self) -> int:
        """Digits of the longest problems that the model has learned."""
        return self.metrics[-1].digits


def model_card(facts: Exported) -> str:
    """Return the README of the folder of the model."""
    record = facts.evaluation
    scores = [_score(line) for line in record.lengths] if record else _audited(facts)
    return _rendered(
        "model_card.md.jinja",
        facts,
        parameters=facts.parameters,
        wide_heads=facts.wide_heads,
        supervised=facts.config.supervised.max_digits,
        digits=facts.digits,
        example=find_task(facts.config.task).example,
        version=__version__,
        policy=record.policy if record else "fast",
        measured_by=f"`{_eval_command(record)}`" if record else "the audit at the end of the run",
        scores=scores,
        families=_worst(record) if record else [],
    )


def dataset_card(facts: Exported, num_rows: int) -> str:
    """Return the README of the folder of the dataset.

    num_rows: count of its rows.
    """
    return _rendered("dataset_card.md.jinja", facts, num_rows=num_rows)


def run_command(config: RunConfig) -> str:
    """Return the command that makes a run with these settings, without the path of a pretrained model."""
    words = ["sector", "run", "--out", "RUN", "--until", str(config.until), "--seed", str(config.seed)]
    for key, value in changed_settings(config).items():
        if key == "task":
            words += ["--task", str(value)]
        elif key == "pretrained":
            words += ["--pretrained", "MODEL"]
        elif key not in ("until", "seed"):
            words += ["--set", shlex.quote(f"{key}={value if isinstance(value, str) else json.dumps(value)}")]
    return " ".join(words)


def _rendered(template: str, facts: Exported, **values: object) -> str:
    """Return a card by its template, with the values that all cards share."""
    card = rendered(
        template,
        title=f"{facts.config.task}, {facts.digits} digits",
        rounds=[line for line in facts.metrics if line.is_round],
        command=run_command(facts.config),
        weights_sha256=facts.weights_sha256,
        **values,
    )
    return card.strip() + "\n"


def _eval_command(record: EvaluationRecord) -> str:
    """Return the command that makes an evaluation again."""
    lengths = _listed([line.digits for line in record.lengths])
    return f"sector eval --model RUN --digits {lengths} --samples {record.samples} --seed {record.seed}"


def _worst(record: EvaluationRecord) -> list[Score]:
    """Return the lowest score of each family of hard problems."""
    names = dict.fromkeys(line.family for line in record.suite)
    return [
        min((_score(line, name) for line in record.suite if line.family == name), key=lambda score: score.accuracy)
        for name in names
    ]


def _score(line: LengthScore, name: str = "uniform") -> Score:
    return Score(name, line.digits, line.correct, line.samples)


def _audited(facts: Exported) -> list[Score]:
    """Return the accuracy by length in the last audit."""
    samples = facts.config.audit_samples
    accuracy = facts.metrics[-1].accuracy
    return [Score("uniform", digits, round(share * samples), samples) for digits, share in accuracy.items()]


def _listed(lengths: Sequence[int]) -> str:
    """Return lengths as the option --digits takes them."""
    if list(lengths) == list(range(lengths[0], lengths[-1] + 1)):
        return f"{lengths[0]}-{lengths[-1]}"
    return ",".join(map(str, lengths))
