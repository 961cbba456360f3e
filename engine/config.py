"""Every setting of a run, with its default and its meaning; read from TOML, written back resolved.

The defaults are ours, found by measuring (LOG.md); the paper does not state its own.
"""

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import tomli_w
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from sector.engine.errors import InputError
from sector.engine.files import read_text
from sector.engine.tasks import DEFAULT, find_task, task_names

MAX_DIGITS = 256
# Raised whenever the same settings lead to other weights; 1 is what a config says that names none.
RECIPE = 2
# Both operand orders at every shift of places (`tokens.SHIFTS`).
MAX_FAST_GUESSES = 6
EngineName = Literal["native", "hf", "vllm"]
PolicyName = Literal["fast", "slow", "improved"]
FilterName = Literal["none", "paper", "strict", "thorough"]
Preset = Literal["tiny", "base"]
Schedule = Literal["leaps", "paper"]
CheckName = Literal["direct", "complement", "commutative", "shifted", "through"]
# The checks there are (`checks.py`), in the order of their reasons in every record; `shifted` is the third at other
# places. No filter has more than MAX_CHECKS.
CHECKS: tuple[CheckName, ...] = ("direct", "commutative", "complement", "through")
SHIFTED: CheckName = "shifted"
MAX_CHECKS = 12

# Of problems and steps: more than any machine does, and few enough to count and to write down.
MOST = 1_000_000_000
# Below it a logit divided by the temperature need not be a number.
LEAST_TEMPERATURE = 0.001
MAX_TEMPERATURE = 10.0
# Guesses of one problem.
MAX_K = 100
# What may change while a run goes on: how far it goes, and how the engine `vllm` uses its machine. All other settings
# shape something that a run writes: weights, examples, or figures that stand side by side.
MAY_CHANGE = frozenset(
    {"until", "vllm.compiled", "vllm.max_digits", "vllm.rows", "vllm.memory_mib", "vllm.prefix_caching"}
)

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1, le=MOST)]
CountOrNone = Annotated[int, Field(ge=0, le=MOST)]
# Learning rates: beyond these ends nothing is learned, or the first step ends in numbers that are none.
Rate = Annotated[float, Field(ge=1e-8, le=10.0)]
# A decay of 1 would never forget, and its correction would divide by nothing.
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


def _as_tuple(values: object) -> object:
    """TOML and JSON have lists alone."""
    return tuple(values) if isinstance(values, list) else values


