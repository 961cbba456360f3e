"""Records of a run: one validated model for each JSON file, and for the lines of metrics.jsonl.

An invalid record is refused with one line that names the file, the fault and the mend. Keys that earlier releases did
not write have defaults. Unknown keys are of a later release, and are refused.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from math import log2
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from sector.engine.config import MAX_DIGITS, MAX_K
from sector.engine.errors import InputError
from sector.engine.training.locations import Location, read_bytes

if TYPE_CHECKING:
    from sector.engine.policy.improve import Improved

METRICS = "metrics.jsonl"
# File of the evaluation of a run, in its folder of plots (`evaluate.py`).
EVALUATION = "eval-fast.json"
# A century; a larger value is damage.
_MAX_SECONDS = 100 * 366 * 86_400
# Rank of faults in messages: an impossible value (0) tells more than a missing key, and that more than an unknown one.
_RANKS = {"missing": 1, "extra_forbidden": 2}


def _check_mistake(name: str) -> str:
    """Return the name of a mistake. Raise ValueError if there is no such mistake."""
    # Imported here: torch comes with it.
    from sector.engine.tasks.mistakes import Mistake

    Mistake(name)
    return name


Digits = Annotated[int, Field(ge=1, le=MAX_DIGITS)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
# Of at most MAX_K guesses.
Entropy = Annotated[float, Field(ge=0.0, le=log2(MAX_K))]
# Within the range of int64.
Count = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[float, Field(ge=0.0, le=_MAX_SECONDS)]
Reason = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
Mistakes = dict[Annotated[str, AfterValidator(_check_mistake)], Count]
PhaseName = Literal["sft", "round"]
Sha256 = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]


class Damaged(InputError):
    """A record is incomplete or was changed. It can be made again."""


class Record(BaseModel):
    """Base of the records: frozen, strict about types and ranges, without NaN; an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def as_json(self) -> dict[str, object]:
        """Return the record as the JSON object that its file holds."""
        return self.model_dump(mode="json")


class _Counted(Record):
    """Counts of candidates that the improved policy tried."""

    tried: Count
    """Candidates that the improved policy tried."""
    accepted: Count
    """Candidates that passed the filter."""
    thought_through: Count = 0
    """Accepted candidates that were solved to the end."""
    leaked: Count = 0
    """Accepted candidates that vote and checks had rejected."""
    rejected: dict[Reason, Count]
    """Candidates that failed, by the check that failed first."""
    tokens: Count
    """Tokens generated."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_fates(self)
        return self


class Fates(_Counted):
    """Counts of candidates that can be added up, such as those of the parts of a data set."""

    agreed: Count
    """Candidates that passed all checks at once."""

    @classmethod
    def of(cls, improved: "Improved") -> Self:
        """Return the counts of an improved batch."""
        return cls(
            tried=len(improved.problems),
            accepted=int(improved.accepted.sum()),
            thought_through=improved.num_thought_through,
            leaked=improved.num_leaked,
            agreed=improved.num_agreed,
            rejected=improved.rejected(),
            tokens=improved.tokens,
        )

    @classmethod
    def sum(cls, parts: "Iterable[Fates]") -> "Fates":
        """Return the counts of several batches together."""
        parts, rejected = list(parts), Counter[str]()
        for part in parts:
            rejected.update(part.rejected)
        names = Fates.model_fields.keys() - {"rejected"}
        return Fates(rejected=dict(rejected), **{name: sum(getattr(part, name) for part in parts) for name in names})

    def generation(
        self,
        seconds: float,
        engine: str,
        weights_sha256: str,
        vote_entropy: float | None = None,
        disagreement: float | None = None,
    ) -> "GenerationRecord":
        """Return the record of the generation that tried these candidates."""
        return GenerationRecord(
            **self.model_dump(include=set(_Counted.model_fields)),
            agreement=self.agreed / self.tried,
            vote_entropy=vote_entropy,
            disagreement=disagreement,
            seconds=seconds,
            engine=engine,
            weights_sha256=weights_sha256,
        )


class GenerationRecord(_Counted):
    """Counts and cost of the generation of a round (`rounds/07/generation.json`)."""

    name: ClassVar[str] = "generation"

    tried: Annotated[Count, Field(ge=1)]
    """Candidates that the improved policy tried."""
    agreement: Share
    """Share of candidates that passed all checks at once."""
    vote_entropy: Entropy | None = None
    """Mean entropy of a candidate's guesses, in bits; None in data sets and in runs of early releases."""
    disagreement: Share | None = None
    """Share of the candidates with a decided vote that a check contradicts; None without such a candidate, in data sets
    and in runs of early releases."""
    seconds: Seconds
    """Seconds of generation."""
    engine: str
    """Name of the engine."""
    weights_sha256: Sha256
    """Digest of the weights that generated; empty if the engine has no digest."""


