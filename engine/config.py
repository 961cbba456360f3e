"""Settings of a run: names, types, ranges, defaults and meanings; reading and writing them as TOML.

The defaults were found by measuring (log.md); the paper does not state its own.
"""

import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import tomli_w
from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sector.engine.errors import InputError
from sector.engine.files import read_text
from sector.engine.outside import Door, is_plain_name
from sector.engine.tasks import DEFAULT, TASK_DOOR, find_task, is_task, no_such_task

MAX_DIGITS = 256
# Beginning of the names of presets that are models of text.
_TEXT_PRESET = "text-"
# Digits of operands whose places have letters of their own, that of the zero in front and of a problem ahead included.
_MAX_HINTED = 50
# Raised whenever the same settings lead to other weights. A config without a recipe has recipe 1.
RECIPE = 2
# Both operand orders at every shift of places (`tokens.SHIFTS`).
MAX_FAST_GUESSES = 6
PolicyName = Literal["fast", "slow", "improved"]
FilterName = Literal["none", "paper", "strict", "thorough"]
Preset = Literal["tiny", "base", "text-tiny", "text-base"]
Precision = Literal["float32", "bfloat16"]
Schedule = Literal["leaps", "paper"]
Compression = Literal["none", "snappy", "gzip", "zstd"]
# Of the parts of a data set (`run/part_folder.py`), by default.
PART_ROWS = 2000
COMPRESSION: Compression = "zstd"
# Most rows of a data set that training holds in memory, by default. A row of 12 digits takes half a kilobyte.
WINDOW_ROWS = 2**17
ENGINES = ("native", "hf", "vllm")
# Checks of this package (`checks.py`), in the order of their reasons in every record. `shifted` is the commutative
# check at other places. REMAINDER is a reason in records of filters that name it only. A filter has at most MAX_CHECKS
# checks.
CHECKS = ("direct", "commutative", "complement", "through")
SHIFTED, REMAINDER = "shifted", "remainder"
MAX_CHECKS = 12
# Engines and checks of users. An engine is a class that is called with a model.
ENGINE_DOOR: Door[Any] = Door("engine", "--engine FILE.py:NAME", lambda: ENGINES, "sector.engine.samplers.outside")
CHECK_DOOR: Door[Any] = Door(
    "check",
    """--set 'filter.checks=["FILE.py:NAME"]'""",
    lambda: (*CHECKS, SHIFTED, REMAINDER),
    "sector.engine.policy.checks",
)

# Largest number of problems or steps: beyond the reach of any machine, and small enough for every counter.
MOST = 1_000_000_000
# Below this, logits divided by the temperature may overflow.
LEAST_TEMPERATURE = 0.001
MAX_TEMPERATURE = 10.0
# Largest number of guesses for one problem.
MAX_K = 100
# Settings that may change when a run is resumed: how far it goes, and how engines use the machine. All other
# settings shape the files of a run: weights, examples, or metrics that are compared with each other.
MAY_CHANGE = frozenset(
    {
        "until",
        "blocks",
        "vllm.compiled",
        "vllm.max_digits",
        "vllm.rows",
        "vllm.memory_mib",
        "vllm.prefix_caching",
        "vllm.draft_tokens",
    }
)

# Value of a key of a network's config. Strings could name code.
NetworkValue = bool | int | float | str | list[bool | int | float] | list[str]
_NETWORK_NAMES = ("model_type", "hidden_act", "layer_types")

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1, le=MOST)]
CountOrNone = Annotated[int, Field(ge=0, le=MOST)]
# Below this range of learning rates nothing is learned; above it the first step gives NaN.
Rate = Annotated[float, Field(ge=1e-8, le=10.0)]
# A decay of 1 would never forget, and its bias correction would divide by zero.
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


def _as_tuple(values: object) -> object:
    """Turn a list into a tuple, since TOML and JSON have only lists."""
    return tuple(values) if isinstance(values, list) else values


def _is_recorded(info: ValidationInfo) -> bool:
    """Return whether settings are read from a run (`run_config`)."""
    return bool(info.context and info.context["is_recorded"])