class Settings(BaseModel):
    """Frozen, strict about types, and deaf to no typo: an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


Model = TypeVar("Model", bound=Settings)

# What pydantic calls errors of numbers that are none, or too small, or too large.
_OUT_OF_RANGE = (
    "finite_number", "greater_than", "greater_than_equal", "less_than", "less_than_equal"
)  # fmt: skip


class Filter(Settings):
    """The improved policy: how it votes, and which checks must agree before an answer is believed."""

    vote: Literal["off", "majority", "unanimous"] = "unanimous"
    """How K guesses become one answer: the first alone, the most frequent, or only one that all give."""
    checks: Annotated[tuple[CheckName, ...], BeforeValidator(_as_tuple)] = ("direct", "complement", SHIFTED)
    """The checks, in the order in which they are tried. direct: the fast answer to the whole problem. complement: the
    fast answer to the nines' complement. commutative: the vote on the swapped operands. shifted: the same at other
    places. through: a chain of thought to the end. A task without a check goes without it."""
    k: Annotated[int, Field(ge=1, le=MAX_K)] = 5
    """Simplifications, and so guesses, a vote."""
    think_through: bool = True
    """Solve rejected candidates by chains of thought to the end, and accept an answer on which all of them agree?"""
    use_chain: bool = True
    """Guess after simplifying? If not, the K guesses are fast answers to the whole problem, each at other places and
    in the other operand order than the one before: a vote without any chain of thought, as a baseline."""
    temperature: Annotated[float, Field(ge=0.0, le=MAX_TEMPERATURE)] = 0.0
    """Sampling temperature; 0 is greedy, else from 0.001 on."""

    @field_validator("temperature")
    @classmethod
    def _check_temperature(cls, temperature: float) -> float:
        if 0 < temperature < LEAST_TEMPERATURE:
            raise ValueError(f"{temperature:g} is no temperature; give 0, or one from {LEAST_TEMPERATURE:g} on")
        return temperature

    @model_validator(mode="before")
    @classmethod
    def _read_old(cls, values: Any) -> Any:
        """Read the settings of earlier releases, a key a check."""
        return with_old_keys(values) if isinstance(values, dict) and not _OLD_KEYS.isdisjoint(values) else values

    @field_validator("checks")
    @classmethod
    def _check_names(cls, names: tuple[CheckName, ...]) -> tuple[CheckName, ...]:
        # A check and itself at other places bear one name.
        if len({name.replace(SHIFTED, "commutative") for name in names}) < len(names):
            raise ValueError(f"{', '.join(names)} names a check twice; shifted is commutative at other places")
        return names

    @model_validator(mode="after")
    def _check_guesses(self) -> Self:
        if self.use_chain:
            return self
        if not {"commutative", SHIFTED}.isdisjoint(self.checks):
            raise ValueError("without use_chain the guesses take both operand orders themselves; leave that check out")
        if self.k > MAX_FAST_GUESSES and not self.temperature:
            raise ValueError(
                f"without use_chain and temperature there are {MAX_FAST_GUESSES} different guesses; lower k"
            )
        if self.think_through or "through" in self.checks:
            raise ValueError("without use_chain no chain of thought goes to its end; set think_through to false")
        return self


_OLD_KEYS = {"second_look", "direct", "complement", "through", "think"}


def with_old_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of a filter in which keys of earlier releases (`second_look`, `direct`, `complement`, `through`,
    `think`) are told by `checks`, `think_through` and `use_chain`. Values that those never had are left as they are.
    """
    values = dict(values)
    checks = list(values.get("checks", Filter.model_fields["checks"].default))
    for name in ("direct", "complement"):
        if isinstance(values.get(name), bool):
            checks = _with(checks, name, values.pop(name))
    if (second := values.get("second_look")) in ("off", "swapped", "shifted"):
        checks = _with(checks, "commutative", second == "swapped")
        checks = _with(checks, SHIFTED, second == "shifted")
        del values["second_look"]
    through = values.get("through")
    if isinstance(through, bool) or through in ("off", "rejected", "all"):
        checks = _with(checks, "through", through == "all")
        values["think_through"] = through not in (False, "off")
        del values["through"]
    if "think" in values:
        values["use_chain"] = values.pop("think")
    return {**values, "checks": checks}


def _with(checks: list[str], name: str, wanted: bool) -> list[str]:
    """Checks with or without one, in the usual order."""
    order = ("direct", "complement", "commutative", SHIFTED, "through")
    return sorted({*checks, name} if wanted else {*checks} - {name}, key=order.index)


FILTERS = {
    "none": Filter(vote="off", checks=(), think_through=False),
    "paper": Filter(vote="majority", checks=("commutative",), think_through=False),
    "strict": Filter(),
    "thorough": Filter(checks=("direct", "complement", SHIFTED, "through")),
}