class TrainingRecord(Record):
    """Cost and result of the training of a phase (`rounds/07/training.json`)."""

    name: ClassVar[str] = "training"

    cycles: Annotated[Count, Field(ge=1)]
    """Cycles trained."""
    tokens: Count
    """Tokens trained on."""
    seconds: Seconds
    """Seconds of training."""
    agreement: Share
    """Agreement one digit further."""
    trained_agreement: Share | None = None
    """Lowest agreement at a trained length; None if it was not measured."""
    leap: Digits = 1
    """Digits from this phase to the next round."""
    tokens_probed: Count = 0
    """Tokens generated to measure agreement."""
    seconds_probe: Seconds = 0.0
    """Seconds of measuring agreement."""


class StartRecord(Record):
    """Snapshot of another run that a supervised phase started from (`rounds/supervised/start.json`)."""

    name: ClassVar[str] = "start"

    snapshot: str
    """Name of the snapshot in the grid's directory."""
    seconds: Seconds
    """Seconds of training before the snapshot."""


class RemovedRecord(Record):
    """Files of finished phases that a run has removed to bound its disk (`removed.json`), by digits of the phase."""

    name: ClassVar[str] = "removed"

    candidates: list[Digits] = []
    """Rounds without candidates.parquet."""
    checkpoints: list[Digits] = []
    """Phases without checkpoint, whose training is done."""


class SnapshotRecord(Record):
    """Position of a snapshot in its training (metadata of `training.safetensors`)."""

    phase: str
    """Digits of the round, 0 for the supervised phase; after a dot the count of attempts rolled back."""
    cycle: Count
    """Cycles done before the current one."""
    step: Count
    """Steps done in the current cycle."""
    tokens: Count
    """Tokens trained on."""
    seconds: Seconds
    """Seconds of training."""


class FrontierMistakes(Record):
    """Counts of outputs one digit past the phase, by mistake."""

    fast: Mistakes
    """Outputs of the fast policy."""
    slow: Mistakes
    """Outputs of the slow policy."""