def _is_check(name: str) -> bool:
    """Return whether there is a check of a name: of this package, of a user, or of a user's task."""
    return CHECK_DOOR.has(name) or any(
        name == check.name for task in TASK_DOOR.things.values() for check in task.checks
    )


class Settings(BaseModel):
    """Base of all settings: frozen, strict about types; an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


Model = TypeVar("Model", bound=Settings)

# Names that pydantic gives to errors of range.
_OUT_OF_RANGE = (
    "finite_number", "greater_than", "greater_than_equal", "less_than", "less_than_equal"
)  # fmt: skip


class Filter(Settings):
    """Filter of the improved policy: the vote, and the checks that must agree before an answer is accepted."""

    vote: Literal["off", "majority", "unanimous", "harmonic"] = "unanimous"
    """How K guesses become one answer. off: take the first guess. majority: take the most frequent. unanimous: accept
    only if all guesses agree. harmonic: take the answer with the highest harmonic mean of its shares among the guesses
    of `a+b` and among those of `b+a`, for guesses without `use_chain`."""
    checks: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ("direct", "complement", SHIFTED)
    """Checks that must agree with the vote, in this order. direct: the fast answer to the whole problem. complement:
    the fast answer to the problem of the nines' complements. commutative: the vote on the swapped operands. shifted:
    the same, with other token positions. remainder: the fast answer to a sum of other order of digits, modulo 99.
    through: a chain of thought to the end. Fewer checks are faster and let more wrong answers pass. Checks that a task
    does not have are skipped. A check of your own is named as FILE.py:NAME or MODULE:NAME."""
    k: Annotated[int, Field(ge=1, le=MAX_K)] = 5
    """Guesses per vote, one after each simplification. More guesses are slower and catch more errors."""
    think_through: bool = True
    """Whether to solve rejected candidates again by full chains of thought, and accept an answer if all chains agree.
    Turn it off to save time."""
    use_chain: bool = True
    """Whether to simplify before each guess. Turn it off for a baseline without chains of thought: the K guesses are
    then fast answers to the whole problem, with operand order and token positions varied."""
    views: bool = True
    """Whether guesses without `use_chain` take turns at operand orders and token positions. Turn it off, with a
    temperature, for samples of one prompt."""
    temperature: Annotated[float, Field(ge=0.0, le=MAX_TEMPERATURE)] = 0.0
    """Sampling temperature: 0 for greedy, or at least 0.001. Raise it to make guesses differ more."""
    gate: Literal["checks", "random"] = "checks"
    """Candidates that generation accepts. checks: those that pass vote and checks. random: as many of every 250
    candidates, drawn at random, as a control."""
    leak: Share = 0.0
    """Share of the rejected candidates that generation accepts anyway, drawn at random. It measures how strict a gate
    must be; leave it at 0 otherwise."""

    @field_validator("temperature")
    @classmethod
    def _check_temperature(cls, temperature: float) -> float:
        if 0 < temperature < LEAST_TEMPERATURE:
            raise ValueError(f"{temperature:g} is too low; choose 0 (greedy) or at least {LEAST_TEMPERATURE:g}")
        return temperature

    @model_validator(mode="before")
    @classmethod
    def _read_old(cls, values: Any) -> Any:
        """Read the keys of earlier releases, which had one for each check."""
        return with_old_keys(values) if isinstance(values, dict) and not _OLD_KEYS.isdisjoint(values) else values

    @field_validator("checks")
    @classmethod
    def _check_names(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for name in names:
            if not (_is_check(name) or (_is_recorded(info) and is_plain_name(name))):
                raise ValueError(CHECK_DOOR.unknown(name))
        if len(names) > MAX_CHECKS:
            raise ValueError(f"{len(names)} checks are too many; a filter has at most {MAX_CHECKS}")
        # Both give the reason `not_commutative`, so a filter can have only one of them.
        if len({name.replace(SHIFTED, "commutative") for name in names}) < len(names):
            raise ValueError(f"{', '.join(names)} names a check twice; shifted is commutative at other places")
        return names

    @model_validator(mode="after")
    def _check_guesses(self) -> Self:
        if self.use_chain:
            if self.vote == "harmonic" or not self.views:
                raise ValueError("vote harmonic and views are for guesses without use_chain; set use_chain to false")
            return self
        self._check_views()
        if self.views and not {"commutative", SHIFTED}.isdisjoint(self.checks):
            raise ValueError(
                "without use_chain the guesses cover both operand orders; leave out the checks commutative and "
                "shifted, or set views to false"
            )
        if self.k > MAX_FAST_GUESSES and not self.temperature:
            raise ValueError(
                f"without use_chain and temperature there are only {MAX_FAST_GUESSES} different guesses; lower k"
            )
        if self.think_through or "through" in self.checks:
            raise ValueError(
                "without use_chain there are no chains of thought; set think_through to false, and leave out the check "
                "through"
            )
        return self

    def _check_views(self) -> None:
        """Raise ValueError if guesses without chains of thought cannot differ, or lack views that the vote needs."""
        if not self.views and self.vote != "off" and self.k > 1 and not self.temperature:
            raise ValueError("without views and temperature all guesses are the same; give a temperature")
        if self.vote == "harmonic" and (not self.views or self.k < 2):
            raise ValueError("vote harmonic compares two operand orders; leave views on, and choose a k of 2 or more")


_CHECK_ORDER = ("direct", "complement", "commutative", SHIFTED, REMAINDER, "through")
_OLD_KEYS = {"second_look", "direct", "complement", "through", "think"}


def with_old_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Translate the filter keys of earlier releases to `checks`, `think_through` and `use_chain`.

    Those keys are `second_look`, `direct`, `complement`, `through` and `think`. Invalid values are kept, so that
    validation reports them.
    """
    values = dict(values)
    checks = values.get("checks", Filter.model_fields["checks"].default)
    if not isinstance(checks, list | tuple) or not all(name in _CHECK_ORDER for name in checks):
        return values
    checks = list(checks)
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
    """Return the checks with or without `name`, in the usual order."""
    return sorted({*checks, name} if wanted else {*checks} - {name}, key=_CHECK_ORDER.index)


