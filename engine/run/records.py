"""The records of a run: every JSON file and line of a run directory, read and written through one validated model each.

A record is read whole or refused in one line that names the file, what is wrong and the mend. Keys that releases before
this one did not write have defaults; keys that it does not know are those of a later one, and refused too.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from sector.engine.config import MAX_DIGITS
from sector.engine.errors import InputError

METRICS = "metrics.jsonl"
# The file beside a run's plots that holds its evaluation (`evaluate.py`).
EVALUATION = "eval-fast.json"
# A century: no run has measured more.
_MAX_SECONDS = 100 * 366 * 86_400
_TELLING = {"missing": 1, "extra_forbidden": 2}


def _check_mistake(name: str) -> str:
    # Imported here: torch comes with it.
    from sector.engine.tasks.mistakes import Mistake

    Mistake(name)
    return name


Digits = Annotated[int, Field(ge=1, le=MAX_DIGITS)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
# Below what a float or an int64 cannot hold.
Count = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[float, Field(ge=0.0, le=_MAX_SECONDS)]
Reason = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
Mistakes = dict[Annotated[str, AfterValidator(_check_mistake)], Count]
Sha256 = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]


class Damaged(InputError):
    """A record that is not what was written; what made it can make it again."""


class Record(BaseModel):
    """Frozen, strict about types and ranges, without NaN and infinity; an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def as_json(self) -> dict[str, Any]:
        """Return the record as the JSON object that its file holds."""
        return self.model_dump(mode="json")


class GenerationRecord(Record):
    """What generating the examples of a round took (`rounds/07/generation.json`)."""

    name: ClassVar[str] = "generation"

    tried: Annotated[Count, Field(ge=1)]
    """Candidates that the improved policy tried."""
    accepted: Count
    """Candidates that passed the filter."""
    thought_through: Count = 0
    """Accepted candidates that were solved to the end."""
    rejected: dict[Reason, Count]
    """Candidates that failed, by the check that failed first."""
    agreement: Share
    """Share of candidates that passed all checks at once."""
    tokens: Count
    """Tokens generated."""
    seconds: Seconds
    """Seconds of generation."""
    engine: str
    """Name of the engine."""
    weights_sha256: Sha256
    """Digest of the weights that generated; empty of an engine that has none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_fates(self.tried, self.accepted, self.thought_through, self.rejected)
        return self


class TrainingRecord(Record):
    """What the training of a phase took, and where it led (`rounds/07/training.json`)."""

    name: ClassVar[str] = "training"

    cycles: Annotated[Count, Field(ge=1)]
    """Cycles of the learning rate."""
    tokens: Count
    """Tokens trained on."""
    seconds: Seconds
    """Seconds of training."""
    agreement: Share
    """Agreement one digit further."""
    trained_agreement: Share | None = None
    """Lowest agreement at a trained length; None where it was not measured."""
    leap: Digits = 1
    """Digits from this phase to the next round."""
    tokens_probed: Count = 0
    """Tokens generated to measure agreement."""
    seconds_probe: Seconds = 0.0
    """Seconds of measuring agreement."""


class StartRecord(Record):
    """Whose snapshot a supervised phase began with (`rounds/supervised/start.json`)."""

    name: ClassVar[str] = "start"

    snapshot: str
    """Name of the snapshot in the grid's directory."""
    seconds: Seconds
    """Seconds of training that the snapshot took."""


class SnapshotRecord(Record):
    """Where a snapshot of a training stands (metadata of `training.safetensors`)."""

    phase: str
    """Digits of the phase, 0 for the supervised one; behind a dot the attempts taken back."""
    cycle: Count
    """Cycles done before this one."""
    step: Count
    """Steps done in this cycle."""
    tokens: Count
    """Tokens trained on."""
    seconds: Seconds
    """Seconds of training."""


class FrontierMistakes(Record):
    """Outputs one digit past the round, by mistake."""

    fast: Mistakes
    """Outputs of the fast policy."""
    slow: Mistakes
    """Outputs of the slow policy."""