class TrainerConfig(Settings):
    """Optimizers, their schedule, and the augmentation of places (`distill.py`)."""

    learning_rate: Rate = 4e-3
    """Peak of a cycle for embeddings, head and norms (AdamW)."""
    muon_learning_rate: Rate = 0.02
    """Peak of a cycle for the matrices of the blocks (Muon)."""
    fast_weight: Share = 0.6
    """Weight of the fast answer's loss; the simplification has the rest."""
    weight_decay: Annotated[float, Field(ge=0.0, le=10.0)] = 0.1
    """On matrices. 0.01 does not generalise to one more digit."""
    beta1: Decay = 0.9
    """AdamW's decay of the first moment."""
    beta2: Decay = 0.98
    """AdamW's decay of the second moment."""
    warmup_steps: CountOrNone = 100
    """Steps of linear warm-up at the start of a cycle."""
    final_rate: Share = 0.05
    """Share of the peak learning rate left at the end of a cycle."""
    clip_norm: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """Largest norm of the gradient."""
    gap_share: Share = 0.5
    """Share of training rows with a gap of random width at a random column."""
    num_shards: Annotated[int, Field(ge=1, le=1024)] = 4
    """Shards a step; each holds problems of one length and is worked on by one core."""
    shard_rows: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Problems a shard."""


class RoundTrainerConfig(TrainerConfig):
    """The same for a round, which is short and must not undo what was learned: gentler, and of more lengths at once.

    A kind of its own, so that whoever sets one of them keeps the others.
    """

    learning_rate: Rate = 2e-3
    """Peak of a cycle for embeddings, head and norms (AdamW)."""
    muon_learning_rate: Rate = 0.01
    """Peak of a cycle for the matrices of the blocks (Muon)."""
    warmup_steps: CountOrNone = 10
    """Steps of linear warm-up at the start of a cycle."""
    num_shards: Annotated[int, Field(ge=1, le=1024)] = 8
    """Shards a step; each holds problems of one length and is worked on by one core."""
    shard_rows: Annotated[int, Field(ge=1, le=65_536)] = 8
    """Problems a shard."""


class VllmConfig(Settings):
    """The engine `vllm` (`vllm/start.py` says what vLLM calls these)."""

    dtype: Literal["model", "float32", "bfloat16"] = "model"
    """What it computes in; `model` is what the weights are in."""
    compiled: Literal["auto", "on", "off"] = "auto"
    """Compile the model at the start? That takes half a minute; `auto` does on a GPU only."""
    max_digits: Annotated[int, Field(ge=1, le=MAX_DIGITS)] = MAX_DIGITS
    """The longest operand that it is made for."""
    rows: Count = 1024
    """Prompts at a time."""
    memory_mib: Count = 1024
    """Memory for keys and values."""
    prefix_caching: bool = True
    """Read what prompts have in common once?"""


class SupervisedConfig(Settings):
    """The supervised phase: 1 to max_digits digits with true answers."""

    max_digits: Annotated[int, Field(ge=2, le=MAX_DIGITS)] = 6
    """Longest supervised problems."""
    cycle_steps: Count = 1600
    """Steps of the first cycle of the learning rate."""
    more_steps: Count = 400
    """Steps of every further cycle."""
    curriculum_share: Share = 0.2
    """Share of the first cycle over which lengths open up from 1 to max_digits."""
    max_cycles: Count = 6
    """Cycles before the phase gives up."""
    target_accuracy: Share = 0.98
    """Fast and slow accuracy wanted at every supervised length."""
    target_agreement: Share = 0.9
    """Label-free agreement wanted at one digit more."""
    examples: Count = 1000
    """Labelled examples a length kept for replay in later rounds."""
    trainer: TrainerConfig = TrainerConfig()
    """Optimizer settings of this phase."""


class RoundConfig(Settings):
    """One round of self-training: generate, filter, distill, advance."""

    candidates: Count = 1000
    """Problems tried a round."""
    pool: Annotated[int, Field(ge=1, le=1000)] = 8
    """Problems drawn for each candidate. The fast policy answers them and their complements, and those on which it
    contradicts itself are tried first, up to half of the candidates. 1 tries problems as they are drawn."""
    teacher: Literal["last", "supervised"] = "last"
    """Whose answers a round learns: those of the round before, or always of the supervised phase (one-shot
    distillation, as a baseline)."""
    cycle_steps: Count = 320
    """Training steps a cycle; the round trains cycle after cycle until the next frontier is within reach."""
    max_cycles: Count = 5
    """Cycles before the round stops trying."""
    replay_share: Share = 0.5
    """Share of the shards drawn from earlier rounds and the supervised phase."""
    restated: bool = True
    """Learn accepted examples also as the other problems that looks ask (`Task.restated`), of sums `b+a` and the nines'
    complements?"""
    missed_turns: bool = True
    """Do examples that the fast policy missed, by the vote, take turns with all examples of their round?"""
    probe: Count = 150
    """Problems of one digit more on which agreement is measured after each cycle."""
    target_agreement: Share = 0.85
    """Agreement at the next frontier that ends a round's training."""
    probe_trained: CountOrNone = 40
    """Problems of a trained length on which agreement is measured after each cycle; 0 measures none."""
    probe_lengths: CountOrNone = 6
    """Trained lengths that are measured so, drawn anew for each cycle; all of them are where one of those is in doubt.
    0 always measures all."""
    target_trained: Share = 0.8
    """Lowest agreement at any trained length that ends a round's training."""
    max_fall: Share = 0.25
    """How far agreement at trained lengths may fall below the highest it was; a round that falls further is taken back
    and tried again with other problems, three times at most (`rollback.py`). 1 takes nothing back."""
    max_leap: Annotated[int, Field(ge=1, le=MAX_DIGITS)] = 5
    """How many digits further the next round may be. As long as the model agrees with itself there by
    `leap_agreement` the distance is doubled, up to this. 1 is the paper's schedule, a digit a round."""
    leap_agreement: Share = 0.7
    """Agreement at a length that makes it the next frontier, where that is more than one digit away."""
    min_agreement: Share = 0.3
    """Agreement at the next frontier below which the loop stops (exit code 3)."""
    trainer: RoundTrainerConfig = RoundTrainerConfig()
    """Optimizer settings of this phase."""