FILTERS = {
    "none": Filter(vote="off", checks=(), think_through=False),
    "paper": Filter(vote="majority", checks=("commutative",), think_through=False),
    "strict": Filter(),
    "thorough": Filter(checks=("direct", "complement", SHIFTED, "through")),
}


class TrainerConfig(Settings):
    """Settings of training: optimizers, learning rates, batch size and augmentation (`distill.py`)."""

    learning_rate: Rate = 4e-3
    """Peak learning rate of AdamW in each cycle, for embeddings, head and norms. Lower it if the loss diverges."""
    muon_learning_rate: Rate = 0.02
    """Peak learning rate of Muon in each cycle, for the weight matrices of the blocks. Lower it if the loss
    diverges."""
    fast_weight: Share = 0.6
    """Weight of the fast answer in the loss; the simplification gets the rest. Raise it if fast answers lag behind."""
    weight_decay: Annotated[float, Field(ge=0.0, le=10.0)] = 0.1
    """Weight decay of the matrices. Keep it near 0.1: at 0.01 the model does not generalise to one more digit."""
    beta1: Decay = 0.9
    """Decay of AdamW's first moment. Rarely changed."""
    beta2: Decay = 0.98
    """Decay of AdamW's second moment. Rarely changed."""
    warmup_steps: CountOrNone = 100
    """Steps of linear warm-up at the start of each cycle. Raise it if the loss jumps at the start."""
    final_rate: Share = 0.05
    """Learning rate at the end of a cycle, as a share of its peak. A low value helps one more digit to work."""
    clip_norm: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """Largest norm of the gradient; larger ones are scaled down. Lower it if the loss jumps."""
    optimizer: Literal["auto", "muon", "adamw"] = "auto"
    """Optimizer of the weight matrices of the blocks. auto: AdamW for models of text, Muon for others. The presets
    `text-tiny` and `text-base` take Muon by default."""
    gap_share: Share = 0.5
    """Share of training rows whose digit positions have a random gap, so that longer numbers work later. 0 turns it
    off."""
    num_shards: Annotated[int, Field(ge=1, le=1024)] = 4
    """Shards per training step. Each holds problems of one length and is computed by one core or process."""
    shard_rows: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Problems per shard. With `num_shards` it gives the batch size."""
    precision: Precision = "float32"
    """Number type of the forward and the backward pass. Weights, loss, averaged gradient and optimizers stay float32.
    Choose bfloat16 on a GPU for large models, such as `base` and pretrained ones."""
    average: Decay = 0.0
    """Decay of an exponential moving average of the weights, for example 0.999; 0 turns it off. The average takes the
    place of the weights at the end of each cycle, so it is measured, generates examples and is saved."""
    micro_batch: Annotated[int, Field(ge=0, le=65_536)] = 0
    """Problems of a shard in one forward pass of a model of text; gradients are added up (gradient accumulation). 0
    passes a whole shard. Choose a small number if memory runs out: the gradients of shards are then not held, either.
    """
    recompute: bool = False
    """Whether a model of text keeps only the inputs of its layers for the backward pass, and computes the rest again
    (gradient checkpointing). It needs less memory and about a third more time; the weights stay the same."""
    lora_rank: Annotated[int, Field(ge=0, le=4096)] = 0
    """Rank of an adapter (LoRA) that is trained in the place of the weights of a pretrained model; 0 trains the
    weights. It needs the extra `lora`, is equal in both phases, and raises the default learning rates ten times."""
    lora_targets: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ()
    """Names of the matrices that the adapter adapts, such as `q_proj` and `v_proj`. None stands for all matrices of the
    blocks."""

    @field_validator("lora_targets")
    @classmethod
    def _check_targets(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not re.fullmatch(r"\w+", name):
                raise ValueError(f"{name!r} is no name of a matrix; write it as q_proj")
        return names


class RoundTrainerConfig(TrainerConfig):
    """Settings of a round's training: lower learning rates, and more lengths per step, so that less is forgotten.

    A class of its own, so that a config that sets one of them keeps the other defaults of a round.
    """

    learning_rate: Rate = 2e-3
    """Peak learning rate of AdamW in each cycle, for embeddings, head and norms. Lower it if rounds are rolled back."""
    muon_learning_rate: Rate = 0.01
    """Peak learning rate of Muon in each cycle, for the weight matrices. Lower it if rounds are rolled back."""
    warmup_steps: CountOrNone = 10
    """Steps of linear warm-up at the start of each cycle. Raise it if the loss jumps at the start."""
    num_shards: Annotated[int, Field(ge=1, le=1024)] = 8
    """Shards per training step. Each holds problems of one length and is computed by one core or process."""
    shard_rows: Annotated[int, Field(ge=1, le=65_536)] = 8
    """Problems per shard. With `num_shards` it gives the batch size."""


class VllmConfig(Settings):
    """Settings of the engine `vllm` (`vllm/start.py` maps them to arguments of vLLM)."""

    dtype: Literal["model", "float32", "bfloat16"] = "model"
    """Number type of the computation; `model` is that of the weights. Choose bfloat16 for speed on a GPU."""
    compiled: Literal["auto", "on", "off"] = "auto"
    """Whether to compile the model at the start, which takes half a minute. `auto` compiles on a GPU only."""
    max_digits: Annotated[int, Field(ge=1, le=MAX_DIGITS)] = MAX_DIGITS
    """Digits of the longest operand that the engine accepts. Lower it to save memory."""
    rows: Count = 1024
    """Prompts generated at the same time. Lower it if memory runs out."""
    memory_mib: Annotated[int, Field(ge=1, le=2**40)] = 1024
    """MiB of memory for the KV cache. Raise it for long operands or many prompts at a time."""
    prefix_caching: bool = True
    """Whether to compute shared prefixes of prompts once. Turn it off only to compare."""
    draft_tokens: Annotated[int, Field(ge=0, le=128)] = 64
    """Tokens of a draft that vLLM verifies in one step (speculative decoding). 0 generates token by token."""


class SupervisedConfig(Settings):
    """Settings of the supervised phase, which trains on 1 to `max_digits` digits with true answers."""

    max_digits: Annotated[int, Field(ge=2, le=MAX_DIGITS)] = 6
    """Digits of the longest problems with true answers. The rounds start one digit further."""
    cycle_steps: Count = 1600
    """Training steps of the first cycle. Raise it for larger models."""
    more_steps: Count = 400
    """Training steps of each further cycle, which is run if the targets are not met."""
    curriculum_share: Share = 0.2
    """Share of the first cycle in which the longest length grows from 1 to `max_digits`. 0 starts with all lengths."""
    max_cycles: Count = 6
    """Largest number of cycles; after that the rounds start even if the targets are not met."""
    target_accuracy: Share = 0.98
    """Accuracy of the fast and slow policy, at every supervised length, that ends the phase."""
    target_agreement: Share = 0.9
    """Agreement one digit further that ends the phase. Raise it for a stronger start."""
    examples: Count = 1000
    """Examples with true answers per length that are kept for replay in later rounds."""
    trainer: TrainerConfig = TrainerConfig()
    """Training settings of the supervised phase."""


class RoundConfig(Settings):
    """Settings of a round of self-training: generate, filter, distill, advance."""

    candidates: Count = 1000
    """Problems that a round tries. More give more examples and take longer."""
    pool: Annotated[int, Field(ge=1, le=1000)] = 8
    """Problems drawn for each candidate. Problems on which the fast policy contradicts itself are preferred, for up to
    half of the candidates. 1 tries problems as they are drawn."""
    teacher: Literal["last", "supervised", "slow"] = "last"
    """Weights that generate the examples: those of the phase before, always those of the supervised phase (a baseline
    of one-shot distillation), or a moving average of the weights after all phases before."""
    teacher_decay: Decay = 0.5
    """Share of the earlier average in the next one, for the teacher `slow`. Raise it for a slower teacher."""
    cycle_steps: Count = 320
    """Training steps per cycle. A round trains cycle after cycle until its targets are met."""
    max_cycles: Count = 5
    """Largest number of cycles of a round, whether or not its targets are met."""
    replay_share: Share = 0.5
    """Share of the shards that repeat examples of earlier phases. Raise it if the model forgets trained lengths."""
    restated: bool = True
    """Whether to train on accepted examples also in their equivalent forms: for sums, `b+a` and the nines'
    complements."""
    missed_turns: bool = True
    """Whether every second shard of new examples holds only those whose fast answer differed from the vote."""
    probe: Count = 150
    """Problems one digit further on which agreement is measured after each cycle. More measure it better."""
    target_agreement: Share = 0.85
    """Agreement one digit further that ends a round's training."""
    probe_trained: CountOrNone = 40
    """Problems per trained length on which agreement is measured after each cycle. 0 turns this off, and with it the
    rollback of rounds."""
    probe_lengths: CountOrNone = 6
    """Trained lengths on which agreement is measured, drawn anew for each cycle. If one of them is in doubt, all are
    measured. 0 always measures all."""
    target_trained: Share = 0.8
    """Agreement that every measured trained length must reach before a round's training ends."""
    max_fall: Share = 0.25
    """Largest fall of agreement at trained lengths below its highest value. A round that falls further is rolled back
    and tried again with other problems, at most three times. 1 rolls nothing back."""
    max_leap: Annotated[int, Field(ge=1, le=MAX_DIGITS)] = 5
    """Largest step to the next round, in digits. The step is doubled, up to this, while agreement there is at least
    `leap_agreement`. 1 is the paper's schedule, one digit per round."""
    leap_agreement: Share = 0.7
    """Agreement that a length needs to become the next round, if it is more than one digit further."""
    min_agreement: Share = 0.3
    """Agreement one digit further below which the run stops with exit code 3."""
    trainer: RoundTrainerConfig = RoundTrainerConfig()
    """Training settings of a round."""


