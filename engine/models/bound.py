"""Bind the weights of a checkpoint to the settings that they were trained with, since config.json can be edited.

    learned.json    the sha256 of model.safetensors, and the settings of config.json that shape its meaning

The same weights would load with other settings and answer nonsense. The check is skipped for weights of another
sha256, such as those that transformers saves, and for older checkpoints, which have no learned.json.
"""

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from transformers import PretrainedConfig

from sector.engine.errors import InputError
from sector.engine.files import read_text

WEIGHTS = "model.safetensors"
LEARNED = "learned.json"

# Settings of `SectorConfig` that are bound: all but those that only draw fresh weights.
_OF_SECTOR = (
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
# Settings of any other causal model that do not change its computation; all the others are bound.
_FREE = frozenset(
    {
        "architectures", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "id2label",
        "initializer_range", "is_encoder_decoder", "label2id", "output_attentions", "output_hidden_states",
        "pad_token_id", "problem_type", "return_dict", "torch_dtype", "transformers_version", "use_cache",
    }
)  # fmt: skip


class Learned(BaseModel):
    """Content of learned.json.

    weights_sha256: digest of model.safetensors.
    settings: settings of config.json that shape the meaning of the weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    weights_sha256: str
    settings: dict[str, object]


def learned_json(config: PretrainedConfig, weights: bytes) -> str:
    """Return the content of learned.json for a config and the content of model.safetensors."""
    record = Learned(weights_sha256=hashlib.sha256(weights).hexdigest(), settings=_bound_settings(config))
    return record.model_dump_json(indent=2) + "\n"


def check_learned(path: Path, config: PretrainedConfig) -> None:
    """Raise InputError if the config of a checkpoint differs from the settings that its weights were trained with."""
    if not (path / LEARNED).is_file() or not (path / WEIGHTS).is_file():
        return
    try:
        record = Learned.model_validate_json(read_text(path / LEARNED))
    except ValidationError as error:
        raise InputError(f"{path / LEARNED} is damaged; restore the checkpoint, or train again") from error
    current = _bound_settings(config)
    differing = [key for key, value in record.settings.items() if key in current and current[key] != value]
    if differing and hashlib.sha256((path / WEIGHTS).read_bytes()).hexdigest() == record.weights_sha256:
        key = differing[0]
        raise InputError(
            f"{path / 'config.json'} says {key} = {current[key]!r}, but its weights were trained with {key} = "
            f"{record.settings[key]!r}; put it back"
        )


def _bound_settings(config: PretrainedConfig) -> dict[str, object]:
    """Return the bound settings of a config, as plain JSON values."""
    if config.model_type == "sector":
        return {name: getattr(config, name) for name in _OF_SECTOR}
    values = {key: value for key, value in config.to_dict().items() if key not in _FREE and not key.startswith("_")}
    plain: dict[str, object] = json.loads(json.dumps(values, default=str))
    return plain