class RoundMetrics(Record):
    """The audit of a phase: a line of metrics.jsonl."""

    phase: Literal["sft", "round"]
    """The supervised phase, or a round."""
    digits: Digits
    """Digits that the phase reached."""
    tried: Count
    """Candidates tried; 0 in the supervised phase."""
    accepted: Count
    """Candidates accepted; 0 in the supervised phase."""
    thought_through: Count = 0
    """Accepted candidates that were solved to the end."""
    rejected: dict[Reason, Count]
    """Candidates rejected, by the check that failed first."""
    label_error: Share | None
    """Share of accepted examples that are wrong; None where nothing was accepted."""
    fast_label_error: Share | None
    """Share of candidates that the fast policy answered wrong; None in the supervised phase."""
    label_mistakes: Mistakes = {}
    """Accepted examples by the mistake in their answer."""
    agreement: Share | None
    """Share of candidates that passed all checks at once; None in the supervised phase."""
    next_agreement: Share
    """Agreement one digit further, after the training."""
    trained_agreement: Share | None = None
    """Lowest agreement at a trained length, after the training; None where it was not measured."""
    leap: Digits = 1
    """Digits from this phase to the next round."""
    accuracy: dict[int, Share]
    """Exact-match accuracy of the fast policy at 1 to `digits + 1` digits; after the supervised phase further."""
    frontier: FrontierMistakes | None = None
    """Mistakes one digit past the round; None in runs of releases that did not count them."""
    cycles: Annotated[Count, Field(ge=1)]
    """Cycles of the learning rate."""
    taken_back: Count = 0
    """Attempts at the round that were taken back."""
    tokens_generated: Count
    """Tokens generated for the round's examples."""
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
    """Seconds of the run up to the end of the audit."""

    @property
    def is_round(self) -> bool:
        """Return whether this is a round, and not the supervised phase."""
        return self.phase == "round"

    @property
    def own_accuracy(self) -> float:
        """Return the accuracy at the length that the phase reached."""
        return self.accuracy[self.digits]

    @property
    def trained_accuracies(self) -> list[float]:
        """Return the accuracy at each length up to the one that the phase reached."""
        return [self.accuracy[digits] for digits in range(1, self.digits + 1)]

    @property
    def wrong_accepted(self) -> int:
        """Return the count of accepted examples that are wrong."""
        return round((self.label_error or 0.0) * self.accepted)

    @property
    def wrong_fast(self) -> int:
        """Return the count of candidates that the fast policy answered wrong."""
        return round((self.fast_label_error or 0.0) * self.tried)

    @property
    def knows_probes(self) -> bool:
        """Return whether the time of measuring agreement is on record; releases before did not note it."""
        return "seconds_probe" in self.model_fields_set

    @model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.accuracy) != list(range(1, len(self.accuracy) + 1)) or len(self.accuracy) <= self.digits:
            raise ValueError(f"accuracy should be of the lengths 1 to {self.digits + 1} or more, one more than digits")
        _check_fates(self.tried, self.accepted, self.thought_through, self.rejected)
        if self.is_round != bool(self.tried):
            raise ValueError(f"tried is {self.tried} in the phase {self.phase!r}")
        if (self.label_error is None) != (self.accepted == 0):
            raise ValueError(f"label_error is {self.label_error} where accepted is {self.accepted}")
        for name in ("fast_label_error", "agreement"):
            if (getattr(self, name) is None) == self.is_round:
                raise ValueError(f"{name} is {getattr(self, name)} in the phase {self.phase!r}")
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
    """The same of one family of problems at one length."""

    family: str
    """Name of the family."""


class EvaluationRecord(Record):
    """An evaluation (`plots/eval-fast.json`)."""

    policy: Annotated[str, StringConstraints(pattern=r"^(fast|slow|improved)$")]
    """The policy that was asked."""
    samples: Annotated[Count, Field(ge=1)]
    """Problems a length."""
    lengths: Annotated[list[LengthScore], Field(min_length=1)]
    """Scores on uniform problems, a length each."""
    suite: list[FamilyScore]
    """Scores on families of problems; empty where the suite was not asked for."""
    seed: Count
    """Seed of the problems."""
    engine: str
    """Name of the engine."""
    weights_sha256: Sha256
    """Digest of the weights."""
    seconds: Seconds
    """Seconds of the evaluation."""