# Defaults that a schedule changes. The paper's has one digit per round, and therefore many short rounds.
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

# Defaults for a pretrained model, which is larger and has learned already: AdamW alone, at lower learning rates.
PRETRAINED: dict[str, Any] = {
    "schedule": "paper",
    "supervised": {"trainer": {"learning_rate": 2e-4, "weight_decay": 0.01, "warmup_steps": 20}},
    "round": {"trainer": {"learning_rate": 1e-4, "weight_decay": 0.01}},
}
# Defaults of the presets of text for the default task, whose problems can have hints.
HINTED: dict[str, Any] = {"text_layout": "hints", "digit_order": "lsd"}
# Defaults for an adapter of a pretrained model, over those above: low ranks take higher learning rates.
LORA: dict[str, Any] = {
    "supervised": {"trainer": {"learning_rate": 2e-3}},
    "round": {"trainer": {"learning_rate": 1e-3}},
}
# Defaults of the presets of text.
TEXT: dict[str, Any] = {
    "schedule": "paper",
    "supervised": {
        "cycle_steps": 4000,
        "more_steps": 1500,
        "trainer": {
            "optimizer": "muon",
            "learning_rate": 1.5e-3,
            "muon_learning_rate": 6e-3,
            "num_shards": 4,
            "shard_rows": 16,
        },
    },
    "round": {
        "cycle_steps": 100,
        "max_cycles": 8,
        "trainer": {"optimizer": "muon", "learning_rate": 1e-3, "muon_learning_rate": 4e-3},
    },
    # Without a chain to the end 3 to 8 % of the labels were wrong from 13 digits on (log.md, 2026-11-27).
    "filter": {"checks": FILTERS["thorough"].checks},
}