class RoundMetrics(Record):
    """Audit of a phase: a line of metrics.jsonl."""

    phase: PhaseName
    """`sft` for the supervised phase, or `round`."""
    digits: Digits
    """Digits that the phase reached."""
    tried: Count
    """Candidates tried; 0 in the supervised phase."""
    accepted: Count
    """Candidates accepted; 0 in the supervised phase."""
    thought_through: Count = 0
    """Accepted candidates that were solved to the end."""
    leaked: Count = 0
    """Accepted candidates that vote and checks had rejected."""
    rejected: dict[Reason, Count]
    """Candidates rejected, by the check that failed first."""
    label_error: Share | None
    """Share of accepted examples that are wrong; None if nothing was accepted."""
    fast_label_error: Share | None
    """Share of candidates that the fast policy answered wrong; None in the supervised phase."""
    label_mistakes: Mistakes = {}
    """Accepted examples by the mistake in their answer."""
    agreement: Share | None
    """Share of candidates that passed all checks at once; None in the supervised phase."""
    vote_entropy: Entropy | None = None
    """Mean entropy of a candidate's guesses, in bits; None in the supervised phase, and in runs of early releases."""
    disagreement: Share | None = None
    """Share of the candidates with a decided vote that a check contradicts; None where the entropy is."""
    next_agreement: Share
    """Agreement one digit further, after the training."""
    trained_agreement: Share | None = None
    """Lowest agreement at a trained length, after the training; None if it was not measured."""
    leap: Digits = 1
    """Digits from this phase to the next round."""
    accuracy: dict[int, Share]
    """Exact-match accuracy of the fast policy by length, from 1 to at least `digits + 1` digits."""
    frontier: FrontierMistakes | None = None
    """Mistakes one digit past the phase; None in runs of early releases."""
    cycles: Annotated[Count, Field(ge=1)]
    """Cycles trained."""
    taken_back: Count = 0
    """Attempts at the round that were rolled back."""
    tokens_generated: Count
    """Tokens generated for the examples of the round."""
    tokens_trained: Count
    """Tokens trained on."""
    tokens_probed: Count = 0
    """Tokens generated to measure agreement."""
    seconds_generate: Seconds
    """Seconds of generation."""
    seconds_train: Seconds
    """Seconds of training."""
    seconds_probe: Seconds = 0.0
    """Seconds of measuring agreement."""
    seconds_audit: Seconds
    """Seconds of the audit."""
    seconds_total: Seconds
    """Seconds from the start of the run to the end of the audit."""

    @property
    def is_round(self) -> bool:
        """Whether the phase is a round."""
        return self.phase == "round"

    @property
    def own_accuracy(self) -> float:
        """Accuracy at the length that the phase reached."""
        return self.accuracy[self.digits]

    @property
    def trained_accuracies(self) -> list[float]:
        """Accuracy at each length up to the one that the phase reached."""
        return [self.accuracy[digits] for digits in range(1, self.digits + 1)]

    @property
    def wrong_accepted(self) -> int:
        """Count of accepted examples that are wrong."""
        return round((self.label_error or 0.0) * self.accepted)

    @property
    def wrong_fast(self) -> int:
        """Count of candidates that the fast policy answered wrong."""
        return round((self.fast_label_error or 0.0) * self.tried)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.accuracy) != list(range(1, len(self.accuracy) + 1)) or len(self.accuracy) <= self.digits:
            raise ValueError(f"accuracy should have the lengths 1 to {self.digits + 1} or more")
        _check_fates(self)
        if self.is_round != bool(self.tried):
            raise ValueError(f"tried should be {'above 0' if self.is_round else 0} in the phase {self.phase!r}")
        if (self.label_error is None) != (self.accepted == 0):
            raise ValueError(f"label_error is {self.label_error}, but accepted is {self.accepted}")
        for name in ("fast_label_error", "agreement"):
            if (getattr(self, name) is None) == self.is_round:
                raise ValueError(f"{name} should be {'there' if self.is_round else 'null'} in the phase {self.phase!r}")
        if self.frontier and not (sum(self.frontier.fast.values()) and sum(self.frontier.slow.values())):
            raise ValueError("frontier counts no outputs")
        return self


class LengthScore(Record):
    """Exact-match accuracy on problems of one length, with its Wilson 95 % interval."""

    digits: Digits
    """Digits per operand."""
    correct: Count
    """Problems answered right."""
    samples: Annotated[Count, Field(ge=1)]
    """Problems asked."""
    accuracy: Share
    """Share of problems answered right."""
    low: Share
    """Lower end of the interval."""
    high: Share
    """Upper end of the interval."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.correct > self.samples:
            raise ValueError(f"correct is {self.correct}, more than samples ({self.samples})")
        return self


class FamilyScore(LengthScore):
    """Accuracy on one family of problems at one length."""

    family: str
    """Name of the family."""


class EvaluationRecord(Record):
    """An evaluation (`plots/eval-fast.json`)."""

    policy: Annotated[str, StringConstraints(pattern=r"^(fast|slow|improved)$")]
    """Name of the policy."""
    samples: Annotated[Count, Field(ge=1)]
    """Problems per length."""
    lengths: Annotated[list[LengthScore], Field(min_length=1)]
    """Scores on uniform problems, one per length."""
    suite: list[FamilyScore]
    """Scores on families of problems; empty without the suite."""
    seed: Count
    """Seed of the problems."""
    engine: str
    """Name of the engine."""
    weights_sha256: Sha256
    """Digest of the weights."""
    seconds: Seconds
    """Seconds of the evaluation."""


R = TypeVar("R", bound=Record)


def read_record(path: Location, kind: type[R], mend: str) -> R | None:
    """Read a file with one record; None without the file. Raise Damaged as `parse_record`."""
    content = read_content(path, mend)
    return None if content is None else parse_record(content, kind, str(path), mend)


def read_metrics(path: Path, mend: str) -> list[RoundMetrics]:
    """Read metrics.jsonl; no lines without the file. Raise Damaged as `parse_metrics`."""
    return list(parse_metrics(read_content(path, mend) or b"", str(path), mend))


def read_content(path: Location, mend: str) -> bytes | None:
    """Read a file of a run; None without the file. Raise Damaged if it cannot be read, for example a directory."""
    try:
        return read_bytes(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Damaged(f"{path} cannot be read ({error.strerror or error}); {mend}") from error


def parse_metrics(content: bytes, source: str, mend: str) -> Iterator[RoundMetrics]:
    """Parse metrics.jsonl line by line. Raise Damaged naming the first line that is invalid or out of order."""
    before: RoundMetrics | None = None
    for number, text in enumerate(content.removesuffix(b"\n").split(b"\n") if content else (), start=1):
        line = parse_record(text, RoundMetrics, f"{source}, line {number}", mend)
        if fault := _fault_of_order(before, line):
            raise Damaged(f"{source}, line {number}: {fault}; {mend}")
        yield line
        before = line


def parse_record(content: bytes, kind: type[R], source: str, mend: str) -> R:
    """Parse one record.

    Raise Damaged naming the source, the first bad value and the mend.
    Raise InputError if only unknown keys are wrong: then the record is not damaged, but of a later release.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        if unknown := _key_of_later_release(error, kind, content):
            raise InputError(
                f"{source}: unknown key {unknown!r}, written by a later release of sector; install that to read it"
            ) from error
        raise Damaged(f"{source}: {_first_fault(error)}; {mend}") from error