R = TypeVar("R", bound=Record)


def read_record(path: Path, kind: type[R], mend: str) -> R | None:
    """Read a file that holds one record; None where there is no file. Raises Damaged as `parse_record`."""
    content = read_content(path, mend)
    return None if content is None else parse_record(content, kind, str(path), mend)


def read_metrics(path: Path, mend: str) -> list[RoundMetrics]:
    """Read metrics.jsonl; no lines where there is no file. Raises Damaged as `parse_metrics`."""
    return list(parse_metrics(read_content(path, mend) or b"", str(path), mend))


def read_content(path: Path, mend: str) -> bytes | None:
    """Read a file of a run; None where there is none. Raises Damaged if something else stands in its place."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Damaged(f"{path} cannot be read ({error.strerror or error}); {mend}") from error


def parse_metrics(content: bytes, source: str, mend: str) -> Iterator[RoundMetrics]:
    """Parse metrics.jsonl line by line; Damaged names the first line that is none, or that is out of order."""
    before: RoundMetrics | None = None
    for number, text in enumerate(content.removesuffix(b"\n").split(b"\n") if content else (), start=1):
        line = parse_record(text, RoundMetrics, f"{source}, line {number}", mend)
        if fault := _fault_of_order(before, line):
            raise Damaged(f"{source}, line {number}: {fault}; {mend}")
        yield line
        before = line


def parse_record(content: bytes, kind: type[R], source: str, mend: str) -> R:
    """Parse one record. Damaged names the source, the first value at fault and the mend.

    InputError if the record is whole but for keys that this release does not know: it is not damaged, but of a later
    release.
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
    """Write a record as a line of JSON Lines."""
    return json.dumps(record.as_json()) + "\n"


def dump_file(record: Record) -> str:
    """Write a record as a file of its own."""
    return json.dumps(record.as_json(), indent=2) + "\n"


def _check_fates(tried: int, accepted: int, thought_through: int, rejected: dict[str, int]) -> None:
    if accepted > tried:
        raise ValueError(f"accepted is {accepted}, more than tried ({tried})")
    if thought_through > accepted:
        raise ValueError(f"thought_through is {thought_through}, more than accepted ({accepted})")
    if accepted + sum(rejected.values()) != tried:
        raise ValueError(f"accepted ({accepted}) and rejected ({sum(rejected.values())}) do not make tried ({tried})")


def _fault_of_order(before: RoundMetrics | None, line: RoundMetrics) -> str | None:
    """Return what is wrong with a line after the one before it; None if nothing is."""
    if before is None:
        return "the first line is not of the supervised phase" if line.is_round else None
    if not line.is_round:
        return "the supervised phase is not the first line"
    if line.digits <= before.digits:
        return f"digits is {line.digits}, not more than in the line before ({before.digits})"
    if line.seconds_total < before.seconds_total:
        return f"seconds_total is {line.seconds_total}, less than in the line before ({before.seconds_total})"
    return None


def _key_of_later_release(error: ValidationError, kind: type[Record], content: bytes) -> str | None:
    """Return the first unknown key, if nothing else is wrong and every known key is there."""
    faults = error.errors()
    if any(fault["type"] != "extra_forbidden" for fault in faults):
        return None
    # Where a known key is missing, the unknown one may be its name, garbled.
    if not kind.model_fields.keys() <= json.loads(content).keys():
        return None
    return _key_of(faults[0]["loc"])


def _first_fault(error: ValidationError) -> str:
    """Say what is wrong with the first value at fault."""
    # An impossible value tells more than a missing key, and that more than an unknown one.
    fault = min(error.errors(), key=lambda each: _TELLING.get(each["type"], 0))
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
    return ".".join(str(part) for part in location if part != "[key]")
