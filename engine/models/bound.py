"""What the weights of a checkpoint were trained as, bound to them: config.json is text, and gets edited.

    learned.json    the sha256 of model.safetensors, and the settings of config.json without which it means nothing

Other settings would load with the same weights and answer nonsense. Weights of another sha256 are others', such as
those that transformers saves, and this file says nothing of them; nor do checkpoints without it, which are older.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from transformers import PretrainedConfig

from sector.engine.errors import InputError
from sector.engine.files import read_text

WEIGHTS = "model.safetensors"
LEARNED = "learned.json"

# Of our own models: what `SectorConfig` takes, but for how fresh weights are drawn.
_OURS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "rope_theta",
    "rope_max_frequency",
    "rms_norm_eps",
    "digit_order",
    "task",
    "architecture_version",
    "vocab_size",
)
# Of any causal model: what transformers keeps in a config that does not change what the weights compute.
_FREE = frozenset(
    {
        "architectures", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "id2label",
        "initializer_range", "is_encoder_decoder", "label2id", "output_attentions", "output_hidden_states",
        "pad_token_id", "problem_type", "return_dict", "torch_dtype", "transformers_version", "use_cache",
    }
)  # fmt: skip


class Learned(BaseModel):
    """Settings that weights were trained with, by the sha256 of their file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    weights_sha256: str
    settings: dict[str, Any]


def learned_json(config: PretrainedConfig, weights: bytes) -> str:
    """The content of learned.json; weights: that of model.safetensors."""
    record = Learned(weights_sha256=hashlib.sha256(weights).hexdigest(), settings=_shaping(config))
    return record.model_dump_json(indent=2) + "\n"


def check_learned(path: Path, config: PretrainedConfig) -> None:
    """InputError if a checkpoint's weights were trained with other settings than its config says."""
    if not (path / LEARNED).is_file() or not (path / WEIGHTS).is_file():
        return
    try:
        record = Learned.model_validate_json(read_text(path / LEARNED))
    except ValidationError as error:
        raise InputError(f"{path / LEARNED} is damaged; restore the checkpoint, or train again") from error
    now = _shaping(config)
    differing = [key for key, value in record.settings.items() if key in now and now[key] != value]
    if differing and hashlib.sha256((path / WEIGHTS).read_bytes()).hexdigest() == record.weights_sha256:
        key = differing[0]
        raise InputError(
            f"{path / 'config.json'} says {key} = {now[key]!r}, but its weights were trained with {key} = "
            f"{record.settings[key]!r}; put it back"
        )


def _shaping(config: PretrainedConfig) -> dict[str, Any]:
    """The settings without which the weights mean nothing, as JSON has them."""
    if config.model_type == "sector":
        return {name: getattr(config, name) for name in _OURS}
    values = {key: value for key, value in config.to_dict().items() if key not in _FREE and not key.startswith("_")}
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain
