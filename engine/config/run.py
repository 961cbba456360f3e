"""Settings of a run: all sections."""

import re
from math import isfinite
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from sector.engine.config.defaults import TEXT_PRESET, with_defaults
from sector.engine.config.filter import Filter
from sector.engine.config.round import RoundConfig
from sector.engine.config.supervised import SupervisedConfig
from sector.engine.config.values import (
    MAX_DIGITS,
    Count,
    CountOrNone,
    Settings,
    Share,
    Values,
    flat,
    is_recorded,
    merged,
    validated,
)
from sector.engine.config.vllm import VllmConfig
from sector.engine.errors import InputError
from sector.engine.outside import Door, is_plain_name
from sector.engine.tasks import DEFAULT, find_task, is_task, no_such_task

Preset = Literal["tiny", "base", "text-tiny", "text-base"]
Schedule = Literal["leaps", "paper"]
# Digits of operands whose places have letters of their own, that of the zero in front and of a problem ahead included.
_MAX_HINTED = 50
# Raised whenever the same settings lead to other weights. A config without a recipe has recipe 1.
RECIPE = 2
ENGINES = ("native", "hf", "vllm")
# Engines of users: classes that are called with a model.
ENGINE_DOOR: Door[Any] = Door("engine", "--engine FILE.py:NAME", lambda: ENGINES, "sector.engine.samplers.outside")
# Settings that may change when a run is resumed: how far it goes, how engines use the machine, and what stays on the
# disk. All other
# settings shape the files of a run: weights, examples, or metrics that are compared with each other.
MAY_CHANGE = frozenset(
    {
        "until",
        "blocks",
        "keep_candidates",
        "keep_checkpoints",
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
    """Keys of the network's config that replace those of the preset. `tiny` and `base` have `hidden_size`,
    `num_hidden_layers`, `num_attention_heads`, `intermediate_size`, `initializer_range`, `rms_norm_eps`, `rope_theta`
    and `rope_max_frequency`. `text-tiny` and `text-base` have those of transformers: numbers and switches, and the
    names `model_type`, `hidden_act` and `layer_types`. With another `model_type`, such as `llama`, they replace all."""
    text_layout: Literal["plain", "hints"] = "plain"
    """Form of problems for models of text. hints: before each digit stands a letter that marks its place. The presets
    `text-tiny` and `text-base` take it by default for addition and subtraction."""
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
    keep_candidates: CountOrNone = 0
    """Rounds whose candidates.parquet stays, the last ones; 0 keeps all. Only a report reads those of finished rounds,
    which are most of the disk that examples take."""
    keep_checkpoints: CountOrNone = 0
    """Checkpoints that stay, the last ones; 0 keeps all. The best one, and those that later rounds need, stay in any
    case, so the run can be resumed. Set it to 1 for large models."""
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
    def _other_defaults(cls, values: object) -> object:
        return with_defaults(values) if isinstance(values, dict) else values

    @property
    def is_text(self) -> bool:
        """Whether the model reads text: a pretrained one, or a preset of text."""
        return bool(self.pretrained) or self.preset.startswith(TEXT_PRESET)

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is trained in the place of the weights."""
        return self.supervised.trainer.lora_rank > 0

    @model_validator(mode="after")
    def _check_kept(self) -> Self:
        if self.keep_checkpoints and self.round.teacher == "slow":
            raise ValueError("the teacher slow averages all checkpoints; leave out keep_checkpoints")
        return self

    @model_validator(mode="after")
    def _check_trainers(self) -> Self:
        trainers = (self.supervised.trainer, self.round.trainer)
        if not self.is_text and any(trainer.micro_batch for trainer in trainers):
            raise ValueError("trainer.micro_batch is for models of text; lower trainer.shard_rows")
        if not self.is_text and any(trainer.recompute for trainer in trainers):
            raise ValueError("trainer.recompute is for models of text; leave it out")
        zeros = max(trainer.zeros for trainer in trainers)
        if zeros and not find_task(self.task).columns:
            raise ValueError("trainer.zeros is for tasks with two numbers and columns, as addition; leave it out")
        if self.text_layout == "hints" and self.until + zeros > _MAX_HINTED:
            raise ValueError(
                f"text_layout hints has a letter a digit, for {_MAX_HINTED} digits at most, with zeros in front; lower "
                "until or trainer.zeros"
            )
        if not self.pretrained and any(trainer.lora_rank for trainer in trainers):
            raise ValueError("trainer.lora_rank adapts a pretrained model; give --pretrained, or leave it out")
        if len({(trainer.lora_rank, trainer.lora_targets) for trainer in trainers}) > 1:
            raise ValueError(
                "a run has one adapter; give supervised.trainer and round.trainer the same lora_rank and lora_targets"
            )
        return self

    @model_validator(mode="after")
    def _check_text(self) -> Self:
        if self.network and self.pretrained:
            raise ValueError("network changes a new model, and a pretrained one has its own; leave out one of the two")
        if not self.is_text:
            if self.text_layout != "plain":
                raise ValueError("text_layout is for models of text; leave it out, or choose the preset text-tiny")
            return self
        if self.text_layout == "hints":
            if not find_task(self.task).has_hints:
                raise ValueError(f"text_layout hints cannot write {self.task}; choose the layout plain")
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

    @field_validator("network", mode="before")
    @classmethod
    def _check_finite(cls, network: object) -> object:
        """Refuse infinite numbers here; the message of a union would call them no switches."""
        for key, value in network.items() if isinstance(network, dict) else ():
            if isinstance(value, float) and not isfinite(value):
                raise ValueError(f"{key} must be a finite number, not {value}")
        return network

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
        if not (ENGINE_DOOR.has(engine) or (is_recorded(info) and is_plain_name(engine))):
            raise ValueError(ENGINE_DOOR.unknown(engine))
        return engine

    @model_validator(mode="after")
    def _check_frontier(self) -> Self:
        if self.until < self.supervised.max_digits:
            raise ValueError(
                f"until ({self.until}) is below supervised.max_digits ({self.supervised.max_digits}); raise "
                "until, or lower the other"
            )
        return self


def run_config(values: Values, source: str = "config", is_recorded: bool = False) -> RunConfig:
    """Validate the settings of a run, as nested dicts.

    Raise InputError for the first bad key, with its source and the fault.

    is_recorded: whether they are read from a run, whose engine and checks may then be unknown here: it can be reported
        without their code.
    """
    return validated(RunConfig, values, source, is_recorded)


def vllm_config(settings: Values, base: VllmConfig) -> VllmConfig:
    """Return settings of the engine `vllm`: `settings` over `base`. Raise InputError if there are other settings."""
    if stray := next((key for key, _ in flat(settings) if not key.startswith("vllm.")), None):
        raise InputError(f"--set {stray}: only settings of the engine vllm can be given here, as vllm.max_digits=40")
    return run_config(merged({"vllm": base.model_dump()}, settings), "--set").vllm