def dump_line(record: Record) -> str:
    """Return a record as a line of JSON Lines."""
    return json.dumps(record.as_json()) + "\n"


def dump_file(record: Record) -> str:
    """Return a record as the content of its file."""
    return json.dumps(record.as_json(), indent=2) + "\n"


def _check_fates(record: "_Counted | RoundMetrics") -> None:
    """Raise ValueError if the counts of candidates do not add up."""
    tried, accepted, num_rejected = record.tried, record.accepted, sum(record.rejected.values())
    if accepted > tried:
        raise ValueError(f"accepted is {accepted}, more than tried ({tried})")
    for name in ("thought_through", "leaked"):
        if (count := getattr(record, name)) > accepted:
            raise ValueError(f"{name} is {count}, more than accepted ({accepted})")
    if accepted + num_rejected != tried:
        raise ValueError(f"accepted ({accepted}) and rejected ({num_rejected}) do not add up to tried ({tried})")


def _fault_of_order(before: RoundMetrics | None, line: RoundMetrics) -> str | None:
    """Return the reason why a line of metrics.jsonl cannot follow the line before it; None if it can."""
    if before is None:
        return "the first line is not the supervised phase" if line.is_round else None
    if not line.is_round:
        return "the supervised phase is not the first line"
    if line.digits <= before.digits:
        return f"digits is {line.digits}, not more than in the line before ({before.digits})"
    if line.seconds_total < before.seconds_total:
        return f"seconds_total is {line.seconds_total}, less than in the line before ({before.seconds_total})"
    return None


def _key_of_later_release(error: ValidationError, kind: type[Record], content: bytes) -> str | None:
    """Return the first unknown key, if it is the only kind of fault and no known key is missing; else None."""
    faults = error.errors()
    if any(fault["type"] != "extra_forbidden" for fault in faults):
        return None
    # If a known key is missing, the unknown one may be its garbled name.
    if not kind.model_fields.keys() <= json.loads(content).keys():
        return None
    return _key_of(faults[0]["loc"])


def _first_fault(error: ValidationError) -> str:
    """Describe the most telling fault."""
    fault = min(error.errors(), key=lambda fault: _RANKS.get(fault["type"], 0))
    key, message = _key_of(fault["loc"]), fault["msg"]
    if fault["type"] == "json_invalid":
        return "not JSON, or not the whole of it"
    if fault["type"] == "missing":
        return f"{key} is missing"
    if fault["type"] == "extra_forbidden":
        return f"unknown key {key!r}"
    if fault["type"] == "value_error" and not key:
        return message.removeprefix("Value error, ")
    value = repr(fault["input"])
    shown = value if len(value) <= 40 else f"{value[:40]}..."
    return f"{key or 'it'} is {shown}; {message[0].lower()}{message[1:]}"


def _key_of(location: tuple[int | str, ...]) -> str:
    """Return a location in a record as a dotted key."""
    return ".".join(str(part) for part in location if part != "[key]")