def _adapts(values: dict[str, Any]) -> bool:
    """Return whether nested settings ask for an adapter."""
    return any(key.endswith(".trainer.lora_rank") and value for key, value in flat(values))


class RunConfig(Settings):
    """Settings of a run. Nested settings are tables of the TOML file."""

    pretrained: str = ""
    """Model to start from instead of a new one: a directory in Hugging Face form, or a GGUF file. It is copied once,
    into checkpoints/00, and changes some defaults. `preset`, `muon_learning_rate` and `gap_share` have no effect then,
    and the check `shifted` is the same as `commutative`."""
    recipe: Annotated[int, Field(ge=1, le=RECIPE)] = RECIPE
    """Version of the training method that the settings are for. A run of another recipe cannot be resumed. Do not set
    it."""
    preset: Preset = "tiny"
    """Kind and size of a new model. `base` is slower and has more room to learn. `text-tiny` and `text-base` are
    ordinary transformers that read text, of 0.3 and 14 million parameters; they change some defaults."""
    network: dict[str, NetworkValue] = {}
    """Keys of a config of transformers that replace those of the preset `text-tiny` or `text-base`, such as
    `hidden_size`: numbers and switches, and the names `model_type`, `hidden_act` and `layer_types`. With another
    `model_type`, such as `llama`, they replace all."""
    text_layout: Literal["plain", "hints"] = "plain"
    """Form of problems for models of text. hints: before each digit stands a letter that marks its place, for addition
    only. The presets `text-tiny` and `text-base` take it by default."""
    task: str = DEFAULT
    """Task that the model learns. A task may change the defaults of other settings."""
    digit_order: Literal["msd", "lsd"] = "msd"
    """Order in which digits are written: most (msd) or least (lsd) significant first. lsd suits multiplication."""
    until: Annotated[int, Field(ge=2, le=MAX_DIGITS - 1)] = 29
    """Digits at which the run ends. Set it to `supervised.max_digits` for the supervised phase alone; raise it to
    continue a finished run."""
    schedule: Schedule = "leaps"
    """Distance between rounds. leaps: as many digits as the model agrees with itself. paper: one digit per round, as in
    the paper. It changes the defaults of other settings."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of all random draws. Change it to repeat a run with other draws."""
    engine: str = "native"
    """Engine that generates tokens. `native` needs nothing else; `hf` is `generate` of transformers, `vllm` is vLLM.
    Yours is named as FILE.py:NAME or MODULE:NAME."""
    blocks: CountOrNone = 0
    """Blocks of 250 candidates that a round solves together. 0 chooses: one on a CPU, and on a GPU as many as fit the
    memory for cache and activations, at most 64. The examples do not depend on it. Lower it if memory runs out."""
    hard_share: Share = 0.45
    """Share of drawn problems that have long carry chains or one short operand. Uniform draws rarely have either."""
    audit_samples: Count = 100
    """Problems per length in the audit after each phase. More give narrower intervals and take longer."""
    supervised: SupervisedConfig = SupervisedConfig()
    """Settings of the supervised phase."""
    round: RoundConfig = RoundConfig()
    """Settings of the rounds of self-training."""
    filter: Filter = Filter()
    """Settings of the improved policy."""
    vllm: VllmConfig = VllmConfig()
    """Settings of the engine `vllm`."""

    @model_validator(mode="before")
    @classmethod
    def _other_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        task, pretrained = values.get("task", DEFAULT), values.get("pretrained")
        if pretrained and isinstance(pretrained, str):
            values = merged(merged(PRETRAINED, LORA) if _adapts(values) else PRETRAINED, values)
        elif isinstance(preset := values.get("preset"), str) and preset.startswith(_TEXT_PRESET):
            values = merged(TEXT | HINTED if task == DEFAULT else TEXT, values)
        # The defaults above are those of the default task, so its module need not be imported for them. Rates of a task
        # are for our own model, so those of a model of text come first.
        if task != DEFAULT and is_task(task):
            values = merged(find_task(task).settings, values)
        schedule = values.get("schedule", "leaps")
        return merged(SCHEDULES[schedule], values) if isinstance(schedule, str) and schedule in SCHEDULES else values

    @property
    def is_text(self) -> bool:
        """Whether the model reads text: a pretrained one, or a preset of text."""
        return bool(self.pretrained) or self.preset.startswith(_TEXT_PRESET)

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is trained in the place of the weights."""
        return self.supervised.trainer.lora_rank > 0

    @model_validator(mode="after")
    def _check_trainers(self) -> Self:
        trainers = (self.supervised.trainer, self.round.trainer)
        if not self.is_text and any(trainer.micro_batch for trainer in trainers):
            raise ValueError("trainer.micro_batch is for models of text; lower trainer.shard_rows")
        if not self.is_text and any(trainer.recompute for trainer in trainers):
            raise ValueError("trainer.recompute is for models of text; leave it out")
        if not self.pretrained and any(trainer.lora_rank for trainer in trainers):
            raise ValueError("trainer.lora_rank adapts a pretrained model; give --pretrained, or leave it out")
        if len({(trainer.lora_rank, trainer.lora_targets) for trainer in trainers}) > 1:
            raise ValueError(
                "a run has one adapter; give supervised.trainer and round.trainer the same lora_rank and lora_targets"
            )
        return self

    @model_validator(mode="after")
    def _check_text(self) -> Self:
        if self.network and (self.pretrained or not self.is_text):
            raise ValueError("network changes the presets text-tiny and text-base; choose one of them, or leave it out")
        if not self.is_text:
            if self.text_layout != "plain":
                raise ValueError("text_layout is for models of text; leave it out, or choose the preset text-tiny")
            return self
        if self.text_layout == "hints" and self.until > _MAX_HINTED:
            raise ValueError(f"text_layout hints has a letter a digit, for {_MAX_HINTED} digits at most; lower until")
        if self.text_layout == "hints" and self.task != DEFAULT:
            raise ValueError(f"text_layout hints writes {DEFAULT} only; choose the layout plain for {self.task}")
        if self.text_layout == "hints":
            return self
        if self.task != DEFAULT and not find_task(self.task).has_text:
            raise ValueError(
                f"a model of text cannot learn the task {self.task}, which has no text form; leave out pretrained and "
                f"the presets of text, or choose the task {DEFAULT}"
            )
        if self.digit_order != "msd" and self.digit_order not in find_task(self.task).text_orders:
            raise ValueError("plain text has the most significant digit first; leave out digit_order")
        if not self.filter.use_chain and self.filter.k > 2 and not self.filter.temperature:
            raise ValueError(
                "without use_chain and temperature text has only two guesses, one per operand order; lower k"
            )
        return self

    @field_validator("network")
    @classmethod
    def _check_network(cls, network: dict[str, NetworkValue]) -> dict[str, NetworkValue]:
        for key, value in network.items():
            names = [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)]
            if names and not (key in _NETWORK_NAMES and all(re.fullmatch("[a-z0-9_]+", name) for name in names)):
                raise ValueError(f"{key} takes no text here; network takes numbers, and {', '.join(_NETWORK_NAMES)}")
        return network

    @field_validator("task")
    @classmethod
    def _check_task(cls, task: str) -> str:
        if not is_task(task):
            raise ValueError(no_such_task(task))
        return task

    @field_validator("engine")
    @classmethod
    def _check_engine(cls, engine: str, info: ValidationInfo) -> str:
        if not (ENGINE_DOOR.has(engine) or (_is_recorded(info) and is_plain_name(engine))):
            raise ValueError(ENGINE_DOOR.unknown(engine))
        return engine

    @model_validator(mode="after")
    def _check_frontier(self) -> Self:
        if self.until < self.supervised.max_digits:
            raise ValueError(
                f"until ({self.until}) must not be below supervised.max_digits ({self.supervised.max_digits})"
            )
        return self


def read_config(path: Path) -> dict[str, Any]:
    """Read a TOML file as nested dicts. Raise InputError if it is missing, not text or not TOML."""
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not TOML: {error}") from error
    except RecursionError as error:
        raise InputError(f"{path} cannot be read as TOML: it is nested too deeply") from error


def run_config(values: dict[str, Any], source: str = "config", is_recorded: bool = False) -> RunConfig:
    """Validate the settings of a run, as nested dicts.

    Raise InputError for the first bad key, with its source and the fault.

    is_recorded: whether they are read from a run, whose engine and checks may then be unknown here: it can be reported
        without their code.
    """
    return validated(RunConfig, values, source, is_recorded)


def validated(settings: type[Model], values: dict[str, Any], source: str, is_recorded: bool = False) -> Model:
    """Validate nested dicts as settings of a class. Arguments and errors are those of `run_config`."""
    try:
        return settings.model_validate(values, context={"is_recorded": is_recorded})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        known = "; `sector config` lists all settings" if first["type"] == "extra_forbidden" else ""
        message = "unknown key" if known else first["msg"].removeprefix("Value error, ")
        if first["type"] in _OUT_OF_RANGE:
            message += f"; it takes {_range_of(settings, first['loc'])}"
        raise InputError(f"{source}: {key + ': ' if key else ''}{message}{known}") from error


def _range_of(settings: type[Settings], key: Sequence[int | str]) -> str:
    """Return the range of a number setting in words."""
    field, kind = settings.model_fields[str(key[0])], settings
    for part in key[1:]:
        kind = field.annotation  # type: ignore[assignment]  # settings, since a key follows
        field = kind.model_fields[str(part)]
    bounds = {type(bound): bound for bound in field.metadata}
    first, last = bounds.get(Ge), bounds.get(Le)
    least = first.ge if isinstance(first, Ge) else bounds[Gt].gt
    most = last.le if isinstance(last, Le) else bounds[Lt].lt
    return f"{_plain(least)} to {'' if last else 'below '}{_plain(most)}"


def _plain(number: object) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Parse settings of the form `vllm.max_digits=40` to nested dicts; a value is TOML or a bare word.

    Raise InputError for the first text that has another form. `validated` checks whether the keys exist.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        path = [part.strip() for part in key.split(".")]
        if not equals or not all(part.isidentifier() for part in path):
            raise InputError(f"--set {text!r} is not a setting; write it as vllm.max_digits=40")
        try:
            setting: Any = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            setting = value.strip()
        for part in reversed(path):
            setting = {part: setting}
        settings = merged(settings, setting)
    return settings


def vllm_config(settings: dict[str, Any], base: VllmConfig) -> VllmConfig:
    """Return settings of the engine `vllm`: `settings` over `base`. Raise InputError if there are other settings."""
    if stray := next((key for key, _ in flat(settings) if not key.startswith("vllm.")), None):
        raise InputError(f"--set {stray}: only settings of the engine vllm can be given here, as vllm.max_digits=40")
    return validated(RunConfig, {"vllm": merged(base.model_dump(), settings.get("vllm", {}))}, "--set").vllm


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge nested settings; those of `over` win."""
    both = {
        key: merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in over.items()
    }
    return {**base, **both}


def flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings as pairs of dotted key and value."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def dump_config(config: RunConfig) -> str:
    """Return the resolved config as TOML."""
    return tomli_w.dumps(config.model_dump())
