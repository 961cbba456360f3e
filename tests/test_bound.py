"""Weights and the settings that they were trained with: an edited config.json is refused by every way to read it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_text import save_text_model, small_text_model
from transformers import AutoModelForCausalLM

from sector.engine.errors import InputError
from sector.engine.models.bound import LEARNED
from sector.engine.models.checkpoint import load_checkpoint, save_checkpoint, weights_sha256
from sector.engine.models.sector import new_model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_checkpoint(new_model("tiny", seed=3), tmp_path / "model")
    return tmp_path / "model"


def _edit(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


EDITS = [
    ("digit_order", "lsd", "msd"),
    ("task", "subtraction", "addition"),
    ("num_attention_heads", 2, 4),
    ("rope_theta", 50.0, 100.0),
    ("rope_max_frequency", 2.0, 2.5),
    ("rms_norm_eps", 0.1, 1e-06),
]


@pytest.mark.parametrize(("name", "other", "trained"), EDITS, ids=[edit[0] for edit in EDITS])
def test_other_settings_with_the_same_weights_are_refused(
    checkpoint: Path, name: str, other: Any, trained: Any
) -> None:
    _edit(checkpoint, **{name: other})
    for load in (load_checkpoint, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(InputError) as caught:
            load(checkpoint)
        said = f"says {name} = {other!r}, but its weights were trained with {name} = {trained!r}; put it back"
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_what_weights_do_not_depend_on_may_be_edited(checkpoint: Path) -> None:
    _edit(checkpoint, initializer_range=0.5, use_cache=False, mine="yes")
    assert weights_sha256(load_checkpoint(checkpoint)) == weights_sha256(new_model("tiny", seed=3))


def test_a_config_of_other_weights_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    save_checkpoint(new_model("tiny", seed=4, digit_order="lsd"), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "config.json", checkpoint / "config.json")
    with pytest.raises(InputError, match="trained with digit_order = 'msd'"):
        load_checkpoint(checkpoint)


def test_weights_of_others_are_read_by_their_config(checkpoint: Path, tmp_path: Path) -> None:
    """Saved again by transformers over a checkpoint of ours, or without a record at all."""
    new_model("tiny", seed=5, digit_order="lsd").save_pretrained(checkpoint)
    assert (checkpoint / LEARNED).exists() and load_checkpoint(checkpoint).config.digit_order == "lsd"
    new_model("tiny", seed=5).save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain" / LEARNED).exists()
    assert weights_sha256(load_checkpoint(tmp_path / "plain")) == weights_sha256(new_model("tiny", seed=5))


def test_a_record_that_cannot_be_read_is_one_line(checkpoint: Path) -> None:
    (checkpoint / LEARNED).write_text("{}")
    with pytest.raises(InputError, match=r"learned\.json is damaged"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_models_of_text_are_bound_too(kind: str, tmp_path: Path) -> None:
    model = load_checkpoint(save_text_model(small_text_model(kind), tmp_path / "raw"))
    save_checkpoint(model, tmp_path / "model")
    assert weights_sha256(load_checkpoint(tmp_path / "model")) == weights_sha256(model)
    _edit(tmp_path / "model", rms_norm_eps=0.5)
    with pytest.raises(InputError, match=r"says rms_norm_eps = 0\.5, but its weights were trained with"):
        load_checkpoint(tmp_path / "model")