# What other defaults are under a schedule: the paper's is a digit a round, and so many short rounds.
SCHEDULES: dict[str, dict[str, Any]] = {
    "leaps": {"filter": {"checks": FILTERS["thorough"].checks}, "supervised": {"target_agreement": 0.8}},
    "paper": {
        "supervised": {"trainer": {"num_shards": 2, "shard_rows": 32}},
        "round": {
            "trainer": {"num_shards": 4, "shard_rows": 16},
            "candidates": 600,
            "pool": 1,
            "cycle_steps": 60,
            "probe_lengths": 0,
            "max_leap": 1,
            "leap_agreement": 0.92,
            "missed_turns": False,
            "restated": False,
        },
    },
}

# What other defaults are for a model that has learned something already, and is larger: AdamW alone, at lower rates.
PRETRAINED: dict[str, Any] = {
    "engine": "hf",
    "schedule": "paper",
    "supervised": {"trainer": {"learning_rate": 2e-4, "weight_decay": 0.01, "warmup_steps": 20}},
    "round": {"trainer": {"learning_rate": 1e-4, "weight_decay": 0.01}},
}


class RunConfig(Settings):
    """A whole run. Tables of the TOML file are the nested settings."""

    pretrained: str = ""
    """Start from this model instead of a fresh one of ours: a directory in Hugging Face form, or a GGUF file. It is
    read once, into checkpoints/00. Some defaults are others then (`PRETRAINED`); preset, muon_learning_rate and
    gap_share mean nothing to it, and the second look `shifted` is the swapped one."""
    recipe: Annotated[int, Field(ge=1, le=RECIPE)] = RECIPE
    """Which release's trainer and loop these are settings of; no run is gone on with by those of another."""
    preset: Preset = "tiny"
    """Size of the model (`model.py`)."""
    task: str = DEFAULT
    """What is learned; a module of `engine/tasks/`, which may have other defaults (`Task.settings`)."""
    digit_order: Literal["msd", "lsd"] = "msd"
    """Most significant digit first, or least."""
    until: Annotated[int, Field(ge=2, le=MAX_DIGITS - 1)] = 29
    """Digits at which the run is done; supervised.max_digits for the supervised phase alone."""
    schedule: Schedule = "leaps"
    """How far rounds go: as far as the model agrees with itself, or, as in the paper, a digit each. Some defaults are
    others then (`SCHEDULES`)."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Everything random follows from it."""
    engine: EngineName = "native"
    """What generates."""
    hard_share: Share = 0.45
    """Share of drawn problems that are carry chains or have a short operand (`problem.draw_problems`)."""
    audit_samples: Count = 100
    """Problems a length in the audit after each round."""
    supervised: SupervisedConfig = SupervisedConfig()
    """The supervised phase."""
    round: RoundConfig = RoundConfig()
    """Self-training."""
    filter: Filter = Filter()
    """The improved policy."""
    vllm: VllmConfig = VllmConfig()
    """The engine `vllm`, where that is what generates."""

    @model_validator(mode="before")
    @classmethod
    def _other_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        task, pretrained = values.get("task", DEFAULT), values.get("pretrained")
        # The default task has the defaults above, and its module need not be read for them.
        if task != DEFAULT and task in task_names():
            values = merged(find_task(task).settings, values)
        if pretrained and isinstance(pretrained, str):
            values = merged(PRETRAINED, values)
        schedule = values.get("schedule", "leaps")
        return merged(SCHEDULES[schedule], values) if isinstance(schedule, str) and schedule in SCHEDULES else values

    @model_validator(mode="after")
    def _check_pretrained(self) -> Self:
        if not self.pretrained:
            return self
        if self.task != DEFAULT and not find_task(self.task).has_text:
            raise ValueError(
                f"a pretrained model cannot learn the task {self.task}, which is not written as text yet; leave out "
                "pretrained, or learn addition"
            )
        if self.engine == "native":
            raise ValueError("the engine native runs sector's own models only; with pretrained choose hf or vllm")
        if self.digit_order != "msd":
            raise ValueError("a pretrained model reads numbers as people write them; leave out digit_order")
        if not self.filter.use_chain and self.filter.k > 2 and not self.filter.temperature:
            raise ValueError("without use_chain and temperature text has two different guesses, one an order; lower k")
        return self

    @field_validator("task")
    @classmethod
    def _check_task(cls, task: str) -> str:
        if task not in task_names():
            raise ValueError(f"unknown task {task!r}; choose one of {', '.join(task_names())}")
        return task

    @model_validator(mode="after")
    def _check_frontier(self) -> Self:
        if self.until < self.supervised.max_digits:
            raise ValueError(
                f"until ({self.until}) must not be below supervised.max_digits ({self.supervised.max_digits})"
            )
        return self


