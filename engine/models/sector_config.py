"""Config of sector's own models: sizes, presets, and the task and digit order that weights have learned."""

from math import inf
from typing import Any

from transformers import PretrainedConfig

from sector.engine.language import tokens
from sector.engine.tasks import DEFAULT, is_task, no_such_task

# Raised by every change that gives the same weights another meaning: token classes, activation, rotation.
ARCHITECTURE_VERSION = 1
PRESETS: dict[str, dict[str, object]] = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256},
    "base": {
        "hidden_size": 384,
        "num_hidden_layers": 8,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "initializer_range": 0.033,
    },
}

# Keys of the config that a run may choose (`network`); the others follow from its task, or from the code.
CHOSEN = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "rope_max_frequency",
)


class SectorConfig(PretrainedConfig):
    """Config of a model: its sizes, and `digit_order` and `task`, which the weights have learned.

    architecture_version: version of the code that trained the weights. Weights of other versions would load and give
        wrong answers, so ValueError is raised.
    """

    model_type = "sector"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        hidden_size: int = 64,
        num_hidden_layers: int = 3,
        num_attention_heads: int = 4,
        intermediate_size: int = 256,
        rope_theta: float = 100.0,
        rope_max_frequency: float = 2.5,
        rms_norm_eps: float = 1e-6,
        initializer_range: float = 0.08,
        digit_order: str = "msd",
        task: str = DEFAULT,
        architecture_version: int = ARCHITECTURE_VERSION,
        **kwargs: Any,
    ) -> None:
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.rope_theta = rope_theta
        self.rope_max_frequency = rope_max_frequency
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.digit_order = digit_order
        self.task = task
        self.architecture_version = architecture_version
        kwargs.setdefault("vocab_size", tokens.VOCAB_SIZE)
        kwargs.setdefault("pad_token_id", tokens.PAD_ID)
        kwargs.setdefault("eos_token_id", tokens.eos_ids())
        kwargs.setdefault("bos_token_id", None)
        kwargs.setdefault("tie_word_embeddings", False)
        kwargs.setdefault("architectures", ["SectorForCausalLM"])
        _check(self)
        super().__init__(**kwargs)

    @property
    def head_dim(self) -> int:
        """K, the size of a head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def max_position_embeddings(self) -> int:
        """Tokens of the longest prompt and completion, under the name that engines read."""
        return tokens.row_length(tokens.MAX_DIGITS)


def _check(config: SectorConfig) -> None:
    """Raise ValueError, naming the rule, if no model can have this config."""
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        value = getattr(config, name)
        # A switch is a number to Python.
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, not {value!r}")
    for name in ("rope_theta", "rope_max_frequency", "rms_norm_eps", "initializer_range"):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < inf:
            raise ValueError(f"{name} must be a positive number, not {value!r}")
    if config.hidden_size % (2 * config.num_attention_heads):
        raise ValueError(
            f"hidden_size {config.hidden_size} must be a multiple of twice num_attention_heads, "
            f"{config.num_attention_heads}: a head rotates pairs"
        )
    if config.architecture_version != ARCHITECTURE_VERSION:
        raise ValueError(
            f"architecture_version is {config.architecture_version!r}; this release reads {ARCHITECTURE_VERSION} only"
        )
    if config.digit_order not in ("msd", "lsd"):
        raise ValueError(f"digit_order must be msd or lsd, not {config.digit_order!r}")
    if not is_task(config.task):
        raise ValueError(no_such_task(config.task))