def read_config(path: Path) -> dict[str, Any]:
    """A TOML file as nested dicts. InputError if it is missing, no text or not TOML."""
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not TOML: {error}") from error
    except RecursionError as error:
        raise InputError(f"{path} is not TOML that can be read: it is nested too deeply") from error


def run_config(values: dict[str, Any], source: str = "config") -> RunConfig:
    """Validate nested dicts. InputError names the first key at fault, what is wrong with it, and where it came from."""
    return validated(RunConfig, values, source)


def validated(settings: type[Model], values: dict[str, Any], source: str) -> Model:
    """Nested dicts as settings of a kind. InputError as in `run_config`."""
    try:
        return settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        known = "; `sector config` lists all settings" if first["type"] == "extra_forbidden" else ""
        message = "unknown key" if known else first["msg"].removeprefix("Value error, ")
        if first["type"] in _OUT_OF_RANGE:
            message += f"; it takes {_range_of(settings, first['loc'])}"
        raise InputError(f"{source}: {key + ': ' if key else ''}{message}{known}") from error


def _range_of(settings: type[Settings], key: Sequence[int | str]) -> str:
    """The numbers that a setting takes, in words."""
    field, kind = settings.model_fields[str(key[0])], settings
    for part in key[1:]:
        kind = field.annotation  # type: ignore[assignment]  # a table of settings, since there is a key in it
        field = kind.model_fields[str(part)]
    bounds = {type(each): each for each in field.metadata}
    first, last = bounds.get(Ge), bounds.get(Le)
    least = first.ge if isinstance(first, Ge) else bounds[Gt].gt
    most = last.le if isinstance(last, Le) else bounds[Lt].lt
    return f"{_plain(least)} to {'' if last else 'below '}{_plain(most)}"


def _plain(number: object) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Settings as people give them one by one, `vllm.max_digits=40`, as nested dicts; a value is TOML or a word.

    InputError names the first that is no setting. Whether its key exists is for `validated` to say.
    """
    given: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        path = [part.strip() for part in key.split(".")]
        if not equals or not all(part.isidentifier() for part in path):
            raise InputError(f"--set {text!r} is no setting; write it as vllm.max_digits=40")
        try:
            one: Any = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            one = value.strip()
        for part in reversed(path):
            one = {part: one}
        given = merged(given, one)
    return given


def vllm_config(given: dict[str, Any], base: VllmConfig) -> VllmConfig:
    """Settings of the engine `vllm` over others. InputError if something else is given too."""
    if stray := next((key for key, _ in flat(given) if not key.startswith("vllm.")), None):
        raise InputError(f"--set {stray}: only settings of the engine vllm can be given here, as vllm.max_digits=40")
    return validated(RunConfig, {"vllm": merged(base.model_dump(), given.get("vllm", {}))}, "--set").vllm


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested settings with some of them replaced."""
    both = {
        key: merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in over.items()
    }
    return {**base, **both}


def flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted keys."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def dump_config(config: RunConfig) -> str:
    """The resolved config as TOML."""
    return tomli_w.dumps(config.model_dump())
